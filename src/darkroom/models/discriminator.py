"""The patch discriminator of an autoencoder's training (Isola et al. 2017, arXiv 1611.07004, sec. 3.2.2 and 6.1.2).

Shapes: N pictures, C channels, H W height and width, p q the patches' rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLUs
DEVIATION = 0.02  # of the first weights


class PatchDiscriminator(nn.Module):
    """Says of every patch of a picture how real it looks: [N, C, H, W] in -1..1 -> [N, 1, p, q], any numbers.

    Convolutions of 4 x 4: `layers` that halve, one that does not, and the answer. With 3 of them an answer sees 70 x 70
    pixels. Norms are by groups, where the paper has them by batch: an answer depends on its own picture alone, in
    training and after, in one process and in several.

    Args:
        channels: of a picture.
        width: of the first layer; it doubles with every layer, to 8 times itself at most.
        layers: that halve.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.channels, self.layers = channels, layers
        found: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        before = width
        for i in range(1, layers + 1):
            now = width * min(2**i, 8)
            # The norm after it makes a bias superfluous.
            found.append(nn.Conv2d(before, now, 4, stride=2 if i < layers else 1, padding=1, bias=False))
            found += [nn.GroupNorm(_groups(now), now), nn.LeakyReLU(SLOPE)]
            before = now
        self.net = nn.Sequential(*found, nn.Conv2d(before, 1, 4, stride=1, padding=1))
        with torch.no_grad():
            for p in (m.weight for m in self.net if isinstance(m, nn.Conv2d)):
                nn.init.normal_(p, std=DEVIATION)

    @property
    def smallest(self) -> int:
        """The least side of a picture, in pixels, of which it can say anything."""
        return smallest(self.layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Raises ValueError on pictures of another number of channels, or smaller than `smallest`."""
        if pictures.ndim != 4 or pictures.shape[1] != self.channels or min(pictures.shape[2:]) < self.smallest:
            needed = f"[N, {self.channels}, H, W] of at least {self.smallest} x {self.smallest}"
            raise ValueError(f"pictures of shape {tuple(pictures.shape)} given; this discriminator takes {needed}")
        y: Tensor = self.net(pictures)
        return y


def smallest(layers: int) -> int:
    """The least side, in pixels, of what a patch discriminator of so many halving layers takes."""
    return int(3 * 2**layers)


def _groups(width: int) -> int:
    """The most groups, up to 32, of at least four channels each that share a width evenly."""
    return next(g for g in range(min(32, max(width // 4, 1)), 0, -1) if width % g == 0)
