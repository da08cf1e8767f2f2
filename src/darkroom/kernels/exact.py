"""The same bits on a CPU whatever the number of threads, and whatever else is in the batch.

Measured (docs/determinism.md): in float32, a row of a call of two rows or more has the same bits in any such call, of
whatever size and with 1, 2 or 4 threads, but for some kernels: attention with few queries, group normalisation of many
pixels with the channels last, and products of a BLAS. While `SameBits` is active in a thread, the first is computed by
plain sums, the second by sums over a row of pixels at a time, and what products are not packed go to oneDNN. SiLU is
filled up to whole vectors: of what is left over, torch computes the exponential by another formula. A call of one row
is another matter: oneDNN has other convolutions for it. So whoever asks a network asks for two: see `paired`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import local
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 32  # queries up to which the attention kernel's bits were seen to vary
MANY = 1024  # pixels from which on the normalisation's do
VECTORS = 32  # numbers that torch's elementwise kernels take at once: two vectors of 16, on the widest processors
SHARE = 32768  # numbers that are worth a thread to them
_here = local()  # .on: whether this thread is in a `SameBits`


def exact() -> bool:
    """Whether this thread is in a `SameBits`; never while torch's compiler looks on."""
    return not torch.compiler.is_compiling() and getattr(_here, "on", False)


class SameBits:
    """A context in which this thread's networks use kernels of constant bits. A flag: nothing else costs time."""

    def __enter__(self) -> SameBits:
        self._before = getattr(_here, "on", False)
        _here.on = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.on = self._before


def same_bits(network: nn.Module) -> AbstractContextManager[SameBits | None]:
    """`SameBits` for a float32 network on a CPU that is not compiled, else nothing."""
    weight = next(network.parameters())
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return SameBits() if plain and network._compiled_call_impl is None else nullcontext()


def paired(rows: Tensor) -> Tensor:
    """Indices [n] of the rows that something is asked about; twice the only one, in a `SameBits`, for the bits of many.

    The answers' first n are what was asked for.
    """
    return rows.repeat(2) if len(rows) == 1 and exact() else rows


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with constant bits in a `SameBits`."""

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.num_groups, self.weight, self.bias, self.eps)


def normalised(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group normalisation of x [N, C, ...], by the kernel that suits."""
    kernel = group_norm if exact() and _many(x) else F.group_norm
    return kernel(x, groups, weight, bias, eps)


def _many(x: Tensor) -> bool:
    """Whether a picture has many pixels, and its channels last."""
    many = x.ndim == 4 and x.shape[2] * x.shape[3] >= MANY
    return many and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


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


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415, sec. 2), with constant bits in a `SameBits`."""
    if not exact() or _whole(x.numel()):
        return F.silu(x)
    pixels = x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x
    count = filled = x.numel()
    while not _whole(filled):
        filled += VECTORS - filled % VECTORS
    room = x.new_zeros(filled)
    room[:count] = pixels.reshape(-1)
    y = F.silu(room, inplace=True)[:count].view(pixels.shape)
    return y if pixels is x else y.permute(0, 3, 1, 2)


def _whole(count: int) -> bool:
    """Whether torch's elementwise kernels have nothing left over: in no thread's share of so many numbers."""
    shares = min(torch.get_num_threads(), -(-count // SHARE))
    return shares == 0 or (-(-count // shares) % VECTORS == 0 and count % VECTORS == 0)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with sums instead of matrix products: q [..., L, d], k and v [..., T, d]."""
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * q.shape[-1] ** -0.5  # [..., L, T]
    y: Tensor = (scores.softmax(-1).unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)
    return y
