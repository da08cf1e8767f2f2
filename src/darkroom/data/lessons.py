"""What a finished model is tuned on: pictures of one size with their captions.

Shapes: P pictures, H W their height and width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from darkroom.images import open_picture

from .folders import Example, scan
from .scenes import draw_scene, render_scene


@dataclass(frozen=True)
class Lessons(ABC):
    """Pictures, read when they are asked for, and their captions.

    Attributes:
        captions: one a picture.
        repeats: how often each comes in one round.
        size: (width, height) of every picture.
        key: a hash of all of it; what is computed from the pictures is kept under it.
        left_out: what the folder holds that can't be used, and why.
    """

    captions: Sequence[str]
    repeats: Sequence[int]
    size: tuple[int, int]
    key: str
    left_out: Sequence[tuple[Path, str]] = field(default=())

    def __len__(self) -> int:
        return len(self.captions)

    @abstractmethod
    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture i, [H, W, 3]."""

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in order."""
        return (self.picture(i) for i in range(len(self)))


@dataclass(frozen=True)
class FolderLessons(Lessons):
    """The pictures of a folder, each scaled until it covers the size, and cut to it around its middle."""

    examples: Sequence[Example] = ()

    @classmethod
    def of(cls, folder: str | Path, size: tuple[int, int]) -> FolderLessons:
        """Scan a folder. Raises TrainingError."""
        found = scan(folder)
        told = [f"{e.digest} {e.repeats} {e.caption}" for e in found.examples]
        return cls(
            captions=[e.caption for e in found.examples],
            repeats=[e.repeats for e in found.examples],
            size=size,
            key=_key("folder", size, told),
            left_out=found.left_out,
            examples=found.examples,
        )

    def picture(self, i: int) -> NDArray[np.uint8]:
        whole = open_picture(self.examples[i].path, "the training picture")
        return np.asarray(ImageOps.fit(whole, self.size, Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class SceneLessons(Lessons):
    """The first built-in scenes of a seed, at their own size of 128 x 128 pixels."""

    seed: int = 0

    @classmethod
    def of(cls, count: int, seed: int) -> SceneLessons:
        """`count` scenes."""
        captions = [draw_scene(seed, i).caption for i in range(count)]
        return cls(captions, [1] * count, (128, 128), _key("scenes", (128, 128), [f"{seed} {count}"]), seed=seed)

    def picture(self, i: int) -> NDArray[np.uint8]:
        return render_scene(draw_scene(self.seed, i))


def _key(kind: str, size: tuple[int, int], told: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([kind, f"{size[0]}x{size[1]}", *told]).encode()).hexdigest()
