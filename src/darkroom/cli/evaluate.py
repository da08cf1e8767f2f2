"""`darkroom evaluate`: do a model's pictures show what the prompts say?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from ..errors import RequestError
from ..request import MAX_IMAGES, choice, real, whole
from . import options
from .command import App, Argument, Option

if TYPE_CHECKING:
    from ..engine.engine import Progress
    from ..evaluate.judge import NewObject
    from ..names import Metric
    from ..pipeline import Pipeline
    from .display import Display

app = App()
MOST = 1_000_000  # pictures to draw
FEW = 10_000  # pictures under which FID is warned of
COLUMNS = ("background", "objects", "layout", "right")


@app.command()
def evaluate(
    model: Annotated[
        str | None, Argument(metavar="[MODEL]", help="A model (folder, file, ORG/NAME). [default: embedded]")
    ] = None,
    metrics: Annotated[
        str,
        Option(
            metavar="M,M",
            help="Of adherence, reconstruction, fid, kid, cmmd, clip, memorisation. [default: adherence]",
            show_default=False,
        ),
    ] = "adherence",
    count: Annotated[
        int | None,
        Option(
            "--count",
            "-n",
            metavar="N",
            parser=options.whole_number,
            help="Pictures to draw, a category. [default: 100; with --data one for each of its pictures]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            metavar="FOLDER", help="Pictures to compare with, or pytorch-fid's .npz. [default: the built-in scenes]"
        ),
    ] = None,
    pictures: Annotated[str | None, Option(metavar="FOLDER", help="Measure these pictures; no model is asked.")] = None,
    features: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="A network that judges: Inception, CLIP or LPIPS; may come several times."),
    ] = None,
    resize: Annotated[
        str, Option(metavar="R", help="How Inception gets its pictures: tensorflow or pytorch-fid.")
    ] = "tensorflow",
    keep: Annotated[
        str | None, Option(metavar="DIR", help="Keep drawn pictures here; the same command goes on with them.")
    ] = None,
    cache: Annotated[
        str | None, Option(metavar="DIR", help="Keep features here, so that nothing is looked at twice.")
    ] = None,
    statistics: Annotated[
        str | None, Option(metavar="FILE", help="Write the data's statistics (.npz) for later --data.")
    ] = None,
    sheet: Annotated[
        str | None,
        Option(metavar="FILE", help="A picture of a new object before and after; of memorisation's closest pairs."),
    ] = None,
    object_: Annotated[
        str | None,
        Option("--object", metavar="NOUN", help="Judge a new object instead, and what it cost the old ones."),
    ] = None,
    glyph: options.NewGlyph = None,
    word: options.NewWord = None,
    before: Annotated[
        str | None,
        Option(metavar="M", help="The model before it learned. [default: MODEL without --lora and --embedding]"),
    ] = None,
    vae: options.Vae = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
    steps: Annotated[
        int | None,
        Option(metavar="N", parser=options.whole_number, help="Sampling steps. [default: the model's]"),
    ] = None,
    guidance: Annotated[
        float | None,
        Option(metavar="X", parser=options.real_number, help="Guidance scale. [default: the model's]"),
    ] = None,
    sampler: Annotated[str | None, Option(metavar="NAME", help="See `darkroom samplers`.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Measure a model or a folder of pictures.

    Adherence judges pictures of the built-in scenes, seen and held-out combinations, beside the ceiling and chance: one
    is right when its background, its objects, their number, size and places are all as the caption says. The other
    metrics work with any pictures (docs/evaluation.md).
    """
    chosen = tuple(dict.fromkeys(part.strip() for part in metrics.split(",") if part.strip()))
    judged = object_ is not None or "adherence" in chosen
    with options.named_as_options():
        if count is not None:
            whole("--count", count, 1, MAX_IMAGES if judged else MOST)
        if steps is not None:
            whole("--steps", steps, 1, 1000)
        if guidance is not None:
            real("--guidance", guidance, 0, 100)
        choice("--resize", resize, ("tensorflow", "pytorch-fid"))
    if object_ is None and (given := [n for n, v in (("--glyph", glyph), ("--word", word), ("--before", before)) if v]):
        raise RequestError(f"{given[0]} tells of a new object; name it with --object")
    if not chosen:
        raise RequestError("--metrics is empty; name one or more, such as reconstruction")
    if data is not None and chosen == ("adherence",):
        raise RequestError("--data is of no use to adherence; name other --metrics, such as reconstruction")
    if pictures is not None and model is not None:
        raise RequestError(f"--pictures measures pictures that are there, and {model!r} would draw others; give one")
    from .display import Display

    files = options.loras(lora)
    with Display("loading the model") as display:
        from ..adapters import Lora
        from ..evaluate.measure import Measurement, measure
        from ..formats.features import open_features

        asked = Measurement(
            cast("list[Metric]", [m for m in chosen if m != "adherence" or pictures is not None]),
            data=data,
            pictures=pictures,
            count=count,
            features=open_features(features or []),
            like=resize,
            keep=None if keep is None else Path(keep),
            cache=None if cache is None else Path(cache),
            statistics=None if statistics is None else Path(statistics),
            sheet=None if sheet is None else Path(sheet),
        )
        drawing: dict[str, Any] = {"steps": steps, "guidance_scale": guidance, "sampler": sampler}
        drawing |= {"loras": [Lora(file, scale) for file, scale in files], "embeddings": embedding or []}
        known = None if object_ is None else new_object(object_, word, glyph)
        pipe = None if pictures is not None else options.load(model, device, dtype, False, threads, vae=vae)
        scores: dict[str, Any] = {}
        if known is not None and pipe is not None:
            earlier = None if before is None else options.load(before, device, dtype, False, threads)
            scores = of_object(display, pipe, known, count or 100, earlier, {"sheet": asked.sheet, **drawing})
        elif "adherence" in chosen and pipe is not None:
            scores = adherence(display, pipe, count or 100, drawing)
        if known is None and asked.metrics:
            from ..devices import device_named

            def report(what: str, done: int, total: int) -> None:
                display.steps(done, total, what)

            with options.named_as_options():
                place = device_named(device)
            scores |= measure(asked, pipe, report, place, **drawing)
    print(json.dumps(scores, indent=2) if as_json else as_text(scores))


def new_object(noun: str, word: str | None, glyph: str | None) -> NewObject:
    """What `--object` and its companions tell. Raises `darkroom.Error`."""
    from ..evaluate.judge import NewObject

    return NewObject.of(noun, word, glyph)


def of_object(
    display: Display, pipe: Pipeline, new: NewObject, count: int, before: Pipeline | None, drawing: dict[str, Any]
) -> dict[str, Any]:
    """The scores of a new object."""
    from ..evaluate.judge import evaluate_object
    from ..training.card import score_as_json

    stage, step = watching(display, count, 4 if drawing["loras"] or before is not None else 3)
    rows = evaluate_object(pipe, new, count, before=before, progress=stage, on_progress=step, **drawing)
    table = {name: score_as_json(row) for name, row in rows.items()}
    return {"object": new.noun, "word": new.word, "pictures_a_row": count, "rows": table}


def adherence(display: Display, pipe: Pipeline, count: int, drawing: dict[str, Any]) -> dict[str, Any]:
    """The scores on the built-in scenes."""
    from ..evaluate.judge import evaluate as judge_all
    from ..toy.objects import CANVAS
    from ..toy.scenes import KINDS
    from ..training.card import scores_as_json

    stage, step = watching(display, count, 2 * len(KINDS))
    return scores_as_json(judge_all(pipe, count, stage, width=CANVAS, height=CANVAS, on_progress=step, **drawing))


def watching(display: Display, count: int, stages: int) -> tuple[Callable[[str], None], Callable[[Progress], None]]:
    """What shows each stage by its name, and each step of its `count` pictures."""
    now, begun, done = "", -1, 0

    def stage(text: str) -> None:
        nonlocal now, begun, done
        now, begun, done = text, begun + 1, 0

    def step(event: Progress) -> None:
        nonlocal done
        done += 1
        total = event.steps * count
        display.steps(begun * total + done, stages * total, now)

    return stage, step


def as_text(scores: dict[str, Any]) -> str:
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


def _measured(scores: dict[str, Any]) -> Iterator[str]:
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


def _per_cent(score: dict[str, float]) -> str:
    return "".join(f"{100 * score[name]:11.1f}%" for name in COLUMNS)
