"""The tiny autoencoder (TAESD, by Ollin Boer Bohan): plain convolutions, distilled from the large one. In milliseconds.

Shapes: N pictures, C = latent_channels, H W the picture's height and width, h w the latent's, W the width of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .config import TinyAutoencoderConfig

LOG_VARIANCE = -30.0  # of its latents, which have none: what the large autoencoder's is clamped to
BOUND = 3.0  # a decoder's latent is bent softly into -3..3


class Block(nn.Module):
    """Three 3x3 convolutions, added to their input: [N, W, h, w] -> [N, W, h, w]."""

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
            layers += [Block(width) for _ in range(count)]
        super().__init__(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        latent: Tensor = super().forward((pictures + 1) / 2)  # type: ignore[no-untyped-call]
        return torch.cat([latent, torch.full_like(latent, LOG_VARIANCE)], dim=1)


class TinyDecoder(nn.Sequential):
    """[N, C, h, w] -> [N, 3, H, W], about -1..1."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        width = config.decoder_widths[0]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(config.decoder_blocks):
            layers += [Block(width) for _ in range(count)]
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
