"""Does a picture show what its caption says? A judge for the built-in scenes, without any network, and what it says of
a model: prompt adherence, seen and held-out combinations beside the ceiling and chance; and whether a model has learned
one object more without forgetting any.

The background is the border's median; objects are connected components, each named by the nearest rendered glyph.
How far the judge itself can be trusted is measured on true renders, the ceiling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..toy.glyphs import Glyphs, load_glyphs, new_glyphs
from ..toy.objects import BACKGROUNDS, CANVAS, GRID, SIZES
from ..toy.scenes import KINDS, NOUNS, Placed, Scene, draw_object, draw_scene, holds, render_scene
from .pictures import one_above_another, write_sheet
from .reconstruction import psnr, reconstruct

if TYPE_CHECKING:
    from ..adapters import Lora
    from ..pipeline import Pipeline

INK = 36.0  # distance from the background (of 0..442) from which a pixel belongs to an object
CELL_INK = 0.05  # fraction of such pixels from which a cell of the grid does
SPECK = 3  # components of fewer cells than this are noise
THUMB = 24  # side at which an object is compared with the glyphs
LARGE = (SIZES["small"] + SIZES["large"]) // 2  # pixels from which an object counts as large


@dataclass(frozen=True, slots=True)
class Found:
    """What the judge sees: the background's name, and each object with its bounding box as a `Placed`."""

    background: str
    objects: tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of a caption's claims a picture keeps. `right` is all of them together."""

    background: bool
    objects: bool  # the right nouns, as often as they should be, and nothing else
    layout: bool  # size of a single object; place of a pair

    @property
    def right(self) -> bool:
        return self.background and self.objects and self.layout


@dataclass(frozen=True)
class Known:
    """The objects that a judge can name: G glyphs as premultiplied colours and alphas."""

    nouns: tuple[str, ...]
    colours: Tensor  # [G, 3, THUMB, THUMB]
    alphas: Tensor  # [G, 1, THUMB, THUMB]

    @classmethod
    def of(cls, new: Glyphs | None = None) -> Known:
        """The built-in objects, and those of `new` glyphs."""
        base = _built_in()
        nouns = tuple(dict.fromkeys(noun for noun, _ in new or {}))
        return base if not new else cls((*base.nouns, *nouns), *_templates(new, nouns, base))


def look(picture: NDArray[np.uint8], known: Known | None = None) -> Found:
    """Find what a picture [128, 128, 3] shows, by the built-in objects or those that are `known`."""
    known = known or _built_in()
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3),
                             pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])  # fmt: skip
    ground = np.median(border, axis=0).astype(np.float32)
    colours = np.asarray(list(BACKGROUNDS.values()), np.float32)
    name = list(BACKGROUNDS)[int(np.square(colours - ground).sum(axis=1).argmin())]
    ink = np.sqrt(np.square(pixels - ground).sum(axis=2)) > INK
    cells = ink.reshape(CANVAS // GRID, GRID, CANVAS // GRID, GRID).mean(axis=(1, 3)) > CELL_INK
    objects = []
    for component in components(cells):
        inside = ink & np.kron(component, np.ones((GRID, GRID), bool))
        ys, xs = np.nonzero(inside)
        y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
        part: NDArray[np.float32] = np.where(inside[y0:y1, x0:x1, None], pixels[y0:y1, x0:x1], ground)
        noun = _nearest(part / np.float32(255), ground / np.float32(255), known)
        objects.append(Placed(noun, int(max(y1 - y0, x1 - x0)), int(x0 + x1) // 2, int(y0 + y1) // 2))
    return Found(name, tuple(objects))


def judge(picture: NDArray[np.uint8], scene: Scene, known: Known | None = None) -> Verdict:
    """Compare what a picture shows with the scene it should show."""
    found = look(picture, known)
    nouns_right = sorted(o.noun for o in found.objects) == sorted(o.noun for o in scene.objects)
    layout = nouns_right
    if layout and scene.kind == "single":
        layout = (found.objects[0].side >= LARGE) == (scene.objects[0].side >= LARGE)
    elif layout and scene.relation:
        first, second = sorted(found.objects, key=lambda o: o.noun != scene.objects[0].noun)
        layout = holds(first, scene.relation, second, slack=CANVAS)
    return Verdict(found.background == scene.background, nouns_right, layout)


def components(cells: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The 8-connected components of a mask, largest first, without specks."""
    left = cells.copy()
    found = []
    while left.any():
        part = np.zeros_like(left)
        todo = [tuple(int(v) for v in np.argwhere(left)[0])]
        while todo:
            y, x = todo.pop()
            if 0 <= y < left.shape[0] and 0 <= x < left.shape[1] and left[y, x]:
                left[y, x], part[y, x] = False, True
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if part.sum() >= SPECK:
            found.append(part)
    return sorted(found, key=lambda p: -int(p.sum()))


def _nearest(part: NDArray[np.float32], ground: NDArray[np.float32], known: Known) -> str:
    thumb = _thumb(torch.from_numpy(part).float().permute(2, 0, 1), torch.from_numpy(ground).float())
    expected = known.colours + (1 - known.alphas) * torch.from_numpy(ground).float()[:, None, None]
    return known.nouns[int((expected - thumb).square().mean(dim=(1, 2, 3)).argmin())]


def _thumb(part: Tensor, ground: Tensor) -> Tensor:
    """A crop [C, h, w] centred on a square of `ground`, as [C, THUMB, THUMB]."""
    c, h, w = part.shape
    side = max(h, w)
    square = ground[:, None, None].expand(c, side, side).clone()
    top, left = (side - h) // 2, (side - w) // 2
    square[:, top : top + h, left : left + w] = part
    size = (THUMB, THUMB)
    return F.interpolate(square[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


@functools.cache
def _built_in() -> Known:
    return Known(NOUNS, *_templates(load_glyphs(), NOUNS))


def _templates(glyphs: Glyphs, nouns: tuple[str, ...], base: Known | None = None) -> tuple[Tensor, Tensor]:
    """Premultiplied colours and alphas of the glyphs, after those of `base`."""
    thumbs = []
    for noun in nouns:
        glyph = torch.from_numpy(glyphs[noun, SIZES["large"]]).permute(2, 0, 1)
        rows, columns = ((glyph[3] > 0.1).any(dim=d).nonzero().flatten() for d in (1, 0))
        ink = glyph[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        thumbs.append(_thumb(ink, torch.zeros(4)))
    stacked = torch.stack(thumbs)
    colours, alphas = stacked[:, :3], stacked[:, 3:]
    return (colours, alphas) if base is None else (torch.cat([base.colours, colours]), torch.cat([base.alphas, alphas]))


# --- prompt adherence


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


def score_as_json(score: Score) -> dict[str, float]:
    """A row's fractions, rounded to four places."""
    return {name: round(value, 4) for name, value in asdict(score).items() if name != "count"}


def scores_as_json(table: Mapping[str, Any]) -> dict[str, Any]:
    """`evaluate`'s answer as plain values, fractions rounded to four places."""
    rows = {
        kind: {row: score_as_json(score) for row, score in kinds.items()} for kind, kinds in table["scores"].items()
    }
    counts = [score.count for kinds in table["scores"].values() for score in kinds.values()]
    return {
        "autoencoder_psnr": round(table["autoencoder_psnr"], 2),
        "pictures_a_category": max(counts, default=0),
        "categories": rows,
    }


# --- one object more


SHOWN = 8  # scenes on a sheet
SMALL = 0.7  # the part of a new object's pictures in which it is small


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

    def samples(self, count: int, seed: int = 0) -> list[Scene]:
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
