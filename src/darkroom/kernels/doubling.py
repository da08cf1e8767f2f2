"""A convolution of a picture that is doubled in size, without doubling it.

Shapes: N pictures, H W height and width, I O inputs and outputs.
"""

from __future__ import annotations

from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import Geometry, blocks_of, convolve, narrow, packable, stamp, unsettled

CORNER: Geometry = ([1, 1], [1, 1], [1, 1], 1)
# Of the two pixels that one becomes, down or across: which of the three weights fall on each of two sources.
HALVES = (((0,), (1, 2)), ((0, 1), (2,)))


class Doubling(nn.Conv2d):
    """A 3x3 convolution, mostly of pictures [N, I, H, W] enlarged to [N, I, 2 H, 2 W] by nearest neighbours.

    Of the nine enlarged pixels that a result looks at, those that came from one pixel hold the same number, so that
    2x2 sums of weights over the small picture give it: 16 products in place of 36 for every four results. The sums are
    taken once; they are a second, larger copy of the weight.
    """

    _sums: tuple[Tensor, ReferenceType[Tensor], tuple[object, ...]] | None = None  # blocks, of which weight, its stamp

    def doubled(self, x: Tensor, padded: bool = False) -> Tensor | None:
        """The answer to x [N, I, H, W] enlarged, [N, O, 2 H, 2 W]; None where that has to be done the ordinary way.

        x that is `padded` has a pixel more on each side, and the answer nothing for them.
        """
        weight = self.weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        if not packable(weight) or narrow(weight) or unsettled(4 * weight.shape[0]) or x.dtype != weight.dtype:
            return None
        sums = self._sums  # once: another thread may find them at the same time
        if sums is None or sums[1]() is not weight or sums[2] != stamp(weight):
            before = stamp(weight)
            sums = self._sums = blocks_of(corners(weight), CORNER), ref(weight), before
        bias = None if self.bias is None else self.bias.repeat(4)
        y = interleaved(convolve(x, sums[0], bias, ([0, 0], *CORNER[1:]) if padded else CORNER))
        # A LoRA's hook belongs to the layer's call, which is not made here.
        for hook in list(self._forward_hooks.values()):  # an adapter's, which adds to what it sees the layer answer
            changed = hook(self, (enlarged(x),), y)
            y = y if changed is None else changed
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_sums"}


def enlarged(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """[N, I, H, W] -> [N, I, 2 H, 2 W], or to a size, by nearest neighbours."""
    return F.interpolate(x, size, None if size else 2.0, "nearest")


@torch.no_grad()
def corners(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] -> [4 O, I, 2, 2]: how each quarter of an enlarged pixel looks at the 2x2 pixels around it."""
    # Summed in float32, rounded once.
    wide = weight.float()
    quarters = []
    for rows in HALVES:
        for columns in HALVES:
            sums = [wide[:, :, list(up)][:, :, :, list(across)].sum((2, 3)) for up in rows for across in columns]
            quarters.append(torch.stack(sums, dim=-1).view(*weight.shape[:2], 2, 2))
    return torch.cat(quarters).to(weight.dtype)


def interleaved(quarters: Tensor) -> Tensor:
    """[N, 4 O, H + 1, W + 1], with quarter (a, b) of pixel (i, j) at (i + a, j + b) -> [N, O, 2 H, 2 W]."""
    n, c, height, width = quarters.shape
    height, width, c = height - 1, width - 1, c // 4
    y = quarters.new_empty(n, 2 * height, 2 * width, c).permute(0, 3, 1, 2)
    for number in range(4):
        a, b = divmod(number, 2)
        y[:, :, a::2, b::2] = quarters[:, number * c : (number + 1) * c, a : a + height, b : b + width]
    return y
