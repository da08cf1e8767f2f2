"""A 3x3 convolution in float32 with 16 products for every 36 (Lavin and Gray 2015, arXiv 1509.09308, F(2x2, 3x3)).

Four neighbouring results look at 4x4 numbers of the picture. With these and the 3x3 weights transformed by fixed
matrices of 0, 1 and 1/2, the 16 products of their elements hold all that the four results need:

    Y = A' [(G g G') * (B' d B)] A        g [3, 3], d [4, 4], Y [2, 2]

Summed over the inputs, each of the 16 is a matrix product. Its sums are shorter than the plain convolution's, so that
the answer is, if anything, nearer to the exact one.

Shapes: N pictures, H W height and width, I O inputs and outputs, R C rows and columns of 2x2 results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TOGETHER = 512  # squares of 2x2 results whose 16 products are done at once: what lies between stays in the cache
WIDE = 256  # inputs and outputs from which on the products saved outweigh the sums added
LARGE = 2**20  # inputs times outputs up to which it is done: the transformed weights take 1.8 times the weights' memory
FEW = 32  # squares of a picture below which it isn't


def is_faster(x: Tensor, outputs: int) -> bool:
    """Whether to convolve x [N, I, H, W] so; measured on AVX-512: 1.4 to 1.9 times as fast.

    Whatever N is: a picture's bits don't depend on how many there are.
    """
    _, inputs, height, width = x.shape
    fits = min(inputs, outputs) >= WIDE and inputs * outputs <= LARGE
    return fits and x.dtype == torch.float32 and (height // 2) * (width // 2) >= FEW


@torch.no_grad()
def transformed(weight: Tensor) -> Tensor:
    """A weight [O, I, 3, 3] as G g G', [4, 4, O, I] (the columns' index first)."""
    # G of the paper. In float64, as these sums are taken once; rounding happens at the end.
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    wide = torch.stack([(weight @ row.to(weight.dtype)).double() for row in g])  # sums along a row of weights
    return torch.einsum("ay,boiy->baoi", g, wide).to(weight.dtype)


def convolve(
    x: Tensor, weights: Sequence[Sequence[Callable[[Tensor], Tensor]]], outputs: int, bias: Tensor | None, padding: int
) -> Tensor:
    """x [N, I, H, W] with its channels last in memory -> [N, O, H', W'], likewise.

    Args:
        weights: the 16 matrices of `transformed`, each as a linear layer, [..., I] -> [..., O].
        outputs: O.
        padding: zeros around the picture, 0 or 1.
    """
    x = x.permute(0, 2, 3, 1)
    n, height, width, _ = x.shape
    high, wide = height + 2 * padding - 2, width + 2 * padding - 2
    rows, columns = -(-high // 2), -(-wide // 2)
    y = x.new_empty(n, 2 * rows, 2 * columns, outputs)
    some = min(max(TOGETHER // columns, 1), rows)
    pictures = max(TOGETHER // (rows * columns), 1)
    # A piece at a time, and a piece is some rows of one picture or several small pictures: what lies between the three
    # steps (transform, 16 products, transform back) is read again while it is in the cache.
    for first in range(0, n, pictures):
        for top in range(0, rows, some):
            bottom = min(top + some, rows)
            seen = _window(x[first : first + pictures], 2 * top - padding, 2 * bottom + 2 - padding, padding, columns)
            squares = _squares(seen)  # [4, 4, N R C, I]
            into = y[first : first + pictures, 2 * top : 2 * bottom]
            products = [[weights[b][a](squares[b, a]) for a in range(4)] for b in range(4)]
            _results(products, bias, into.view(-1, bottom - top, 2, columns, 2, outputs))
    return y[:, :high, :wide].permute(0, 3, 1, 2)


def _window(x: Tensor, top: int, bottom: int, before: int, columns: int) -> Tensor:
    """Rows of x [N, H, W, I] with zeros where they lie outside: [N, bottom - top, 2 C + 2, I]."""
    height, width = x.shape[1:3]
    behind = 2 * columns + 2 - before - width
    return F.pad(x[:, max(top, 0) : bottom], (0, 0, before, behind, max(-top, 0), max(bottom - height, 0)))


def _squares(x: Tensor) -> Tensor:
    """B' d B of every square of x [N, 2 R + 2, 2 C + 2, I]: [4, 4, N R C, I], the columns' index first."""
    n, height, width, inputs = x.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    down = x.new_empty(4, n, rows, width, inputs)
    _differences([x[:, k : k + 2 * rows - 1 : 2] for k in range(4)], down)
    both = x.new_empty(4, 4, n, rows, columns, inputs)
    _differences([down[:, :, :, k : k + 2 * columns - 1 : 2] for k in range(4)], both)
    return both.view(4, 4, -1, inputs)


def _differences(d: list[Tensor], into: Tensor) -> None:
    """B' d along one direction."""
    # B' = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    torch.sub(d[0], d[2], out=into[0])
    torch.add(d[1], d[2], out=into[1])
    torch.sub(d[2], d[1], out=into[2])
    torch.sub(d[1], d[3], out=into[3])


def _results(products: list[list[Tensor]], bias: Tensor | None, into: Tensor) -> None:
    """A' m A of every square, from 4x4 [N R C, O], which are written over, to [N, R, 2, C, 2, O]."""
    n, rows, _, columns, _, outputs = into.shape
    # A' = [[1, 1, 1, 0], [0, 1, -1, -1]], along one direction and then the other; in place: memory is the limit.
    halves = []
    for m in products:
        apart = m[1] - m[2]
        halves.append((m[0].add_(m[1].add_(m[2])), apart.sub_(m[3])))
    for row in range(2):
        z = [half[row].view(n, rows, columns, outputs) for half in halves]
        apart = z[1] - z[2]
        near = z[1].add_(z[2])
        if bias is not None:
            near, apart = near.add_(bias), apart.add_(bias)
        torch.add(z[0], near, out=into[:, :, row, :, 0])
        torch.sub(apart, z[3], out=into[:, :, row, :, 1])
