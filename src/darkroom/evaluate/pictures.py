"""Sets of pictures to be compared: a folder's, a data set's as a model learns it, drawn ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.examples import Example
from ..data.lessons import Lessons
from ..data.sources import scan_any
from ..errors import ImageError, TrainingError
from ..images import FORMATS, open_picture

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Pictures, read when they are asked for.

    Attributes:
        names: what to call each.
        captions: of each; may be empty texts.
        keys: a hash of what each shows: features are kept under it.
        read: i -> picture i, [H, W, 3].
    """

    names: Sequence[str]
    captions: Sequence[str]
    keys: Sequence[str]
    read: Callable[[int], Array]

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, count: int) -> Pictures:
        """The first `count` of them."""
        return Pictures(self.names[:count], self.captions[:count], self.keys[:count], self.read)

    @classmethod
    def of_data(cls, data: str) -> Pictures:
        """The pictures of a folder or of shards as they are, each of its own size. Raises TrainingError."""
        examples = scan_any(data).examples
        return cls(
            [e.name for e in examples],
            [e.caption for e in examples],
            [e.digest for e in examples],
            lambda i: _whole(examples[i]),
        )

    @classmethod
    def of_lessons(cls, lessons: Lessons) -> Pictures:
        """Training pictures as a model learns them: scaled and cut."""
        names = [e.name for e in getattr(lessons, "examples", ())] or [f"scene {i}" for i in range(len(lessons))]
        cut = [f"{d} {size} {lessons.cut}" for d, size in zip(lessons.digests, lessons.sizes, strict=True)]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in cut]
        return cls(names, lessons.captions, keys, lessons.picture)

    @classmethod
    def of_arrays(cls, pictures: Sequence[Array], captions: Sequence[str] | None = None) -> Pictures:
        """Pictures in memory."""
        keys = [hashlib.sha256(f"{p.shape}".encode() + np.ascontiguousarray(p).tobytes()).hexdigest() for p in pictures]
        names = [f"picture {i}" for i in range(len(pictures))]
        return cls(names, captions or [""] * len(pictures), keys, lambda i: pictures[i])


def _whole(example: Example) -> Array:
    try:
        with Image.open(io.BytesIO(example.read()), formats=FORMATS) as file:
            return np.asarray(open_picture(file, f"the picture {example.name[:200]!r}"))
    except (ImageError, OSError) as error:
        raise TrainingError(f"{example.name[:200]!r} can't be decoded any more ({error}); replace it") from None
