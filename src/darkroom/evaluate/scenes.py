"""Prompt adherence on the built-in scenes: seen and held-out combinations, beside the ceiling and chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..toy.scenes import KINDS, Scene, draw_scene, render_scene
from .judge import Known, Verdict, judge
from .reconstruction import psnr, reconstruct

if TYPE_CHECKING:
    from ..pipeline import Pipeline

SEED = 1_000_003  # of the evaluation's scenes; no training uses it
Pictures = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Score:
    """Fractions (0..1) of `count` pictures that keep each claim."""

    count: int
    background: float
    objects: float
    layout: float
    right: float

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Score:
        names = ("background", "objects", "layout", "right")
        return cls(len(verdicts), *(sum(getattr(v, n) for v in verdicts) / max(len(verdicts), 1) for n in names))


def scenes_of(kind: str, held_out: bool, count: int) -> list[Scene]:
    """The evaluation's scenes of a kind: always the same ones, never drawn in training."""
    return [draw_scene(SEED + held_out, i, kind, held_out) for i in range(count)]


def score(pictures: Pictures, scenes: Sequence[Scene], known: Known | None = None) -> Score:
    """Judge pictures against the scenes they should show, by the built-in objects or those that are `known`."""
    return Score.of([judge(p, s, known) for p, s in zip(pictures, scenes, strict=True)])


def evaluate(
    pipe: Pipeline, count: int = 100, progress: Callable[[str], None] = lambda _: None, **options: Any
) -> dict[str, Any]:
    """Judge `count` pictures a category: {"autoencoder_psnr": dB, "scores": {kind: {row: Score}}}.

    Rows: "seen" and "held out" (the model's pictures), "renders" and "reconstructions" (the ceiling, on the held-out
    scenes), "chance" (the model's pictures against each other's captions). `options` go to `pipe.generate`.
    """
    table: dict[str, dict[str, Score]] = {}
    truth: list[NDArray[np.uint8]] = []
    through: list[NDArray[np.uint8]] = []
    for kind in KINDS:
        table[kind] = rows = {}
        for held_out in (False, True):
            scenes = scenes_of(kind, held_out, count)
            progress(f"{kind}, {'held out' if held_out else 'seen'}")
            result = pipe.generate([s.caption for s in scenes], seed=SEED, **options)
            pictures = [np.asarray(p) for p in result.images]
            rows["held out" if held_out else "seen"] = score(pictures, scenes)
        rows["chance"] = score(pictures, [*scenes[1:], scenes[0]])
        renders = [render_scene(s) for s in scenes]
        back = reconstruct(pipe.autoencoder, renders)
        rows["renders"], rows["reconstructions"] = score(renders, scenes), score(back, scenes)
        truth += renders
        through += back
    return {"autoencoder_psnr": psnr(truth, through), "scores": table}
