"""How pictures of any shape are brought to few sizes: buckets of near-equal area, and what is cut out of a picture.

Shapes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import TrainingError

Size = tuple[int, int]
LIVE = 0  # of `Cut.variants`
_ENDLESS = 2**31


@dataclass(frozen=True, slots=True)
class Crop:
    """What of a picture is shown: all that SDXL's U-Net is told (Podell et al. 2023, arXiv 2307.01952, sec. 2.2).

    The picture is scaled to `scaled`, mirrored if `flipped`, and cut to its bucket's size from `corner` on.
    """

    original: Size  # of the file, upright
    scaled: Size
    corner: Size  # (left, top) in the scaled (and mirrored) picture
    flipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How pictures are brought to their size."""

    buckets: bool = False  # several sizes, by a picture's shape; else every picture is cut to one
    grid: int = 64  # sides are multiples of it
    aspect: float = 2.0  # the longest side a bucket may have, in its shortest
    enlarge: bool = True  # without: a picture smaller than its bucket gets a smaller bucket instead
    crop: str = "centre"  # or "random"
    flip: bool = False  # mirror half of the pictures' appearances
    variants: int = 4  # where crops are random or pictures mirrored: how many versions of each there are; 0: no end
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop not in ("centre", "random"):
            raise TrainingError(f"crop is {self.crop[:60]!r}; it must be 'centre' or 'random'")
        if not (self.grid >= 1 and 1 <= self.aspect <= 16 and 0 <= self.variants <= 1024):
            raise TrainingError(
                f"grid={self.grid}, aspect={self.aspect:g}, variants={self.variants}: grid must be 1 or more, aspect "
                "between 1 and 16, variants between 0 and 1024"
            )

    @property
    def versions(self) -> int:
        """How many versions of a picture there are; LIVE (0) for no end of them."""
        return self.variants if self.crop == "random" or self.flip else 1

    def bucket(self, picture: Size, size: Size) -> Size:
        """The size that a picture is cut to, where `size` says the area. Raises TrainingError on a size that can't be.

        Of the buckets (`sizes`) it is the one whose shape is nearest by the logarithm of width / height.
        """
        if not self.buckets:
            return size
        if not self.enlarge and (small := self._small(picture, size)) is not None:
            return small
        return nearest(picture, sizes(size, self.grid, self.aspect))

    def _small(self, picture: Size, size: Size) -> Size | None:
        """The bucket of a picture that is smaller than the one of its shape; None where it is not."""
        full = nearest(picture, sizes(size, self.grid, self.aspect))
        if picture[0] >= full[0] and picture[1] >= full[1]:
            return None
        width, height = (max(min(p, n) // self.grid, 1) * self.grid for p, n in zip(picture, full, strict=True))
        longest = int(self.aspect * min(width, height)) // self.grid * self.grid
        return min(width, longest), min(height, longest)

    def of(self, picture: Size, bucket: Size, name: str, version: int) -> Crop:
        """Version number `version` of a picture called `name` (its digest): a pure function of all arguments."""
        ratio = max(bucket[0] / picture[0], bucket[1] / picture[1])
        scaled = (max(bucket[0], round(picture[0] * ratio)), max(bucket[1], round(picture[1] * ratio)))
        room = scaled[0] - bucket[0], scaled[1] - bucket[1]
        left, top = room[0] // 2, room[1] // 2
        if self.crop == "random":
            drawn = hashlib.sha256(f"{self.seed} {name} {version}".encode()).digest()
            left, top = (int.from_bytes(drawn[4 * k : 4 * k + 4]) * (room[k] + 1) >> 32 for k in (0, 1))
        return Crop(picture, scaled, (left, top), self.flip and version % 2 == 1)

    def version(self, row: int, step: int, seed: int) -> int:
        """Which version of picture `row` a step shows."""
        if self.versions == 1:
            return 0
        drawn = hashlib.sha256(f"{seed} {step} {row} version".encode()).digest()
        return int.from_bytes(drawn[:8]) % (self.versions or _ENDLESS)


def nearest(picture: Size, among: Sequence[Size]) -> Size:
    """Of some sizes the one whose shape, by the logarithm of width / height, is nearest to a picture's."""
    shape = math.log(picture[0] / picture[1])
    return min(among, key=lambda s: (abs(math.log(s[0] / s[1]) - shape), s))


PLAIN = Cut()  # every picture cut to one size around its middle


@lru_cache(maxsize=64)
def sizes(size: Size, grid: int, aspect: float) -> tuple[Size, ...]:
    """The buckets: for every multiple of the grid the longest other side with which the area is at most that of `size`.

    In the manner of NovelAI's and kohya's buckets. Raises TrainingError where there is none.
    """
    area = size[0] * size[1]
    found = set()
    for short in range(grid, math.isqrt(area) + 1, grid):
        long = area // short // grid * grid
        if long <= aspect * short:
            found |= {(short, long), (long, short)}
    if not found:
        raise TrainingError(
            f"no bucket of sides in steps of {grid} fits {size[0]}x{size[1]} pixels; choose a smaller grid, or a size "
            f"of at least {grid}x{grid}"
        )
    return tuple(sorted(found))
