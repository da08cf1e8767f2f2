"""The autoencoder of Stable Diffusion: pictures to latents and back (Rombach et al. 2022, arXiv 2112.10752, sec. 3.1).

At the end of the file the tiny one (TAESD, by Ollin Boer Bohan), plain convolutions that were distilled from it, which
takes milliseconds.

Shapes: N pictures, C = latent_channels, H W the picture's height and width, f = downscale, h = H/f, w = W/f.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attend
from ..kernels.exact import GroupNorm, silu
from ..kernels.packed import ready
from ..kernels.strips import MEMORY, Attend, Convolve, Step, resnets, run_steps, use_strips
from .config import AutoencoderConfig, TinyAutoencoderConfig
from .layers import Block, ResnetBlock, Upsample

EPS = 1e-6  # every GroupNorm of the original autoencoder
LOG_VARIANCE = -30.0  # of the tiny one's latents, which have none: what the large one's is clamped to
BOUND = 3.0  # the tiny decoder's latent is bent softly into -3..3


class PixelAttention(Block):
    """One-head self-attention between all pixels, added to its input: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(2).transpose(1, 2)  # [N, H W, C]
        y = self.out(attend(self.q(y), self.k(y), self.v(y), heads=1))
        x = x + y.transpose(1, 2).reshape(x.shape)
        return x


class Middle(nn.Module):
    """The coarsest level: resnet, attention (optional), resnet."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnet1 = ResnetBlock(channels, channels, groups, EPS)
        self.attention = PixelAttention(channels, groups) if attention else None
        self.resnet2 = ResnetBlock(channels, channels, groups, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnet1(x)
        if self.attention is not None:
            x = self.attention(x)
        y: Tensor = self.resnet2(x)
        return y

    def steps(self) -> list[Step]:
        attention = [] if self.attention is None else [Attend(self.attention)]
        return [*resnets([self.resnet1]), *attention, *resnets([self.resnet2])]


class DownLevel(nn.Module):
    """Resnets of one size, then halving by a strided convolution (padded right and below only, as the original is)."""

    def __init__(self, c_in: int, c_out: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups, EPS) for i in range(count))
        self.downsample = None if last else nn.Conv2d(c_out, c_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsample is None else self.downsample(F.pad(x, (0, 1, 0, 1)))

    def steps(self) -> list[Step]:
        halved = [] if self.downsample is None else [Convolve(self.downsample, pad=(0, 1))]
        return [*resnets(self.resnets), *halved]


class UpLevel(nn.Module):
    """Resnets of one size, then doubling."""

    def __init__(self, c_in: int, c_out: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups, EPS) for i in range(count))
        self.upsample = None if last else Upsample(c_out)

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsample is None else self.upsample(x)

    def steps(self) -> list[Step]:
        doubled = [] if self.upsample is None else [Convolve(self.upsample.conv, double=True)]
        return [*resnets(self.resnets), *doubled]


class Encoder(nn.Module):
    """[N, 3, H, W] -> [N, 2 C, h, w]: mean and log-variance, before the quant convolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(c_in, c_out, config.layers_per_block, groups, last=level == len(widths) - 1)
            for level, (c_in, c_out) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid = Middle(widths[-1], groups, config.mid_block_attention)
        self.norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        y: Tensor = self.conv_out(silu(self.norm_out(self.mid(x))))
        return y

    def steps(self) -> list[Step]:
        """The same in strips (`kernels.strips`)."""
        levels = [step for level in self.down for step in cast(DownLevel, level).steps()]
        return [Convolve(self.conv_in), *levels, *self.mid.steps(), Convolve(self.conv_out, self.norm_out)]


class Decoder(nn.Module):
    """[N, C, h, w] -> [N, 3, H, W]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = Middle(widths[0], groups, config.mid_block_attention)
        self.up = nn.ModuleList(
            UpLevel(c_in, c_out, config.layers_per_block + 1, groups, last=level == len(widths) - 1)
            for level, (c_in, c_out) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for level in self.up:
            z = level(z)
        y: Tensor = self.conv_out(silu(self.norm_out(z)))
        return y

    def steps(self) -> list[Step]:
        """The same in strips (`kernels.strips`)."""
        levels = [step for level in self.up for step in cast(UpLevel, level).steps()]
        return [Convolve(self.conv_in), *self.mid.steps(), *levels, Convolve(self.conv_out, self.norm_out)]


class Autoencoder(nn.Module):
    """AutoencoderKL. Pictures are [N, 3, H, W] in -1..1; their sizes are rounded down to `downscale`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        # The quant convolutions are left from a quantised ancestor (VQGAN); they are 1x1, and mix channels only.
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant = nn.Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant = nn.Conv2d(c, c, 1) if config.use_post_quant_conv else None

    def encode(self, pictures: Tensor, memory: float = MEMORY) -> Tensor:
        """[N, 3, H, W] in -1..1 -> moments [N, 2 C, h, w]: mean and log-variance of the unscaled latent.

        Without gradients, large pictures are encoded in strips (`kernels.strips`), with activations of about `memory`
        bytes at most; what lies under a result of latent size (1.6 GB for a 4096x4096 picture) must fit.

        Raises ValueError on another number of channels and on pictures smaller than a latent pixel.
        """
        channels, f = self.config.in_channels, self.config.downscale
        if pictures.ndim != 4 or pictures.shape[1] != channels or min(pictures.shape[2:]) < f:
            needed = f"[N, {channels}, H, W] of at least {f} x {f}"
            raise ValueError(f"pictures of shape {tuple(pictures.shape)} given; this autoencoder takes {needed}")
        h = self._answer(self.encoder, ready(self.encoder, pictures), 1, memory)
        return h if self.quant is None else self.quant(h)

    def decode(self, latents: Tensor, memory: float = MEMORY) -> Tensor:
        """Unscaled latents [N, C, h, w] -> pictures [N, 3, H, W], about -1..1 (not clamped). Memory: see `encode`.

        Raises ValueError on another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            shape, channels = tuple(latents.shape), self.config.latent_channels
            raise ValueError(f"latents of shape {shape} given; this autoencoder takes [N, {channels}, h, w]")
        latents = ready(self.decoder, latents)
        latents = latents if self.post_quant is None else self.post_quant(latents)
        return self._answer(self.decoder, latents, self.config.downscale, memory)

    def fits(self, x: Tensor, scale: int, memory: float = MEMORY) -> bool:
        """Whether `memory` bytes are enough without strips: at the widest, three activations are held at once.

        x [N, C, H, W] is a picture (`scale` 1) or a latent (`scale` f); one at a time is counted.
        """
        return 3 * self._largest(x, scale) * x.element_size() <= memory

    def _largest(self, x: Tensor, scale: int) -> int:
        """Numbers of the largest activation for one picture."""
        widths = self.config.block_out_channels
        widest = widths[min(1, len(widths) - 1)]  # the decoder's finest level begins with the width of the one below
        return widest * x.shape[2] * x.shape[3] * scale**2

    def _answer(self, network: Encoder | Decoder, x: Tensor, scale: int, memory: float) -> Tensor:
        if use_strips(network, x, self._largest(x, scale), self.fits(x, scale, memory)):
            # One picture at a time: a strip is of one.
            return torch.cat([run_steps(network.steps(), row[None], memory) for row in x])
        y: Tensor = network(x)
        return y

    def scale(self, latents: Tensor) -> Tensor:
        """An encoder's latent to the unit-deviation latent that the U-Net works on."""
        # The deviation becomes 1, which is what noise levels are measured against; of each channel where a file has
        # latents_mean and latents_std: (latent - mean) * scaling_factor / std.
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        if self.config.latents_mean is None or self.config.latents_std is None:
            return latents
        mean, std = (_by_channel(values, latents) for values in (self.config.latents_mean, self.config.latents_std))
        return (latents - self.config.scaling_factor * mean) / std

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of `scale`: what `decode` takes."""
        if self.config.latents_mean is not None and self.config.latents_std is not None:
            mean, std = (_by_channel(values, latents) for values in (self.config.latents_mean, self.config.latents_std))
            latents = latents * std + self.config.scaling_factor * mean
        return latents / self.config.scaling_factor + self.config.shift_factor

    def forward(self, pictures: Tensor) -> Tensor:
        """Reconstruct pictures through the mean of their latents."""
        return self.decode(self.encode(pictures).chunk(2, dim=1)[0])


def _by_channel(values: tuple[float, ...], latents: Tensor) -> Tensor:
    """One number a channel as [C, 1, 1] against latents [N, C, h, w]."""
    return torch.tensor(values, dtype=latents.dtype, device=latents.device)[:, None, None]


class TinyBlock(nn.Module):
    """Three 3x3 convolutions, added to their input: [N, width, h, w] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class TinyEncoder(nn.Sequential):
    """[N, 3, H, W] in -1..1 -> [N, 2 C, h, w]: the latent as a mean, and a log-variance of nearly no width."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        width = config.block_out_channels[0]
        layers: list[nn.Module] = []
        for level, count in enumerate(config.encoder_blocks):
            halving = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(halving if level else nn.Conv2d(config.in_channels, width, 3, padding=1))
            layers += [TinyBlock(width) for _ in range(count)]
        super().__init__(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        # It was trained on pictures in 0..1.
        latent: Tensor = super().forward((pictures + 1) / 2)  # type: ignore[no-untyped-call]
        return torch.cat([latent, torch.full_like(latent, LOG_VARIANCE)], dim=1)


class TinyDecoder(nn.Sequential):
    """[N, C, h, w] -> [N, 3, H, W], about -1..1."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        width = config.decoder_widths[0]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(config.decoder_blocks):
            layers += [TinyBlock(width) for _ in range(count)]
            if level < len(config.decoder_blocks) - 1:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        super().__init__(*layers, nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        unit: Tensor = super().forward(torch.tanh(latents / BOUND) * BOUND)  # type: ignore[no-untyped-call]
        return unit * 2 - 1


class TinyAutoencoder(Autoencoder):
    """AutoencoderTiny: an `Autoencoder` in all its calls, with other layers inside."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.encoder = TinyEncoder(config)  # type: ignore[assignment]
        self.decoder = TinyDecoder(config)  # type: ignore[assignment]
        self.quant = self.post_quant = None
