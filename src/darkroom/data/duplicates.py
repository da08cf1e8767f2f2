"""Pictures that are nearly the same: what a network sees twice, it learns twice as much.

Two pictures are near duplicates where their difference hashes (dHash: is a pixel of a 9 x 8 gray miniature brighter
than its left neighbour?) differ in few of 64 bits, and their 8 x 8 colour miniatures in little: the hash alone takes
pictures of one shape in different colours for the same, and all plain grounds. Scaling, recompressing and slight
changes of brightness leave both as they are; cuts and mirroring don't.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..images import FORMATS, open_picture
from .examples import Example, in_threads

BITS = 6  # of 64: so many may differ
COLOUR = 6.0  # of 255: so much may miniatures differ, on average
MOST = 20_000  # pictures that are compared: their number squared is looked at
_ROWS = 1024  # compared with all others at once


@dataclass(frozen=True, slots=True)
class Miniature:
    """What is compared of a picture: 64 bits, and [8, 8, 3] colours."""

    bits: int
    colours: NDArray[np.uint8]

    @classmethod
    def of(cls, picture: Image.Image) -> Miniature:
        """Of a picture in RGB."""
        gray = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
        brighter = (gray[:, 1:] > gray[:, :-1]).ravel()
        colours = np.asarray(picture.resize((8, 8), Image.Resampling.BOX))
        return cls(int.from_bytes(np.packbits(brighter).tobytes(), "big"), colours)


def miniatures(examples: Iterable[Example]) -> list[Miniature | None]:
    """Of each training picture, upright; None where it can't be decoded any more."""
    return list(in_threads(_miniature, examples))


def _miniature(example: Example) -> Miniature | None:
    try:
        with Image.open(io.BytesIO(example.read()), formats=FORMATS) as file:
            file.draft("RGB", (64, 64))  # a JPEG is decoded at an eighth of its size
            return Miniature.of(open_picture(file, "it"))
    except (ImageError, OSError, ValueError, SyntaxError):
        return None


def groups(found: Sequence[Miniature | None]) -> list[list[int]]:
    """The numbers of pictures that are nearly the same as another one, those of one kind together, in their order.

    Of more than `MOST` the first are compared.
    """
    known = [(i, one) for i, one in enumerate(found[:MOST]) if one is not None]
    hashes = np.array([one.bits for _, one in known], np.uint64)
    first = list(range(len(known)))  # of each the first that it is like

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for start in range(0, len(known), _ROWS):
        block = hashes[start : start + _ROWS, None]
        rows, columns = np.nonzero(np.bitwise_count(block ^ hashes[None, start:]) <= BITS)
        for a, b in zip((rows + start).tolist(), (columns + start).tolist(), strict=True):
            if a < b and root(a) != root(b) and _alike(known[a][1], known[b][1]):
                low, high = sorted((root(a), root(b)))
                first[high] = low
    together: dict[int, list[int]] = {}
    for i, (number, _) in enumerate(known):
        together.setdefault(root(i), []).append(number)
    return [numbers for numbers in together.values() if len(numbers) > 1]


def _alike(a: Miniature, b: Miniature) -> bool:
    return float(np.abs(a.colours.astype(np.int16) - b.colours.astype(np.int16)).mean()) <= COLOUR
