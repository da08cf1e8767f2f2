"""LPIPS: how different two pictures look (Zhang et al. 2018, arXiv 1801.03924, eq. 1, version 0.1 of its weights).

A classifier's convolutions see both pictures; the answers of five layers are brought to unit length pixel by pixel, and
their squared differences are weighed channel by channel, averaged over pixels and summed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LpipsConfig

# Layers in torchvision's numbering: channels and kernel of a convolution, "relu", "relu!" (looked at), "pool".
_VGG = ((64, 3), "relu", (64, 3), "relu!", "pool", (128, 3), "relu", (128, 3), "relu!", "pool",
        (256, 3), "relu", (256, 3), "relu", (256, 3), "relu!", "pool",
        (512, 3), "relu", (512, 3), "relu", (512, 3), "relu!", "pool",
        (512, 3), "relu", (512, 3), "relu", (512, 3), "relu!")  # fmt: skip
_ALEX = ((64, 11), "relu!", "pool", (192, 5), "relu!", "pool", (384, 3), "relu!", (256, 3), "relu!", (256, 3), "relu!")
LAYERS: dict[str, tuple[tuple[int, int] | str, ...]] = {"vgg": _VGG, "alex": _ALEX}
EPS = 1e-10
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, in -1..1


class Lpips(nn.Module):
    """The distance of pictures, by VGG-16 (Simonyan & Zisserman 2014) or AlexNet (Krizhevsky 2014)."""

    def __init__(self, config: LpipsConfig) -> None:
        super().__init__()
        self.config = config
        self.plan = LAYERS[config.net]
        self.layers = nn.ModuleDict()
        self.heads = nn.ModuleList()
        self.pooled = 2 if config.net == "vgg" else 3  # pixels that a pooling looks at on each side
        channels = 3
        for i, layer in enumerate(self.plan):
            if isinstance(layer, tuple):
                width, kernel = layer
                first = kernel == 11
                stride, padding = (4, 2) if first else (1, kernel // 2)
                self.layers[str(i)] = nn.Conv2d(channels, width, kernel, stride, padding)
                channels = width
            elif layer == "relu!":
                self.heads.append(nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in -1..1 and others -> [N], 0 where they are the same.

        Raises ValueError on pictures under 32 pixels a side.
        """
        if min(*a.shape[2:], *b.shape[2:]) < 32:
            raise ValueError(f"pictures of {a.shape[3]}x{a.shape[2]} pixels given; LPIPS needs 32 a side")
        total: Tensor = a.new_zeros(len(a))
        for x, y, head in zip(self.features(a), self.features(b), self.heads, strict=True):
            # eq. 1: the squared difference of unit vectors, weighed by a 1x1 convolution, averaged over pixels.
            total = total + head((_unit(x) - _unit(y)).square()).mean(dim=(1, 2, 3))
        return total

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures [N, 3, H, W] in -1..1 -> what five layers answer, each [N, C, h, w]."""
        shift, scale = (torch.tensor(v).to(pictures)[:, None, None] for v in (SHIFT, SCALE))
        x, seen = (pictures - shift) / scale, []
        for i, layer in enumerate(self.plan):
            if isinstance(layer, tuple):
                x = self.layers[str(i)](x)
            elif layer == "pool":
                x = F.max_pool2d(x, self.pooled, 2)
            else:
                x = F.relu(x)
                if layer == "relu!":
                    seen.append(x)
        return seen


def _unit(x: Tensor) -> Tensor:
    """Each pixel's channels at unit length."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + EPS)
