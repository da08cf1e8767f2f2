"""Everything that `darkroom evaluate` can measure, of a model or of a folder of pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..data.dataset import open_dataset
from ..errors import RequestError
from ..formats.features import FeatureFile, Kind, require
from ..names import Metric
from .distances import Moments, clip_score, cmmd, frechet, kernel_distance
from .judge import SEED
from .memorisation import Memorisation
from .networks import ClipExtractor, FeatureExtractor, InceptionExtractor, PixelExtractor, Vectors, extract, load_lpips
from .pictures import Pictures, draw, write_sheet
from .reconstruction import reconstruction

if TYPE_CHECKING:
    from ..pipeline import Pipeline

METRICS = get_args(Metric)
OF_PICTURES = ("fid", "kid", "cmmd", "clip", "memorisation")  # what drawn pictures, or a folder's, are asked for
NEEDS: Mapping[str, Kind] = {"fid": "inception", "kid": "inception", "cmmd": "clip", "clip": "clip"}
Report = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Measurement:
    """What is to be measured.

    Attributes:
        metrics: of `METRICS` without "adherence", which the built-in scenes' own `scenes.evaluate` measures.
        data: the pictures to compare with: a folder or shards; for FID also a file of statistics (.npz); None: the
            built-in scenes.
        pictures: a folder of pictures to measure instead of drawing any.
        count: how many are drawn, with the captions of the data; None: one each.
        features: networks, see `formats.features.open_features`.
        like: how pictures come to Inception, see `networks.InceptionExtractor`.
        keep: a folder for drawn pictures, where an interrupted evaluation goes on; None: none are kept.
        cache: a folder for features; None: none are kept.
        statistics: an .npz to write, of the data's Inception features.
        sheet: a picture to write, of the closest pairs.
    """

    metrics: Sequence[Metric]
    data: str | None = None
    pictures: str | None = None
    count: int | None = None
    features: Mapping[Kind, FeatureFile] = field(default_factory=dict)
    like: str = "tensorflow"
    keep: Path | None = None
    cache: Path | None = None
    statistics: Path | None = None
    sheet: Path | None = None

    def __post_init__(self) -> None:
        """Raise RequestError, or CheckpointError for a network that is not given, before anything is loaded."""
        for name in self.metrics:
            if name not in METRICS:
                raise RequestError(f"metrics has {name[:40]!r}; there are {', '.join(METRICS)}")
            if name in NEEDS:
                require(self.features, NEEDS[name], name)
        if self.pictures is not None and (wrong := [m for m in self.metrics if m not in OF_PICTURES]):
            raise RequestError(f"{wrong[0]} is measured on a model, not on a folder of pictures")
        if self.pictures is not None and self.data is None and set(self.metrics) - {"clip"}:
            raise RequestError("a folder of pictures is compared with others; name those by --data")
        if "memorisation" in self.metrics and self.data is None:
            raise RequestError("memorisation needs the pictures that the model was trained on; name them by --data")
        if self.is_statistics and (wrong := [m for m in self.metrics if m != "fid"]):
            raise RequestError(f"{wrong[0]} needs pictures, and {self.data!r} holds statistics of features only")
        if self.is_statistics and self.pictures is None:
            raise RequestError(f"{self.data!r} has no captions to draw by; give a folder by --pictures")
        if self.statistics is not None and (self.is_statistics or "fid" not in self.metrics):
            raise RequestError("statistics are written of the pictures of --data while fid is measured")

    @property
    def is_statistics(self) -> bool:
        """Whether the data are a file of statistics."""
        return self.data is not None and self.data.lower().endswith(".npz")


def measure(
    asked: Measurement,
    pipe: Pipeline | None = None,
    report: Report = lambda what, done, total: None,
    device: torch.device = torch.device("cpu"),
    **options: Any,
) -> dict[str, Any]:
    """Measure what is asked for; `options` go to `Pipeline.generate`. `pipe` may be None where pictures are given.

    Returns {"pictures": ..., metric: values, ...}. Raises darkroom.Error in one sentence.
    """
    with ExitStack() as stack:
        return _Measuring(asked, pipe, report, device, options, stack).all()


class _Measuring:
    """One call of `measure`: what several metrics need is made once."""

    def __init__(
        self,
        asked: Measurement,
        pipe: Pipeline | None,
        report: Report,
        device: torch.device,
        options: dict[str, Any],
        stack: ExitStack,
    ) -> None:
        self.asked, self.pipe, self.report, self.device, self.options = asked, pipe, report, device, options
        self.stack = stack
        self._seen: dict[tuple[str, str], Vectors] = {}

    def all(self) -> dict[str, Any]:
        asked, found = self.asked, dict[str, Any]()
        self.reference = None if asked.is_statistics else self._reference()
        if "reconstruction" in asked.metrics:
            found["reconstruction"] = self._reconstruction()
        if not set(asked.metrics) & set(OF_PICTURES):
            return found
        self.drawn = self._drawn()
        found["pictures"] = len(self.drawn)
        found["compared_with"] = asked.data or "the built-in scenes"
        if "fid" in asked.metrics or "kid" in asked.metrics:
            extractor = InceptionExtractor(asked.features["inception"], self.device, asked.like)
            if "fid" in asked.metrics:
                found["fid"] = self._fid(extractor)
            if "kid" in asked.metrics:
                mean, deviation = kernel_distance(self._see("drawn", extractor), self._see("data", extractor))
                found["kid"] = {"mean": mean, "deviation": deviation}
        if "cmmd" in asked.metrics or "clip" in asked.metrics or self._clip_for_copies:
            clip = ClipExtractor(asked.features["clip"], self.device)
            if "cmmd" in asked.metrics:
                found["cmmd"] = cmmd(self._see("drawn", clip), self._see("data", clip))
            if "clip" in asked.metrics:
                found["clip"] = self._clip(clip)
        if "memorisation" in asked.metrics:
            found["memorisation"] = self._memorisation(clip if self._clip_for_copies else PixelExtractor())
        return found

    @property
    def _clip_for_copies(self) -> bool:
        return "memorisation" in self.asked.metrics and "clip" in self.asked.features

    def _reference(self) -> Pictures | None:
        asked = self.asked
        if self.pipe is None:
            return None if asked.data is None else Pictures.of_data(asked.data)
        dataset = open_dataset(asked.data, self.pipe.size, scenes=asked.count or 1000, seed=SEED)
        return Pictures.of_dataset(dataset)

    def _drawn(self) -> Pictures:
        asked = self.asked
        if asked.pictures is not None:
            return Pictures.of_data(asked.pictures)
        assert self.pipe is not None
        assert self.reference is not None
        captions = self.reference.captions
        prompts = [captions[i % len(captions)] for i in range(asked.count or len(captions))]
        folder = asked.keep or Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        width, height = self.pipe.size

        def report(done: int, step: int, steps: int) -> None:
            self.report("drawing", done * steps + step, len(prompts) * steps)

        return draw(self.pipe, prompts, folder, seed=SEED, report=report, width=width, height=height, **self.options)

    def _see(self, which: str, extractor: FeatureExtractor) -> Vectors:
        """The features of the drawn pictures or of the data."""
        if (which, extractor.key) not in self._seen:
            pictures = self.drawn if which == "drawn" else self.reference
            assert pictures is not None
            what = f"{extractor.key.split()[0]} looks at the {'pictures' if which == 'drawn' else 'data'}"
            self._seen[which, extractor.key] = extract(
                pictures, extractor, self.asked.cache, lambda done, total: self.report(what, done, total)
            )
        return self._seen[which, extractor.key]

    def _fid(self, extractor: InceptionExtractor) -> float:
        asked = self.asked
        if asked.is_statistics:
            assert asked.data is not None
            wanted = Moments.read(asked.data)
        else:
            wanted = Moments.of(self._see("data", extractor))
            if asked.statistics is not None:
                wanted.save(asked.statistics)
        return frechet(Moments.of(self._see("drawn", extractor)), wanted)

    def _clip(self, extractor: ClipExtractor) -> float:
        captions = self.drawn.captions
        if not any(captions):
            raise RequestError("the pictures have no captions, and clip compares pictures with their texts")
        return clip_score(self._see("drawn", extractor), extractor.texts(captions))

    def _memorisation(self, extractor: FeatureExtractor) -> dict[str, Any]:
        assert self.reference is not None
        found = Memorisation.of(self._see("drawn", extractor), self._see("data", extractor))
        if self.asked.sheet is not None:
            write_sheet(found.sheet(self.drawn, self.reference), self.asked.sheet)
        return {"seen_by": extractor.key.split()[0], **found.told(self.drawn, self.reference)}

    def _reconstruction(self) -> dict[str, float]:
        assert self.pipe is not None
        assert self.reference is not None
        reference = self.reference if self.asked.count is None else self.reference.first(self.asked.count)
        lpips = load_lpips(self.asked.features["lpips"], self.device) if "lpips" in self.asked.features else None
        return reconstruction(
            self.pipe.autoencoder,
            (reference.read(i) for i in range(len(reference))),
            lpips,
            report=lambda done: self.report("reconstructing", done, len(reference)),
        )
