"""What an autoencoder learns from: crops, and whole pictures at the end, of the built-in scenes or of one's own.

Shapes: N pictures, H W the height and width of a crop.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.buckets import Cut, sizes
from ..data.dataset import FileLessons, Lessons, open_lessons
from ..data.order import Order
from ..errors import TrainingError
from ..toy.glyphs import Glyph
from ..toy.objects import CANVAS, GRID
from ..toy.scenes import draw_collage, draw_scene, render_scene
from .latents import stacked
from .parallel import Share
from .stage import parted

if TYPE_CHECKING:
    from .autoencoder import AutoencoderRecipe

Pixels = NDArray[np.uint8]
WIDEST = 2.0  # the longest side of a picture's bucket, in its shortest
SHOWN = 8  # pictures that are looked at on the way, where none are held out
MEASURED = 10_000_000  # the scene from which those are counted that nothing learns from


class Crops(ABC):
    """Pictures for every step: a pure function of the recipe and the step."""

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe

    def batch(self, step: int, share: Share) -> Tensor:
        """This process's part of a step's pictures: [N, 3, H, W] in -1..1, of one size.

        Until `whole_from` they are crops; then whole pictures, of which there are fewer: as many pixels as before.
        """
        c = self.recipe
        whole = step >= c.whole_from * c.steps
        return stacked(self.pictures(step, share.of(range(whole_rows(c) if whole else c.batch_size)), whole))

    @abstractmethod
    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        """Some rows of a step's batch, each [H, W, 3]."""

    @abstractmethod
    def some(self, count: int) -> Iterator[Pixels]:
        """At most so many whole pictures [H, W, 3], always the same ones, to measure latents over."""

    @abstractmethod
    def held_out(self) -> Iterator[Pixels]:
        """Whole pictures [H, W, 3] that no step shows, always the same; where none are held out, some others."""


def whole_rows(recipe: AutoencoderRecipe) -> int:
    """Whole pictures a step."""
    return recipe.batch_size * recipe.crop**2 // recipe.size**2


class SceneCrops(Crops):
    """Built-in scenes, and collages of emoji off the grid, with `others` besides our objects.

    Raises TrainingError on a recipe that the scenes are too small for.
    """

    def __init__(self, recipe: AutoencoderRecipe, others: Sequence[Glyph] = ()) -> None:
        super().__init__(recipe)
        self.others = others
        if recipe.size != CANVAS:
            raise TrainingError(f"size is {recipe.size}; the built-in scenes have {CANVAS} pixels: name a folder")
        if recipe.crop % GRID:
            raise TrainingError(f"crop is {recipe.crop}; of the built-in scenes it must be a multiple of {GRID}")

    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        c = self.recipe
        found = []
        for i in rows:
            # Indices never depend on the size of an earlier batch, so that any step can be made on its own.
            index = step * c.batch_size + i
            rng = np.random.default_rng((c.seed, index, 2))
            if rng.random() < c.collages:
                picture = draw_collage(c.seed, index, self.others)
                x, y = (int(v) for v in rng.integers(CANVAS - c.crop + 1, size=2))
            else:
                scene = draw_scene(c.seed, index)
                picture = render_scene(scene)
                o = scene.objects[int(rng.integers(len(scene.objects)))]
                x, y = (_around(rng, at, o.side, c.crop) for at in (o.x, o.y))
            found.append(picture if whole else picture[y : y + c.crop, x : x + c.crop])
        return found

    def some(self, count: int) -> Iterator[Pixels]:
        return (render_scene(draw_scene(self.recipe.seed, MEASURED + i)) for i in range(count))

    def held_out(self) -> Iterator[Pixels]:
        return self.some(self.recipe.held_out or SHOWN)


class LessonCrops(Crops):
    """Pictures of one's own, each scaled to about `size` x `size` pixels in its own shape, and crops of them."""

    def __init__(self, recipe: AutoencoderRecipe, lessons: Lessons) -> None:
        super().__init__(recipe)
        self.lessons = lessons
        self.away, self.learned = parted(lessons, recipe.held_out, recipe.seed)
        sizes, repeats = [lessons.sizes[i] for i in self.learned], [lessons.repeats[i] for i in self.learned]
        self.order = Order(sizes, repeats, recipe.batch_size, recipe.seed)

    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        c = self.recipe
        chosen = self.order.rows(step)
        found = []
        for row in rows:
            i = self.learned[int(chosen[row])]
            picture = self.lessons.picture(i, self.lessons.version(i, step, c.seed))
            if not whole:
                rng = np.random.default_rng((c.seed, step, row, 2))
                y, x = (int(rng.integers(side - c.crop + 1)) for side in picture.shape[:2])
                picture = picture[y : y + c.crop, x : x + c.crop]
            found.append(picture)
        return found

    def some(self, count: int) -> Iterator[Pixels]:
        every = max(len(self.learned) // count, 1)
        return (self.lessons.picture(i) for i in self.learned[::every][:count])

    def held_out(self) -> Iterator[Pixels]:
        return (self.lessons.picture(i) for i in self.away or self.learned[:SHOWN])


def open_crops(recipe: AutoencoderRecipe, data: str) -> LessonCrops:
    """Pictures of a folder or of shards, for an autoencoder.

    Each is scaled down to a size of about `size` x `size` pixels, in its own shape as far as a crop fits into it.
    Pictures are never enlarged: those smaller than a crop are left out. Raises TrainingError where none is left.
    """
    grid = 2 ** (len(recipe.widths) - 1)
    fitting = [s for s in sizes((recipe.size, recipe.size), grid, WIDEST) if min(s) >= recipe.crop]
    aspect = max(max(s) / min(s) for s in fitting) + 1e-6
    cut = Cut(
        buckets=True, grid=grid, aspect=aspect, enlarge=False, crop="random", flip=recipe.flip, variants=0,
        seed=recipe.seed,
    )  # fmt: skip
    lessons = open_lessons(data, (recipe.size, recipe.size), cut)
    assert isinstance(lessons, FileLessons)
    return LessonCrops(recipe, _large_enough(lessons, recipe.crop))


def _large_enough(lessons: FileLessons, crop: int) -> FileLessons:
    """The lessons of at least a crop's size."""
    good = [i for i, size in enumerate(lessons.sizes) if min(size) >= crop]
    if len(good) == len(lessons):
        return lessons
    small = [e for e, size in zip(lessons.examples, lessons.sizes, strict=True) if min(size) < crop]
    if not good:
        e = small[0]
        raise TrainingError(
            f"no picture holds a crop of {crop} pixels; {e.name[-100:]!r} has {e.width}x{e.height}: set crop, or take "
            "larger pictures"
        )
    told = [(e.path, f"{e.width}x{e.height} pixels hold no crop of {crop}") for e in small]
    chosen: dict[str, Any] = {
        name: [getattr(lessons, name)[i] for i in good]
        for name in ("captions", "repeats", "sizes", "digests", "prior", "examples")
    }
    return dataclasses.replace(lessons, **chosen, left_out=[*lessons.left_out, *told])


def _around(rng: np.random.Generator, at: int, side: int, crop: int) -> int:
    """A crop's corner on the grid so that the crop meets the object at `at`."""
    low, high = max(0, at - crop // 2), min(CANVAS - crop, at + side - crop // 2)
    return (
        int(rng.integers(low // GRID, high // GRID + 1)) * GRID
        if high > low
        else min(low, CANVAS - crop) // GRID * GRID
    )
