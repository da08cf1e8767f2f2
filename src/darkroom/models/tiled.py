"""Autoencoding large pictures in bounded memory, with the very answers of the plain autoencoder.

A convolution looks only around a pixel, so any window of its answer can be computed from a slightly larger window of
its input. Two layers look at the whole picture: group normalisation, whose statistics are gathered over all windows
before any window is normalised, and the attention in the middle, which is computed at its full (coarsest) size.

So a network becomes a chain of `Node`s, each a picture that isn't there: `read` computes any window of it from its
source, back to the last `Stored` one. After each block the whole answer is stored if memory allows; where it doesn't,
later windows are computed again from what was stored last, once for each normalisation on the way. Memory is paid
for with time: docs/upscaling.md has the figures.

Shapes: pictures are [1, C, H, W]; a window is (top, bottom, left, right) in a node's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Autoencoder, Decoder, DownLevel, Encoder, Middle, PixelAttention, UpLevel
from .config import AutoencoderConfig, TinyAutoencoderConfig
from .layers import ResnetBlock, attend
from .packed import ready, unpadded

MEMORY = 4_000_000_000  # bytes of activations; 1024x1024 is still plain for Stable Diffusion, 4096x4096 just possible
STORED, TILE = 0.6, 1 / 90  # the shares of it for a stored picture, and for one activation of a window
QUERIES = 2**27  # scores of one piece of attention, where the kernel should write them out

Window = tuple[int, int, int, int]


@torch.no_grad()
def encode(autoencoder: Autoencoder, pictures: Tensor, memory: float = MEMORY) -> Tensor:
    """`autoencoder.encode(pictures)` with activations of about `memory` bytes at most; the plain one where it fits.

    Equal up to the rounding of sums. What lies under a result of latent size (1.6 GB for a 4096x4096 picture) must fit.
    """
    height, width = pictures.shape[-2:]
    if pictures.ndim != 4 or fits(autoencoder.config, width, height, memory, pictures.element_size()):
        return autoencoder.encode(pictures)
    moments = torch.cat([_encode(autoencoder.encoder, picture[None], memory) for picture in pictures])
    return moments if autoencoder.quant is None else autoencoder.quant(moments)


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor, memory: float = MEMORY) -> Tensor:
    """`autoencoder.decode(latents)` with activations of about `memory` bytes at most; the plain one where it fits."""
    f = autoencoder.config.downscale
    height, width = (f * side for side in latents.shape[-2:])
    if latents.ndim != 4 or fits(autoencoder.config, width, height, memory, latents.element_size()):
        return autoencoder.decode(latents)
    if autoencoder.post_quant is not None:
        latents = autoencoder.post_quant(latents)
    return torch.cat([_decode(autoencoder.decoder, latent[None], memory) for latent in latents])


def fits(config: AutoencoderConfig, width: int, height: int, memory: float = MEMORY, size: int = 4) -> bool:
    """Whether the plain autoencoder needs less than `memory` bytes: at its widest it holds three activations at once.

    Args:
        width, height: of the picture.
        size: bytes of a number.
    """
    if isinstance(config, TinyAutoencoderConfig):
        return True  # there are no windows for it: it is plain at any size
    widths = config.block_out_channels
    widest = widths[min(1, len(widths) - 1)]  # the decoder's finest level begins with the width of the one below
    return 3.0 * widest * width * height * size <= memory


def _encode(encoder: Encoder, picture: Tensor, memory: float) -> Tensor:
    chain = _Chain(_Stored.of(ready(encoder, picture)), memory)
    chain.then(_Conv(chain.node, encoder.conv_in))
    for level in encoder.down:
        assert isinstance(level, DownLevel)
        for resnet in level.resnets:
            chain.resnet(resnet)
        if level.downsample is not None:
            chain.then(_Conv(chain.node, level.downsample, pad=(0, 1)))
    chain.middle(encoder.mid)
    return chain.out(encoder.norm_out, encoder.conv_out)


def _decode(decoder: Decoder, latent: Tensor, memory: float) -> Tensor:
    chain = _Chain(_Stored.of(ready(decoder, latent)), memory)
    chain.then(_Conv(chain.node, decoder.conv_in))
    chain.middle(decoder.mid)
    for level in decoder.up:
        assert isinstance(level, UpLevel)
        for resnet in level.resnets:
            chain.resnet(resnet)
        if level.upsample is not None:
            chain.then(_Conv(_Doubled(chain.node), level.upsample.conv))
    return chain.out(decoder.norm_out, decoder.conv_out)


class _Chain:
    """A network under way: the node that its blocks so far have led to."""

    def __init__(self, node: Node, memory: float) -> None:
        self.node = node
        self.memory = memory

    def then(self, node: Node) -> None:
        """Go on with a node, stored if it may be."""
        self.node = node
        if STORED * self.memory >= 4 * node.channels * node.height * node.width:
            self.store()

    def store(self) -> None:
        if not isinstance(self.node, _Stored):
            self.node = _stored(self.node, self.tile)

    @property
    def tile(self) -> float:
        """Numbers of one activation of a window."""
        return TILE * self.memory / 4

    def resnet(self, block: nn.Module) -> None:
        assert isinstance(block, ResnetBlock)
        first = _affine(self.node, block.norm1, self.tile)
        second = _affine(_Conv(_Activated(self.node, first), block.conv1), block.norm2, self.tile)
        self.then(_Residual(self.node, block, first, second))

    def middle(self, mid: Middle) -> None:
        self.resnet(mid.resnet1)
        if mid.attention is not None:
            self.store()
            assert isinstance(self.node, _Stored)
            _attend(self.node, mid.attention, self.tile)
        self.resnet(mid.resnet2)

    def out(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
        """The network's answer, whole."""
        node: Node = _Conv(_Activated(self.node, _affine(self.node, norm, self.tile)), conv)
        side = _side(node, self.tile)
        answer: Tensor | None = None
        for window in _windows(node, side, side):
            piece = node.read(window)
            if answer is None:
                answer = piece.new_empty(1, node.channels, node.height, node.width)
            answer[:, :, window[0] : window[1], window[2] : window[3]] = piece
        assert answer is not None
        return answer


class Node(Protocol):
    """A picture of which any window can be had."""

    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def density(self) -> float:
        """Numbers of the widest activation on the way to a window, for each of the window's pixels."""
        ...

    def read(self, window: Window) -> Tensor: ...


@dataclass
class _Strip:
    top: int
    rows: Tensor  # [1, C, rows, W]


class _Stored:
    """A picture that is there, as strips of whole rows."""

    def __init__(self, strips: list[_Strip], channels: int, height: int, width: int) -> None:
        self.strips = strips
        self.channels, self.height, self.width = channels, height, width
        self.density = float(channels)

    @classmethod
    def of(cls, picture: Tensor) -> _Stored:
        return cls([_Strip(0, picture)], *picture.shape[1:])

    def read(self, window: Window) -> Tensor:
        top, bottom, left, right = window
        pieces = [
            strip.rows[:, :, max(top - strip.top, 0) : bottom - strip.top, left:right]
            for strip in self.strips
            if strip.top < bottom and strip.top + strip.rows.shape[2] > top
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def forget(self, row: int) -> None:
        """Let go of the strips that end above a row."""
        while self.strips and self.strips[0].top + self.strips[0].rows.shape[2] <= row:
            del self.strips[0]


@dataclass
class _Piece:
    """A window of a node, in the hand; it answers for what lies inside."""

    node: Node
    window: Window
    values: Tensor

    def __post_init__(self) -> None:
        self.channels, self.height, self.width = self.node.channels, self.node.height, self.node.width
        self.density = self.node.density

    def read(self, window: Window) -> Tensor:
        top, left = self.window[0], self.window[2]
        return self.values[:, :, window[0] - top : window[1] - top, window[2] - left : window[3] - left]


class _Conv:
    """A convolution of any stride, zeros around the picture: `pad` before and behind (default: the module's own)."""

    def __init__(self, source: Node, conv: nn.Conv2d, pad: tuple[int, int] | None = None) -> None:
        self.source, self.conv = source, conv
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.pad = (int(conv.padding[0]), int(conv.padding[0])) if pad is None else pad
        self.channels = conv.out_channels
        self.height, self.width = (
            (side + sum(self.pad) - self.kernel) // self.stride + 1 for side in (source.height, source.width)
        )
        self.density = max(self.stride**2 * source.density, float(conv.out_channels))

    def read(self, window: Window) -> Tensor:
        top, bottom, above, below = self._span(*window[:2], self.source.height)
        left, right, before, behind = self._span(*window[2:], self.source.width)
        x = self.source.read((top, bottom, left, right))
        if above or below or before or behind:
            x = F.pad(x, (before, behind, above, below))
        return unpadded(self.conv, x)

    def _span(self, start: int, stop: int, size: int) -> tuple[int, int, int, int]:
        """The source's span under a span of the answer, and the zeros before and behind it."""
        first = start * self.stride - self.pad[0]
        last = (stop - 1) * self.stride - self.pad[0] + self.kernel
        return max(first, 0), min(last, size), max(-first, 0), max(last - size, 0)


class _Doubled:
    """Every pixel four times."""

    def __init__(self, source: Node) -> None:
        self.source = source
        self.channels, self.height, self.width = source.channels, 2 * source.height, 2 * source.width
        self.density = max(source.density / 4, float(source.channels))

    def read(self, window: Window) -> Tensor:
        top, bottom, left, right = window
        x = self.source.read((top // 2, -(-bottom // 2), left // 2, -(-right // 2)))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x[:, :, top % 2 : top % 2 + bottom - top, left % 2 : left % 2 + right - left]


@dataclass(frozen=True)
class _Affine:
    """A normalisation whose statistics are known: x * scale + shift, [1, C, 1, 1] each."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale).to(x.dtype)


class _Activated:
    """SiLU of the normalised source."""

    def __init__(self, source: Node, affine: _Affine) -> None:
        self.source, self.affine = source, affine
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.density = source.density

    def read(self, window: Window) -> Tensor:
        return F.silu(self.affine(self.source.read(window)), inplace=True)


class _Residual:
    """A resnet block; its two convolutions and its shortcut start from one reading of the source."""

    def __init__(self, source: Node, block: ResnetBlock, first: _Affine, second: _Affine) -> None:
        self.source, self.block = source, block
        self.first, self.second = first, second
        self.channels, self.height, self.width = block.conv2.out_channels, source.height, source.width
        self.density = max(source.density, float(self.channels))

    def read(self, window: Window) -> Tensor:
        top, bottom, left, right = window
        around = (max(top - 2, 0), min(bottom + 2, self.height), max(left - 2, 0), min(right + 2, self.width))
        x = _Piece(self.source, around, self.source.read(around))
        middle = _Conv(_Activated(x, self.first), self.block.conv1)
        h = _Conv(_Activated(middle, self.second), self.block.conv2).read(window)
        shortcut = self.block.shortcut
        return h.add_((x if shortcut is None else _Conv(x, shortcut)).read(window))


def _side(node: Node, tile: float) -> int:
    """The side of a square window none of whose activations is much larger than `tile` numbers."""
    return max(math.isqrt(int(tile / node.density)), 1)


def _windows(node: Node, rows: int, columns: int) -> Iterator[Window]:
    for top in range(0, node.height, rows):
        for left in range(0, node.width, columns):
            yield top, min(top + rows, node.height), left, min(left + columns, node.width)


def _stored(node: Node, tile: float) -> _Stored:
    """The whole node, strip by strip from the top; what it was made from is let go as soon as it isn't needed."""
    square = _side(node, tile)
    rows = max(square // 2, 1)  # thin strips: beside the two pictures only a strip of the new one is held
    columns = max(square * square // rows, 1)
    base: Node = node
    while not isinstance(base, _Stored):
        base = base.source  # type: ignore[attr-defined]
    done = _Stored([], node.channels, node.height, node.width)
    for top in range(0, node.height, rows):
        bottom = min(top + rows, node.height)
        pieces = [
            node.read((top, bottom, left, min(left + columns, node.width))) for left in range(0, node.width, columns)
        ]
        done.strips.append(_Strip(top, pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)))
        base.forget(_first_row(node, bottom))
    return done


def _first_row(node: Node, row: int) -> int:
    """The first row of the stored picture beneath that rows from `row` on are made of, or one before it."""
    if isinstance(node, _Stored):
        return row
    source: Node = node.source  # type: ignore[attr-defined]
    if isinstance(node, _Conv):
        row = row * node.stride - node.pad[0]
    elif isinstance(node, _Doubled):
        row = row // 2
    elif isinstance(node, _Residual):
        row = row - 2
    return _first_row(source, max(row, 0))


def _affine(node: Node, norm: nn.GroupNorm, tile: float) -> _Affine:
    """A group normalisation of the whole node, as a factor and a term for each channel.

    Mean and squared deviations are taken window by window and put together by Chan, Golub and LeVeque 1979
    (Updating formulae and a pairwise algorithm for computing sample variances, eq. 2.1).
    """
    side = _side(node, tile)
    groups, count = norm.num_groups, 0
    mean = squares = torch.zeros(())
    for window in _windows(node, side, side):
        x = node.read(window).float().reshape(groups, -1)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        around = x.mean(dim=1)
        deviations = (x - around[:, None]).square_().sum(dim=1).to(wide)
        here = around.to(wide)
        if not count:
            mean, squares = torch.zeros_like(here), torch.zeros_like(here)
        both = count + x.shape[1]
        apart = here - mean
        squares = squares + deviations + apart * apart * (count * x.shape[1] / both)
        mean = mean + apart * (x.shape[1] / both)
        count = both
    inverse = (squares / count + norm.eps).rsqrt()  # [groups]
    repeats = norm.num_channels // groups
    scale = norm.weight.to(mean.dtype) * inverse.repeat_interleave(repeats)
    shift = norm.bias.to(mean.dtype) - mean.repeat_interleave(repeats) * scale
    return _Affine(scale.float()[None, :, None, None], shift.float()[None, :, None, None])


def _attend(x: _Stored, attention: PixelAttention, tile: float) -> None:
    """Attention between all pixels, in place: keys and values of the whole picture, queries a piece at a time."""
    affine = _affine(x, attention.norm, tile)

    def tokens(rows: Tensor) -> Tensor:
        return affine(rows).flatten(2).transpose(1, 2)  # [1, rows W, C]

    count = x.height * x.width
    weight = attention.norm.weight
    k, v = (torch.empty(1, count, x.channels, device=weight.device, dtype=weight.dtype) for _ in range(2))
    pieces = [(strip, row) for strip in x.strips for row in range(strip.rows.shape[2])]
    for strip, row in pieces:
        here = slice((strip.top + row) * x.width, (strip.top + row + 1) * x.width)
        y = tokens(strip.rows[:, :, row : row + 1])
        k[:, here], v[:, here] = attention.k(y), attention.v(y)
    together = max(QUERIES // (count * x.width), 1)
    for strip in x.strips:
        for row in range(0, strip.rows.shape[2], together):
            rows = strip.rows[:, :, row : row + together]
            y = attention.out(attend(attention.q(tokens(rows)), k, v, heads=1))
            rows += y.transpose(1, 2).reshape(rows.shape)
