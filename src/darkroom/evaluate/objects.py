"""Has a model that knows the built-in scenes learned one object more, and has it forgotten any?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..toy.glyphs import Glyphs, new_glyphs
from ..toy.objects import CANVAS, SIZES
from ..toy.scenes import Scene, draw_object, render_scene
from .judge import Known
from .reconstruction import reconstruct
from .scenes import SEED, Score, scenes_of, score
from .shown import one_above_another, write_sheet

if TYPE_CHECKING:
    from ..adapters import Lora
    from ..pipeline import Pipeline

SHOWN = 8  # scenes on a sheet
SMALL = 0.7  # the part of a new object's lessons in which it is small


@dataclass(frozen=True)
class NewObject:
    """An object that a model was taught: its name, what prompts call it, and how it looks."""

    noun: str
    word: str
    glyphs: Glyphs

    @classmethod
    def of(cls, noun: str, word: str | None = None, source: str | Path | None = None) -> NewObject:
        """`source`: an emoji or a picture, see `new_glyphs`. Raises TrainingError."""
        return cls(noun, word or noun, new_glyphs(noun, source))

    def scenes(self, count: int, seed: int = SEED + 2) -> list[Scene]:
        """`count` scenes of the object alone, of both sizes, anywhere, on all backgrounds."""
        return [draw_object(seed, i, self.noun, self.word) for i in range(count)]

    def lessons(self, count: int, seed: int = 0) -> list[Scene]:
        """`count` scenes to learn it from: seven in ten are small, which is harder; each size on all backgrounds."""
        found = self.scenes(max(400, 4 * count), seed)
        small = round(SMALL * count)
        chosen: list[Scene] = []
        for size, wanted in (("small", small), ("large", count - small)):
            sized = sorted((s for s in found if s.objects[0].side == SIZES[size]), key=lambda s: s.background)
            chosen += [sized[i * len(sized) // wanted] for i in range(wanted)]
        return chosen


def evaluate_object(
    pipe: Pipeline,
    new: NewObject,
    count: int = 100,
    *,
    before: Pipeline | None = None,
    loras: Sequence[Lora | str | Path] = (),
    embeddings: Sequence[Any] = (),
    sheet: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> dict[str, Score]:
    """Judge `count` pictures of the new object, and as many of single built-in objects, before and after.

    Args:
        pipe: the model, which `loras` and `embeddings` were trained for; or which was itself trained on.
        before: the model as it was; None: `pipe` without `loras` and `embeddings`.
        sheet: a picture to write: the first eight scenes of the new object as they should be, before and after.
        progress: called with the name of each row before it is drawn.
        options: for `Pipeline.generate`.

    Returns a score for each of "new, before", "new, after", "old, before", "old, after", and for the new object's
    "renders" and "reconstructions": what the judge says of true pictures, and of true ones through the autoencoder.
    """
    known = Known.of(new.glyphs)
    old, scenes = scenes_of("single", False, count), new.scenes(count)
    taught: dict[str, Any] = {"loras": loras, "embeddings": embeddings}
    rows: dict[str, Score] = {}
    renders = [render_scene(s, new.glyphs) for s in scenes]
    shown = {"true": renders}
    for what, wanted in (("new", scenes), ("old", old)):
        for when, model, more in (("before", before or pipe, {}), ("after", pipe, taught)):
            if what == "old" and when == "after" and before is None and not loras:
                rows["old, after"] = rows["old, before"]  # no prompt has the learned word: the same pictures
                continue
            progress(f"{what}, {when}")
            result = model.generate(
                [s.caption for s in wanted], seed=SEED, width=CANVAS, height=CANVAS, **more, **options
            )
            pictures = [np.asarray(p) for p in result.images]
            rows[f"{what}, {when}"] = score(pictures, wanted, known)
            if what == "new":
                shown[when] = pictures
    rows["renders"] = score(renders, scenes, known)
    rows["reconstructions"] = score(reconstruct(pipe.autoencoder, renders), scenes, known)
    if sheet is not None:
        write_sheet(one_above_another(shown, [s.caption for s in scenes[:SHOWN]]), sheet)
    return rows
