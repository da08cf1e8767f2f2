"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) as the Frechet inception distance knows it.

Heusel et al. (2017, arXiv 1706.08500) took TensorFlow's network of 2015-12-05. It differs from torchvision's in how it
pools: averages leave out the padding, and the last block takes maxima. Shapes: N pictures, C channels, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import InceptionConfig

Size = int | tuple[int, int]


class KeptNorm(nn.Module):
    """Batch normalisation by the statistics of a training that is over: [N, C, h, w] -> the same."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class Conv(nn.Module):
    """A convolution without bias, normalisation by kept statistics, and ReLU: [N, C, h, w] -> [N, C', h', w']."""

    def __init__(self, c_in: int, c_out: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = KeptNorm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class MixedA(nn.Module):
    """35 x 35 pixels: [N, C, h, w] -> [N, 224 + pooled, h, w]."""

    def __init__(self, c_in: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c_in, 64, 1)
        self.branch5x5_1 = Conv(c_in, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(c_in, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double,
                          self.branch_pool(_mean(x))], dim=1)  # fmt: skip


class MixedB(nn.Module):
    """From 35 x 35 to 17 x 17 pixels: [N, 288, h, w] -> [N, 768, h', w']."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(c_in, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _halved(x)], dim=1)


class MixedC(nn.Module):
    """17 x 17 pixels, in rows and columns of seven: [N, 768, h, w] -> the same."""

    def __init__(self, c_in: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c_in, 192, 1)
        self.branch7x7_1 = Conv(c_in, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Conv(inner, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Conv(c_in, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Conv(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], dim=1)


class MixedD(nn.Module):
    """From 17 x 17 to 8 x 8 pixels: [N, 768, h, w] -> [N, 1280, h', w']."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(c_in, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(c_in, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, _halved(x)], dim=1)


class MixedE(nn.Module):
    """8 x 8 pixels, rows beside columns: [N, C, h, w] -> [N, 2048, h, w]. `maxima` are pooled instead of means."""

    def __init__(self, c_in: int, maxima: bool) -> None:
        super().__init__()
        self.maxima = maxima
        self.branch1x1 = Conv(c_in, 320, 1)
        self.branch3x3_1 = Conv(c_in, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(c_in, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maxima else _mean(x)
        return torch.cat([self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
                          self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
                          self.branch_pool(pooled)], dim=1)  # fmt: skip


class Inception(nn.Module):
    """Pictures to the 2048 features that FID and KID compare: the network up to its last pooling."""

    def __init__(self, config: InceptionConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1a = Conv(3, 32, 3, stride=2)
        self.conv2a = Conv(32, 32, 3)
        self.conv2b = Conv(32, 64, 3, padding=1)
        self.conv3b = Conv(64, 80, 1)
        self.conv4a = Conv(80, 192, 3)
        self.mixed5b = MixedA(192, 32)
        self.mixed5c = MixedA(256, 64)
        self.mixed5d = MixedA(288, 64)
        self.mixed6a = MixedB(288)
        self.mixed6b = MixedC(768, 128)
        self.mixed6c = MixedC(768, 160)
        self.mixed6d = MixedC(768, 160)
        self.mixed6e = MixedC(768, 192)
        self.mixed7a = MixedD(768)
        self.mixed7b = MixedE(1280, maxima=False)
        self.mixed7c = MixedE(2048, maxima=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, 299, 299] in -1..1 -> [N, 2048]. Other sizes of 75 pixels and more work, too."""
        x = self.conv2b(self.conv2a(self.conv1a(pixels)))
        x = _halved(self.conv4a(self.conv3b(_halved(x))))
        x = self.mixed6a(self.mixed5d(self.mixed5c(self.mixed5b(x))))
        x = self.mixed6e(self.mixed6d(self.mixed6c(self.mixed6b(x))))
        x = self.mixed7c(self.mixed7b(self.mixed7a(x)))
        y: Tensor = x.mean(dim=(2, 3))
        return y
