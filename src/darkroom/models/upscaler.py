"""Networks that enlarge pictures: RRDB (ESRGAN and Real-ESRGAN), Compact (SRVGGNetCompact), SPAN.

Their modules are named as the programs that define them name them (BasicSR), so that files need hardly any
translation. All map pictures [N, in_channels, H, W] of 0..1 to [N, out_channels, scale H, scale W], for any H and W.

`network(x, tiles(budget))` is the same answer in tiles (`kernels.tiles`): each part of the network by itself, with the
few pixels around a tile that this part can see. The whole of an RRDB sees hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.tiles import Run, Step, whole
from ..settings import setting
from .config import FLAG, INDEX, SIZE, Config

LARGEST_SCALE = 16


def _check_scale(name: str, scale: int) -> None:
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"{name} is {scale}; it is between 1 and {LARGEST_SCALE}")


# --- RRDB -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RRDBConfig(Config):
    """Residual-in-residual dense blocks (Wang et al. 2018, arXiv 1809.00219, fig. 4); with `unshuffle` the form in
    which Real-ESRGAN enlarges less than four times (Wang et al. 2021, arXiv 2107.10833, fig. 4)."""

    in_channels: int = setting(3, SIZE, "channels of a picture")
    out_channels: int = setting(3, SIZE, "channels of the result")
    width: int = setting(64, SIZE, "channels between blocks")
    growth: int = setting(32, SIZE, "channels that a dense block adds with each layer")
    blocks: int = setting(23, SIZE, "blocks of three dense blocks")
    doublings: int = setting(2, INDEX, "times that sides are doubled at the end, 0 to 4")
    unshuffle: int = setting(
        1, SIZE, "pixels a side that become one, with as many channels more, before the first layer"
    )
    plus: bool = setting(False, FLAG, "ESRGAN+: a 1x1 convolution past two layers of each dense block")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        if self.doublings > 4:
            raise ValueError(f"doublings is {self.doublings}; it is between 0 and 4")
        if self.unshuffle not in (1, 2, 4) or 2**self.doublings % self.unshuffle:
            raise ValueError(f"unshuffle is {self.unshuffle}; it is 1, 2 or 4, and at most what is enlarged after")
        if self.blocks > 256:
            raise ValueError(f"blocks is {self.blocks}; at most 256 are built")

    @property
    def architecture(self) -> str:
        return "ESRGAN+" if self.plus else "ESRGAN"

    @property
    def scale(self) -> int:
        return int(2**self.doublings // self.unshuffle)

    @property
    def reach(self) -> int:
        """How many pixels of the given picture away a pixel of the result may depend on, in each direction."""
        return self.unshuffle * (4 + 15 * self.blocks)

    @property
    def grid(self) -> int:
        """Pixels a side that the network joins to one before all else."""
        return self.unshuffle

    @property
    def kept(self) -> int:
        """Numbers that are kept for each pixel of the given picture between the network's parts."""
        return 4 * self.width // self.unshuffle**2


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which sees the answers of all before it; a fifth of the last is added to x."""

    def __init__(self, width: int, growth: int, plus: bool) -> None:
        super().__init__()
        for k in range(1, 5):
            setattr(self, f"conv{k}", nn.Conv2d(width + (k - 1) * growth, growth, 3, padding=1))
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)
        self.conv1x1 = nn.Conv2d(width, growth, 1, bias=False) if plus else None

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for k in range(1, 5):
            y = F.leaky_relu(getattr(self, f"conv{k}")(torch.cat(seen, dim=1)), 0.2)
            if self.conv1x1 is not None and k == 2:
                y = y + self.conv1x1(x)
            elif self.conv1x1 is not None and k == 4:
                y = y + seen[2]
            seen.append(y)
        result: Tensor = x + 0.2 * self.conv5(torch.cat(seen, dim=1))
        return result


class RRDBBlock(nn.Module):
    """Three dense blocks, of which a fifth is added to x."""

    def __init__(self, width: int, growth: int, plus: bool) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth, plus) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))
        return result


class RRDB(nn.Module):
    """ESRGAN's generator. Sides are enlarged by nearest neighbours, each time before a convolution."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_first = nn.Conv2d(config.in_channels * config.unshuffle**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDBBlock(width, config.growth, config.plus) for _ in range(config.blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.doublings))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, run: Run = whole) -> Tensor:
        c = self.config
        height, width = (c.scale * side for side in x.shape[-2:])
        if c.unshuffle > 1:
            x = F.pixel_unshuffle(_padded(x, c.unshuffle), c.unshuffle)
        x = self.conv_first(x)
        y = x
        for block in self.body:  # three dense blocks of five 3x3 layers
            y = run(Step(block, 15, 8 * c.width + 8 * c.growth), y)
        # Three layers; what comes after a doubling sees half as far.
        end = Step(self._end, 3, 4 * c.width * 4**c.doublings, 2**c.doublings)
        return run(end, x, y)[..., :height, :width]

    def _end(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.conv_body(y)
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        result: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))
        return result


def _padded(x: Tensor, n: int) -> Tensor:
    """Pixels repeated in reverse below and to the right until sides are multiples of n."""
    down, right = -x.shape[-2] % n, -x.shape[-1] % n
    if not (down or right):
        return x
    fits = down < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, down), mode="reflect" if fits else "replicate")


# --- Compact --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompactConfig(Config):
    """A plain chain of convolutions at the size of the given picture, and pixel shuffle at its end (Real-ESRGAN's
    SRVGGNetCompact)."""

    in_channels: int = setting(3, SIZE, "channels of a picture")
    out_channels: int = setting(3, SIZE, "channels of the result")
    width: int = setting(64, SIZE, "channels of a layer")
    layers: int = setting(16, SIZE, "convolutions between the first and the last")
    scale: int = setting(4, SIZE, "how many times a side becomes longer")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _check_scale("scale", self.scale)
        if self.layers > 256:
            raise ValueError(f"layers is {self.layers}; at most 256 are built")

    @property
    def architecture(self) -> str:
        return "Compact"

    @property
    def reach(self) -> int:
        """As `RRDBConfig.reach`."""
        return self.layers + 2

    @property
    def grid(self) -> int:
        """As `RRDBConfig.grid`."""
        return 1

    @property
    def kept(self) -> int:
        """As `RRDBConfig.kept`."""
        return self.out_channels * self.scale**2


class Compact(nn.Module):
    """The picture, each pixel repeated, and what the convolutions add to it."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(config.layers):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, config.out_channels * config.scale**2, 3, padding=1))

    def forward(self, x: Tensor, run: Run = whole) -> Tensor:
        c = self.config
        return run(Step(self._enlarged, c.reach, 2 * c.width + 3 * c.out_channels * c.scale**2, c.scale), x)

    def _enlarged(self, x: Tensor) -> Tensor:
        detail = F.pixel_shuffle(self.body(x), self.config.scale)
        return detail + F.interpolate(x, scale_factor=float(self.config.scale), mode="nearest")


# --- SPAN -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpanConfig(Config):
    """Swift parameter-free attention (Wan et al. 2023, arXiv 2311.12770)."""

    in_channels: int = setting(3, SIZE, "channels of a picture")
    out_channels: int = setting(3, SIZE, "channels of the result")
    width: int = setting(48, SIZE, "channels of a layer")
    scale: int = setting(4, SIZE, "how many times a side becomes longer")
    normalised: bool = setting(True, FLAG, "a mean colour is taken from the picture, and 0..1 becomes 0..255")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _check_scale("scale", self.scale)
        if self.normalised and self.in_channels != 3:
            raise ValueError(f"in_channels is {self.in_channels}; the mean colour is one of 3")

    @property
    def architecture(self) -> str:
        return "SPAN"

    @property
    def reach(self) -> int:
        """As `RRDBConfig.reach`."""
        return 21  # the first layer, three in each of six blocks, two at the end

    @property
    def grid(self) -> int:
        """As `RRDBConfig.grid`."""
        return 1

    @property
    def kept(self) -> int:
        """As `RRDBConfig.kept`."""
        return self.out_channels * self.scale**2


MEAN_COLOUR = (0.4488, 0.4371, 0.4040)  # of DIV2K, as published; files don't hold it
GAIN = 2  # of the channels inside a layer while it is trained


class FusedConv(nn.Module):
    """A 3x3 convolution that was trained as four: 1x1, 3x3 and 1x1 in a row, and a 1x1 beside them.

    What it computes is the one convolution that they are together, at the borders too (the paper's inference form).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(c_in, c_out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, GAIN * c_in, 1), nn.Conv2d(GAIN * c_in, GAIN * c_out, 3), nn.Conv2d(GAIN * c_out, c_out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, middle, last = (layer for layer in self.conv if isinstance(layer, nn.Conv2d))
        before, after = first.weight[:, :, 0, 0], last.weight[:, :, 0, 0]
        weight = torch.einsum("om,mnyx,ni->oiyx", after, middle.weight, before)
        bias = after @ (middle.weight.sum(dim=(2, 3)) @ _bias(first) + _bias(middle)) + _bias(last) + _bias(self.sk)
        return F.conv2d(x, weight + F.pad(self.sk.weight, (1, 1, 1, 1)), bias, padding=1)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class SpanBlock(nn.Module):
    """Three convolutions whose last answer says by itself how much of it counts: x -> (result, first activation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (FusedConv(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.silu(self.c1_r(x))
        last = self.c3_r(F.silu(self.c2_r(first)))
        return (last + x) * (torch.sigmoid(last) - 0.5), first


class Span(nn.Module):
    """Six such blocks; the first features and three answers go together to the pixel shuffle."""

    def __init__(self, config: SpanConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_1 = FusedConv(config.in_channels, width)
        for k in range(1, 7):
            setattr(self, f"block_{k}", SpanBlock(width))
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.conv_2 = FusedConv(width, width)
        self.upsampler = nn.Sequential(
            nn.Conv2d(width, config.out_channels * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )

    def forward(self, x: Tensor, run: Run = whole) -> Tensor:
        c = self.config
        return run(Step(self._enlarged, c.reach, 10 * c.width + 3 * c.out_channels * c.scale**2, c.scale), x)

    def _enlarged(self, x: Tensor) -> Tensor:
        if self.config.normalised:
            x = 255 * (x - x.new_tensor(MEAN_COLOUR)[:, None, None])
        begun = self.conv_1(x)
        answers, inner = [begun], begun
        for k in range(1, 7):
            answer, inner = getattr(self, f"block_{k}")(answers[-1])
            answers.append(answer)
        # The last block's first activation, as published; the paper's figure 2 has the fifth block's answer there.
        joined = self.conv_cat(torch.cat([begun, self.conv_2(answers[6]), answers[1], inner], dim=1))
        result: Tensor = self.upsampler(joined)
        return result


UpscalerConfig: TypeAlias = RRDBConfig | CompactConfig | SpanConfig
CLASSES = {RRDBConfig: RRDB, CompactConfig: Compact, SpanConfig: Span}
