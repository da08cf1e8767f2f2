"""The same bits on a CPU whatever the number of threads.

Measured (docs/determinism.md): of the kernels that the three networks use in float32, three split their sums by the
number of threads at ordinary sizes: the 1x1 convolution of unpacked weights, attention with few queries, and group
normalisation of many pixels with the channels last. While `SameBits` is active, the first is computed as a linear
layer, the second by plain sums, the third by sums over a row of pixels at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FEW = 32  # queries up to which the attention kernel's bits were seen to vary
MANY = 1024  # pixels from which on the normalisation's do


def same_bits(network: nn.Module) -> AbstractContextManager[Any]:
    """`SameBits` for a float32 network on a CPU that is not compiled, else nothing."""
    weight = next(network.parameters())
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return SameBits() if plain and network._compiled_call_impl is None else nullcontext()


class SameBits(TorchFunctionMode):
    """A context in which 1x1 convolutions and short attention on the CPU don't depend on the number of threads."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and _pointwise(*args, **kwargs):
            return conv1x1(*args[:3])
        if func is F.scaled_dot_product_attention and len(args) == 3 and _plain(**kwargs) and args[0].shape[-2] <= FEW:
            return attention(*args)
        if func is F.group_norm and _many(args[0]):
            return group_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _many(x: Tensor) -> bool:
    """Whether a picture has many pixels, and its channels last."""
    many = x.ndim == 4 and x.shape[2] * x.shape[3] >= MANY
    return many and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


def _pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a convolution is a linear layer on every pixel."""
    plain = groups == 1 and all(s in (1, (1, 1)) for s in (stride, dilation)) and padding in (0, (0, 0))
    return x.ndim == 4 and weight.shape[-2:] == (1, 1) and plain


def _plain(is_causal: bool = False, **others: Any) -> bool:
    """Whether attention has no mask and no other option."""
    return not is_causal and not others


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution as a linear layer: x [N, C, H, W], weight [O, C, 1, 1] -> [N, O, H, W]."""
    y = F.linear(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1), bias)  # [N H W, O]
    return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2).contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with sums instead of matrix products: q [..., L, d], k and v [..., T, d]."""
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * q.shape[-1] ** -0.5  # [..., L, T]
    y: Tensor = (scores.softmax(-1).unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)
    return y


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation (Wu & He 2018, arXiv 1803.08494, eq. 1) of x [N, C, H, W] with the channels last."""
    n, c, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1)  # [N, H, W, C]
    # Along a row of pixels the kernel adds in one order whatever the threads; rows are then added in float64.
    sums = pixels.sum(2).double().sum(1).view(n, groups, -1).sum(2, keepdim=True)  # [N, groups, 1]
    squares = (pixels * pixels).sum(2).double().sum(1).view(n, groups, -1).sum(2, keepdim=True)
    count = height * width * c // groups
    mean = sums / count
    inverse = ((squares / count - mean.square()).clamp_min(0) + eps).rsqrt()
    ones, zeros = torch.ones(c, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    scale = (ones if weight is None else weight.double()).view(groups, -1) * inverse  # [N, groups, C / groups]
    shift = (zeros if bias is None else bias.double()).view(groups, -1) - mean * scale
    scale, shift = (y.float().view(n, 1, 1, c) for y in (scale, shift))
    return torch.addcmul(shift, pixels, scale).permute(0, 3, 1, 2)
