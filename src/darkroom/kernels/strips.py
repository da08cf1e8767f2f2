"""Networks of convolutions, strip by strip of whole rows from the top: the very answers, and far less memory.

A convolution looks only at a few rows around each, so it can be handed a picture strip by strip: it keeps the last rows
of each strip, which the next will need, and computes nothing twice. Two layers look at the whole picture: group
normalisation, whose statistics are gathered while the picture before it is written, and attention between all pixels.

So a network becomes a list of `Step`s. Where memory allows, each step's answer is kept, while the strips of the
picture that it is made from are let go: at no time there is much more than the largest picture. Where an answer
can't be kept, it is computed again, strip by strip, from what was kept last, once for each normalisation on the way.
Memory is paid for with time: docs/upscaling.md has the figures.

Shapes: a strip is [1, C, rows, W], its channels last in memory; rows may be none.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .doubling import Doubling, enlarged
from .exact import GroupNorm
from .heap import Bound
from .packed import Hooks, unpadded

MEMORY = 4_000_000_000  # bytes of activations; 4096x4096 is just possible for Stable Diffusion in float32
KEPT, STRIP = 0.6, 1 / 90  # the shares of it for a kept picture, and for one strip of an activation
CACHED = 2**21  # numbers of a strip that a processor still finds in its cache when the next layer reads it
MANY = 2**22  # numbers of an activation from which on strips are no slower on a processor
QUERIES = 2**27  # scores of one piece of attention, where the kernel should write them out
GROWN = 1.4  # times the largest picture that a process may grow before what strips have left is given back
TOGETHER = 8  # rows whose statistics are taken at once

Strips = Iterator[tuple[Tensor, ...]]  # of one picture, or of two of the same size
Shape = tuple[int, int, int]  # channels, height, width


def use_strips(network: nn.Module, x: Tensor, largest: int, fits: bool) -> bool:
    """Whether to compute a network's answer to x in strips.

    Never with gradients, nor for a network that is being written down. Else always where the plain way wouldn't fit
    into memory; and on a CPU where it is no slower, unless somebody has changed what calling its layers does.

    Args:
        largest: numbers of its largest activation for one picture.
        fits: whether the plain way fits.
    """
    tracing = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if torch.is_grad_enabled() or tracing or not len(x):
        return False
    if not fits:
        return True
    if x.device.type != "cpu" or largest < MANY:
        return False
    return not Hooks(network) and all(layer._compiled_call_impl is None for layer in network.modules())


@torch.no_grad()
def run_steps(steps: Sequence[Step], x: Tensor, memory: float = MEMORY) -> Tensor:
    """What a network's steps make of x [1, C, H, W], with activations of about `memory` bytes at most.

    Equal to what its layers would make of it up to the rounding of sums.
    """
    size = x.element_size()
    strip = strip_of(x.device.type, memory, size)
    kept: deque[tuple[Tensor, ...]] = deque([(x,)])
    pending: list[Callable[[Strips], Strips]] = []  # what leads from there to the picture now reached
    shape: Shape = (x.shape[1], x.shape[2], x.shape[3])
    bound = Bound(int(GROWN * min(_largest(steps, shape) * size, memory)))
    norm: Affine | None = None
    for number, step in enumerate(steps):
        after = step.answer(shape)
        rows = max(strip * shape[1] // max(math.prod(shape), math.prod(after) // step.pictures), 1)
        pending.append(partial(step.run, shape=shape, rows=rows, norm=norm))
        following = steps[number + 1] if number + 1 < len(steps) else None
        # An answer is kept if memory allows. Else it is made twice: now for the next norm's statistics alone, and later
        # from what was kept last, on the way to the next answer that is kept.
        keep = step.whole or following is None or math.prod(after) * size <= KEPT * memory
        moments = None if following is None or following.norm is None else Moments(following.norm)
        shape = after
        if keep or moments is not None:
            answer = _handed(kept) if keep else iter(kept)
            for run in pending:
                answer = run(answer)
            if keep:
                kept, pending = deque(), []
            for strips in answer:
                if moments is not None:
                    moments.add(strips[0])
                if keep:
                    kept.append(strips)
                bound.keep()
        norm = None if moments is None else moments.affine()
    return torch.cat([rows for (rows,) in kept], dim=2)


def strip_of(device: str, memory: float, size: int) -> int:
    """Numbers of one strip, of `size` bytes each: a share of the memory, and on a processor what its cache holds."""
    strip = int(STRIP * memory / size)
    return min(strip, CACHED) if device == "cpu" else strip


def _largest(steps: Sequence[Step], shape: Shape) -> int:
    """Numbers of the largest answer on the way from a picture of a shape."""
    largest = 0
    for step in steps:
        shape = step.answer(shape)
        largest = max(largest, math.prod(shape))
    return largest


def _handed(strips: deque[tuple[Tensor, ...]]) -> Strips:
    """Strips that nobody else will ask for."""
    while strips:
        yield strips.popleft()


def cut(strips: Strips, rows: int) -> Iterator[Tensor]:
    """Strips of one picture, as strips of about so many rows."""
    held: list[Tensor] = []
    for (x,) in strips:
        held.append(x)
        count = sum(y.shape[2] for y in held)
        if 2 * count >= rows:
            yield from _joined(held).chunk(max(round(count / rows), 1), dim=2)
            held = []
    if held:
        yield _joined(held)


def _joined(strips: list[Tensor]) -> Tensor:
    return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)


class Affine:
    """A group normalisation whose statistics [C] are known."""

    def __init__(self, norm: GroupNorm, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance, self.eps = mean, variance, norm.eps
        self.weight, self.bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)


class Moments:
    """The statistics of a group normalisation (Wu & He 2018, arXiv 1803.08494, eq. 2), gathered strip by strip.

    Sums over one row of pixels at a time, then over rows in float64: the same bits for any number of threads.
    """

    def __init__(self, norm: GroupNorm) -> None:
        self.norm = norm
        self.sums: Tensor | None = None  # [2, C]: of the numbers, and of their squares
        self.pixels = 0

    def add(self, strip: Tensor) -> None:
        wide = torch.float32 if strip.device.type == "mps" else torch.float64
        narrow = torch.promote_types(strip.dtype, torch.float32)
        for rows in strip.split(TOGETHER, dim=2):  # type: ignore[no-untyped-call]
            # A row of pixels at a time: torch splits longer sums by threads, and other splits have other rounding.
            x = rows.permute(0, 2, 3, 1).to(narrow)  # [1, rows, W, C]
            sums = torch.stack([x.sum(2), (x * x).sum(2)]).to(wide).sum((1, 2))
            self.sums = sums if self.sums is None else self.sums + sums
        self.pixels += strip.shape[2] * strip.shape[3]

    def affine(self) -> Affine:
        assert self.sums is not None
        groups, channels = self.norm.num_groups, self.norm.num_channels
        mean, squares = self.sums.view(2, groups, -1).sum(2) / (self.pixels * channels // groups)  # [groups]
        variance = (squares - mean * mean).clamp_min(0)
        dtype = torch.promote_types(self.norm.weight.dtype, torch.float32)
        mean, variance = (y.to(dtype).repeat_interleave(channels // groups) for y in (mean, variance))
        return Affine(self.norm, mean, variance)


class Convolution:
    """A convolution that is handed its picture strip by strip, with zeros around it.

    It is normalised and goes through SiLU first, if `norm` is given.

    Args:
        height: of the whole picture.
        pad: rows and columns of zeros before and behind the picture (default: the module's own).
        double: the picture is enlarged by two before.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        height: int,
        norm: Affine | None = None,
        pad: tuple[int, int] | None = None,
        double: bool = False,
    ) -> None:
        self.conv, self.norm, self.double, self.missing = conv, norm, double, height
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.pad = (int(conv.padding[0]), int(conv.padding[0])) if pad is None else pad
        self.space: Tensor | None = None  # strip after strip with its zeros, so that memory stays whole
        self.held: Tensor | None = None  # the rows that the next strip's answer needs as well

    def add(self, x: Tensor) -> Tensor:
        """The next strip; the rows of the answer that can be had by now."""
        (before, behind), (_, channels, count, width) = self.pad, x.shape
        self.missing -= count
        first = before if self.held is None else self.held.shape[2]
        rows, columns = first + count + (0 if self.missing else behind), before + width + behind
        if self.space is None or self.space.shape[2] < rows:
            space = x.new_zeros(1, rows + self.kernel, columns, channels)
            self.space = space.permute(0, 3, 1, 2)
        y = self.space[:, :, :rows]
        # Zeros above the picture, or the rows that the last strip left; zeros below once the picture is whole.
        y[:, :, :first] = 0 if self.held is None else self.held
        y[:, :, first + count :] = 0
        inside = y[:, :, first : first + count, before : before + width]
        if self.norm is None or not count:
            inside.copy_(x)
        else:
            torch.ops.aten.silu.out(self.norm(x), out=inside)
        # Rows of the answer that all of its input is there for; what the next ones need is held back.
        done = max((rows - self.kernel) // self.stride + 1, 0)
        self.held = y[:, :, done * self.stride :].clone()
        if done:
            return self._enlarged(y) if self.double else unpadded(self.conv, y)
        columns = (columns - self.kernel) // self.stride + 1
        return x.new_empty(1, self.conv.out_channels, 0, 2 * columns if self.double else columns)

    def _enlarged(self, y: Tensor) -> Tensor:
        assert isinstance(self.conv, Doubling)
        doubled = self.conv.doubled(y, padded=True)
        return unpadded(self.conv, enlarged(y)[:, :, 1:-1, 1:-1]) if doubled is None else doubled


class Residual(Protocol):
    """A residual block that takes no time: norm1, SiLU, conv1, norm2, SiLU, conv2, added to its (projected) input."""

    norm1: GroupNorm
    conv1: nn.Conv2d
    norm2: GroupNorm
    conv2: nn.Conv2d
    shortcut: nn.Conv2d | None


class SelfAttention(Protocol):
    """Self-attention between all pixels, of the normalised picture."""

    norm: GroupNorm
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear


class Step:
    """A part of a network that makes strips of strips; what looks at the whole picture is known before."""

    norm: GroupNorm | None = None  # of what it is given
    pictures = 1  # that its answer is
    whole = False  # whether it has to see its whole picture at once, so that its answer had better be kept

    def answer(self, shape: Shape) -> Shape:
        """The shape of its answer to a picture; the channels of two pictures count together."""
        raise NotImplementedError

    def run(self, strips: Strips, shape: Shape, rows: int, norm: Affine | None) -> Strips:
        """The strips of its answer to strips of a picture of `shape`, some `rows` at a time."""
        raise NotImplementedError


class Convolve(Step):
    """A convolution; with a `norm`, of the normalised picture's SiLU. The arguments are `Convolution`'s."""

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: GroupNorm | None = None,
        pad: tuple[int, int] | None = None,
        double: bool = False,
    ) -> None:
        self.conv, self.norm, self.pad, self.double = conv, norm, pad, double

    def answer(self, shape: Shape) -> Shape:
        pad = sum(self.pad or 2 * (int(self.conv.padding[0]),))
        size = (side * (2 if self.double else 1) + pad - self.conv.kernel_size[0] for side in shape[1:])
        height, width = (side // self.conv.stride[0] + 1 for side in size)
        return self.conv.out_channels, height, width

    def run(self, strips: Strips, shape: Shape, rows: int, norm: Affine | None) -> Strips:
        convolution = Convolution(self.conv, shape[1], norm, self.pad, self.double)
        for x in cut(strips, rows):
            yield (convolution.add(x),)


class _First(Step):
    """A resnet block's first convolution; beside it, what its second one's answer is added to."""

    pictures = 2

    def __init__(self, block: Residual) -> None:
        self.block, self.norm = block, block.norm1

    def answer(self, shape: Shape) -> Shape:
        return 2 * self.block.conv1.out_channels, *shape[1:]

    def run(self, strips: Strips, shape: Shape, rows: int, norm: Affine | None) -> Strips:
        convolution = Convolution(self.block.conv1, shape[1], norm)
        shortcut = self.block.shortcut
        for x in cut(strips, rows):
            yield convolution.add(x), x if shortcut is None else unpadded(shortcut, x)


class _Second(Step):
    """A resnet block's second convolution, of what `_First` made."""

    def __init__(self, block: Residual) -> None:
        self.block, self.norm = block, block.norm2

    def answer(self, shape: Shape) -> Shape:
        return self.block.conv2.out_channels, *shape[1:]

    def run(self, strips: Strips, shape: Shape, rows: int, norm: Affine | None) -> Strips:
        convolution = Convolution(self.block.conv2, shape[1], norm)
        waiting: deque[Tensor] = deque()  # the convolution's answer comes a row later
        for h, x in strips:
            waiting.append(x)
            y = convolution.add(h)
            row = 0
            while row < y.shape[2]:
                x = waiting.popleft()
                count = min(x.shape[2], y.shape[2] - row)
                y[:, :, row : row + count].add_(x[:, :, :count])
                row += count
                if count < x.shape[2]:
                    waiting.appendleft(x[:, :, count:])
            yield (y,)


class Attend(Step):
    """Attention between all pixels: keys and values of the whole picture, queries a piece at a time."""

    whole = True

    def __init__(self, attention: SelfAttention) -> None:
        self.attention, self.norm = attention, attention.norm

    def answer(self, shape: Shape) -> Shape:
        return shape

    def run(self, strips: Strips, shape: Shape, rows: int, norm: Affine | None) -> Strips:
        assert norm is not None
        attention, (channels, height, width) = self.attention, shape

        def tokens(x: Tensor) -> Tensor:
            return norm(x).flatten(2).transpose(1, 2)  # [1, rows W, C]

        pieces = deque(cut(strips, rows))
        k, v = (pieces[0].new_empty(1, height * width, channels) for _ in range(2))
        start = 0
        for x in pieces:
            y = tokens(x)
            here = slice(start, start + y.shape[1])
            k[:, here], v[:, here] = attention.k(y), attention.v(y)
            start = here.stop
        # Every query needs all keys, no other query: a piece of them is answered alone.
        together = max(QUERIES // (height * width * width), 1)
        while pieces:
            for x in pieces.popleft().split(together, dim=2):  # type: ignore[no-untyped-call]
                y = attention.out(attend(attention.q(tokens(x)), k, v, heads=1))
                yield (x + y.transpose(1, 2).view_as(x),)


def resnet(block: Residual) -> list[Step]:
    """The steps of a resnet block that takes no time."""
    return [_First(block), _Second(block)]


def resnets(blocks: Iterable[Any]) -> list[Step]:
    """The steps of one resnet block after another."""
    return [step for block in blocks for step in resnet(block)]
