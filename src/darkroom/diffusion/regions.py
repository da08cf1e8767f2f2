"""Parts of a picture in progress: a known part that is kept (inpainting with an ordinary model), and windows.

Windows draw a picture larger than the network likes (Bar-Tal et al. 2023, MultiDiffusion, arXiv 2302.08113, eq. 5): the
network answers for each window, and where windows overlap their denoised answers are averaged, at every step. Sampler,
noise and guidance see one whole picture, so no window ever ends up with a picture of its own, and there is nothing to
stitch afterwards.

C H W: a latent's channels, height and width; h w a window's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .condition import Condition

Place = tuple[int, int, int, int]  # top, bottom, left, right in latent pixels


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of a picture's latent, and where.

    The known part is put back into the *denoised* answer, so that x = latent + sigma * noise stays true there at every
    noise level without new noise (with noise added anew, each step would forget what the last one had agreed on).
    """

    latent: Tensor  # [C, H, W] float32, scaled as the U-Net sees it
    mask: Tensor  # [1, H, W] float32 in 0..1: 1 is drawn anew, 0 is known

    def restore(self, denoised: Tensor) -> Tensor:
        """The denoised answer [C, H, W] with the known part put back."""
        mask = self.mask.to(denoised.device)
        return self.latent.to(denoised.device).lerp(denoised, mask)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one size that cover a latent. Picklable.

    Args:
        height, width: the latent's.
        side: a window's; a latent that is shorter than it has windows of its own height or width.
        overlap: what neighbours share at least, below `side`.
    """

    height: int
    width: int
    side: int
    overlap: int

    @property
    def places(self) -> tuple[Place, ...]:
        """The windows, row by row."""
        columns = _spans(self.width, self.side, self.overlap)
        return tuple((*rows, *span) for rows in _spans(self.height, self.side, self.overlap) for span in columns)

    @property
    def count(self) -> int:
        return math.prod(len(_spans(n, self.side, self.overlap)) for n in (self.height, self.width))

    def cut(self, values: Tensor, place: Place) -> Tensor:
        """A window of [C, s H, s W], which may be finer than the latent by a whole number s."""
        s = values.shape[-1] // self.width
        top, bottom, left, right = place
        return values[:, s * top : s * bottom, s * left : s * right]

    def narrow(self, condition: Condition, place: Place) -> Condition:
        """What a condition says of a window: all that it says of the picture, and the window of what it shows."""
        channels = condition.channels
        return replace(
            condition,
            channels=None if channels is None else self.cut(channels, place),
            controls=tuple(replace(control, hint=self.cut(control.hint, place)) for control in condition.controls),
        )

    def join(self, answers: Sequence[Tensor]) -> Tensor:
        """The windows' answers [C, h, w], in the order of `places`, as one [C, H, W].

        The weight of a window falls to nothing towards its edges inside of the picture, so that the average changes
        smoothly from one window's answer to the next one's.
        """
        first = answers[0]
        total = first.new_zeros(first.shape[0], self.height, self.width)
        weights = first.new_zeros(self.height, self.width)
        for (top, bottom, left, right), answer in zip(self.places, answers, strict=True):
            rows = self._profile(top, bottom, self.height)
            weight = torch.outer(rows, self._profile(left, right, self.width)).to(first)
            total[:, top:bottom, left:right] += weight * answer
            weights[top:bottom, left:right] += weight
        return total / weights

    def _profile(self, start: int, stop: int, size: int) -> Tensor:
        """The weights along one side: a sine squared over the overlap at an edge that is not the picture's."""
        weight = torch.ones(stop - start)
        if self.overlap:
            # sin^2 of one window and cos^2 of its neighbour add up to 1 over the overlap.
            rise = torch.sin((torch.arange(self.overlap) + 0.5) / self.overlap * (math.pi / 2)) ** 2
            if start > 0:
                weight[: self.overlap] *= rise
            if stop < size:
                weight[-self.overlap :] *= rise.flip(0)
        return weight


def _spans(size: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Spans of `side` that cover 0..size, evenly apart."""
    if size <= side:
        return [(0, size)]
    # The fewest windows with at least this overlap; they are then spread evenly, so that they overlap more.
    count = math.ceil((size - overlap) / (side - overlap))
    starts = [round(i * (size - side) / (count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]
