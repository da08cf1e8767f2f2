"""`darkroom.evaluate`: all that `darkroom evaluate` measures, of a model or of a folder of pictures, by one call.

torch is imported where something is measured: what can't be is said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import RequestError
from ..names import DType, Metric, SamplerName
from ..request import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, choice, real, whole

if TYPE_CHECKING:
    from ..adapters import Lora
    from ..engine.engine import Progress
    from ..formats.embedding import Embedding
    from ..pipeline import Pipeline
    from .judge import NewObject
    from .measure import Measurement

Resize = Literal["tensorflow", "pytorch-fid"]
COUNT = 100  # pictures a category, or a row, where nothing is said
MOST = 1_000_000  # pictures to draw
FEW = 10_000  # pictures under which FID is warned of
COLUMNS = ("background", "objects", "layout", "right")


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """How far an evaluation is."""

    task: str  # what is being done: "single, held out", "drawing", "reconstructing"
    done: int
    total: int


Tell = Callable[[EvaluationProgress], None]


@dataclass(frozen=True)
class Evaluation(Mapping[str, Any]):
    """What was measured, by names: evaluation["fid"]. `str` of it is the table that the command prints.

    Attributes:
        scores: all of it as plain values, what the command prints as JSON: "categories" and "autoencoder_psnr"
            (adherence), "rows" (a new object), "reconstruction", "fid", "kid", "cmmd", "clip", "memorisation", and
            "pictures", how many were looked at.
    """

    scores: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        return as_text(self.scores)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `evaluate` is asked for, checked as far as no file is opened; `evaluate` says what each is."""

    model: str | Path | Pipeline | None = None
    metrics: Sequence[Metric] = ("adherence",)
    count: int | None = None
    data: str | Path | None = None
    pictures: str | Path | None = None
    features: Sequence[str | Path] = ()
    resize: Resize = "tensorflow"
    keep: str | Path | None = None
    cache: str | Path | None = None
    statistics: str | Path | None = None
    sheet: str | Path | None = None
    object: str | None = None
    glyph: str | Path | None = None
    word: str | None = None
    before: str | Path | Pipeline | None = None
    loras: Sequence[Lora | str | Path] = ()
    embeddings: Sequence[Embedding | str | Path] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: SamplerName | None = None
    vae: str | Path | None = None
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Raises RequestError."""
        metrics = (self.metrics,) if isinstance(self.metrics, str) else self.metrics
        chosen = tuple(dict.fromkeys(metrics))
        object.__setattr__(self, "metrics", chosen)
        judged = self.object is not None or "adherence" in chosen
        if self.count is not None:
            whole("count", self.count, 1, MAX_IMAGES if judged else MOST)
        if self.steps is not None:
            whole("steps", self.steps, 1, MAX_STEPS)
        if self.guidance_scale is not None:
            real("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        choice("resize", self.resize, get_args(Resize))
        for name in chosen:
            choice("metrics", name, get_args(Metric))
        if self.object is None:
            for name in ("glyph", "word", "before"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name} tells of a new object; name it, too: object")
        if not chosen:
            raise RequestError("metrics is empty; name one or more, such as reconstruction")
        if self.data is not None and chosen == ("adherence",):
            raise RequestError("data is of no use to adherence; name other metrics, such as reconstruction")
        if self.pictures is not None and self.model is not None:
            raise RequestError(f"pictures are there already, and {self.model!r} would draw others; give one of the two")

    @property
    def drawing(self) -> dict[str, Any]:
        """What goes to `Pipeline.generate`."""
        named = {"steps": self.steps, "guidance_scale": self.guidance_scale, "sampler": self.sampler}
        return {**named, "loras": list(self.loras), "embeddings": list(self.embeddings)}

    @property
    def measurement(self) -> Measurement:
        """What is measured besides adherence. Raises RequestError, CheckpointError."""
        from ..formats.features import open_features
        from .measure import Measurement

        wanted = [m for m in self.metrics if m != "adherence" or self.pictures is not None]
        paths: dict[str, Any] = {name: getattr(self, name) for name in ("keep", "cache", "statistics", "sheet")}
        return Measurement(
            wanted,
            data=None if self.data is None else str(self.data),
            pictures=None if self.pictures is None else str(self.pictures),
            count=self.count,
            features=open_features(self.features),
            like=self.resize,
            **{name: None if path is None else Path(path) for name, path in paths.items()},
        )


def evaluate(
    model: str | Path | Pipeline | None = None,
    metrics: Metric | Sequence[Metric] = ("adherence",),
    *,
    count: int | None = None,
    data: str | Path | None = None,
    pictures: str | Path | None = None,
    features: Sequence[str | Path] = (),
    resize: Resize = "tensorflow",
    keep: str | Path | None = None,
    cache: str | Path | None = None,
    statistics: str | Path | None = None,
    sheet: str | Path | None = None,
    object: str | None = None,
    glyph: str | Path | None = None,
    word: str | None = None,
    before: str | Path | Pipeline | None = None,
    loras: Sequence[Lora | str | Path] = (),
    embeddings: Sequence[Embedding | str | Path] = (),
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: SamplerName | None = None,
    vae: str | Path | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    on_progress: Tell | None = None,
) -> Evaluation:
    """Measure a model, or a folder of pictures; docs/evaluation.md tells what the figures mean.

    Args:
        model: as `load` takes it, or a pipeline; None: the embedded model, or none at all where `pictures` are given.
        metrics: one or more of "adherence" (a judge looks whether pictures of the built-in scenes show what their
            captions say), "reconstruction", "fid", "kid", "cmmd", "clip", "memorisation".
        count: pictures to draw: of each of adherence's categories, of each row of a new object (None: 100); for the
            others in all (None: one for each of the data's).
        data: pictures to compare with and whose captions are drawn by: a folder or shards; for FID also pytorch-fid's
            statistics (.npz); None: the built-in scenes.
        pictures: a folder of pictures to measure instead of drawing any.
        features: files of the networks that judge: Inception, CLIP, LPIPS (docs/evaluation.md says which).
        resize: how pictures come to Inception.
        keep: a folder for what is drawn; an evaluation that was interrupted goes on with what is in it.
        cache: a folder for features, so that nothing is looked at twice.
        statistics: an .npz to write, the data's statistics for later `data`.
        sheet: a picture to write: of a new object before and after, or of memorisation's closest pairs.
        object: judge a new object of this name instead, and what it cost the old ones; `glyph`: how it looks, an emoji
            or a picture's file (None: the emoji of that name); `word`: what prompts call it, if not by its name;
            `before`: the model before it learned it (None: `model` without `loras` and `embeddings`).
        loras, embeddings, steps, guidance_scale, sampler: as in `Pipeline.generate`.
        vae, device, dtype: as in `load`.
        on_progress: called often with an EvaluationProgress(task, done, total). What it raises ends the evaluation;
            files are there whole or not at all.

    Raises RequestError, CheckpointError and ImageError, in one sentence each.
    """
    return evaluate_asked(
        Asked(
            model=model, metrics=(metrics,) if isinstance(metrics, str) else metrics, count=count, data=data,
            pictures=pictures, features=features, resize=resize, keep=keep, cache=cache, statistics=statistics,
            sheet=sheet, object=object, glyph=glyph, word=word, before=before, loras=loras, embeddings=embeddings,
            steps=steps, guidance_scale=guidance_scale, sampler=sampler, vae=vae, device=device, dtype=dtype,
        ),
        on_progress or (lambda progress: None),
    )  # fmt: skip


def evaluate_asked(asked: Asked, tell: Tell) -> Evaluation:
    """`evaluate`, of what was checked before."""
    from ..devices import device_named
    from ..toy.objects import CANVAS
    from ..toy.scenes import KINDS
    from .judge import NewObject, scores_as_json
    from .judge import evaluate as judge_all
    from .measure import measure

    measurement = asked.measurement  # which says what is missing before a model is loaded
    new = None if asked.object is None else NewObject.of(asked.object, asked.word, asked.glyph)
    place = device_named(asked.device)
    tell(EvaluationProgress("loading the model", 0, 0))
    pipe = None if asked.pictures is not None else _pipeline(asked.model, asked, asked.vae)
    scores: dict[str, Any] = {}
    if new is not None and pipe is not None:
        return Evaluation(_object_scores(asked, pipe, new, tell))
    if "adherence" in asked.metrics and pipe is not None:
        watch = _Watch(tell, asked.count or COUNT, 2 * len(KINDS))
        found = judge_all(
            pipe, watch.count, watch.stage, width=CANVAS, height=CANVAS, on_progress=watch.step, **asked.drawing
        )
        scores |= scores_as_json(found)
    if measurement.metrics:

        def report(task: str, done: int, total: int) -> None:
            tell(EvaluationProgress(task, done, total))

        scores |= measure(measurement, pipe, report, pipe.device if pipe is not None else place, **asked.drawing)
    return Evaluation(scores)


def _pipeline(model: str | Path | Pipeline | None, asked: Asked, vae: str | Path | None = None) -> Pipeline:
    from ..loading import load

    if model is not None and not isinstance(model, str | Path):
        return model
    return load(model, device=asked.device, dtype=asked.dtype, vae=vae)


def _object_scores(asked: Asked, pipe: Pipeline, new: NewObject, tell: Tell) -> dict[str, Any]:
    """The scores of a new object."""
    from .judge import evaluate_object, score_as_json

    before = None if asked.before is None else _pipeline(asked.before, asked)
    watch = _Watch(tell, asked.count or COUNT, 4 if asked.loras or before is not None else 3)
    rows = evaluate_object(
        pipe,
        new,
        watch.count,
        before=before,
        sheet=None if asked.sheet is None else Path(asked.sheet),
        progress=watch.stage,
        on_progress=watch.step,
        **asked.drawing,
    )
    table = {name: score_as_json(row) for name, row in rows.items()}
    return {"object": new.noun, "word": new.word, "pictures_a_row": watch.count, "rows": table}


class _Watch:
    """Tells of stages by their names, and of each step of their `count` pictures."""

    def __init__(self, tell: Tell, count: int, stages: int) -> None:
        self.count, self.stages = count, stages
        self._tell, self._now, self._begun, self._done = tell, "", -1, 0

    def stage(self, name: str) -> None:
        self._now, self._begun, self._done = name, self._begun + 1, 0

    def step(self, event: Progress) -> None:
        self._done += 1
        each = event.steps * self.count
        self._tell(EvaluationProgress(self._now, self._begun * each + self._done, self.stages * each))


# --- for people


def as_text(scores: Mapping[str, Any]) -> str:
    """What was measured: tables of the judge's scores in per cent, and a line for each other metric."""
    lines: list[str] = []
    if "categories" in scores or "rows" in scores:
        lines.append(f"{'':26}" + "".join(f"{name:>12}" for name in COLUMNS))
    for kind, rows in scores.get("categories", {}).items():
        lines += [*(f"{kind:10}{row:16}" + _per_cent(score) for row, score in rows.items()), ""]
    if "categories" in scores:
        count, psnr = scores["pictures_a_category"], scores["autoencoder_psnr"]
        lines.append(f"{count} pictures a row; the autoencoder reconstructs with {psnr:.2f} dB PSNR")
    if "rows" in scores:
        lines += [f"{row:26}" + _per_cent(score) for row, score in scores["rows"].items()]
        lines += ["", f"{scores['pictures_a_row']} pictures a row; new: {scores['word']}"]
    return "\n".join([*lines, *_measured(scores)])


def _measured(scores: Mapping[str, Any]) -> Iterator[str]:
    if kept := scores.get("reconstruction"):
        lpips = f", LPIPS {kept['lpips']:.4f}" if "lpips" in kept else ""
        count = kept["pictures"]
        yield f"reconstruction of {count} pictures: PSNR {kept['psnr']:.2f} dB, SSIM {kept['ssim']:.4f}{lpips}"
    if "pictures" in scores:
        yield f"{scores['pictures']} pictures, compared with {scores['compared_with']}"
    if "fid" in scores:
        few = " (of few pictures: it says more about their number than about them)" if scores["pictures"] < FEW else ""
        yield f"FID {scores['fid']:.3f}{few}"
    if "kid" in scores:
        yield f"KID {scores['kid']['mean']:.5f} +- {scores['kid']['deviation']:.5f}"
    if "cmmd" in scores:
        yield f"CMMD {scores['cmmd']:.4f}"
    if "clip" in scores:
        yield f"CLIP score {scores['clip']:.2f} (100 cos)"
    if copies := scores.get("memorisation"):
        yield (
            f"memorisation: {100 * copies['suspicious']:.1f}% of {copies['pictures']} pictures are nearer to one of "
            f"{copies['training_pictures']} training pictures than {copies['threshold']:.4f}, as 1% of those are to "
            f"each other (seen by {copies['seen_by']})"
        )
        for pair in copies["closest"][:5]:
            yield f"  {pair['distance']:.4f}  {pair['picture']}  {pair['training']}"


def _per_cent(score: Mapping[str, float]) -> str:
    return "".join(f"{100 * score[name]:11.1f}%" for name in COLUMNS)
