"""Layers that more than one network is made of.

Shapes: N pictures, C channels, H W height and width, E width of the time embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .doubling import Doubling, enlarged
from .packed import fast_bfloat16

SCORES = 2**21  # of attention in pieces: what stays in a processor's cache from one product to the next
ALIGNED = 16  # widths that the products like


class Block(nn.Module):
    """A part of a network that can forget what it computed, and compute it again on the way back.

    Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): while gradients are asked for, a block with
    `checkpointing` keeps its inputs only. Its answer and its gradients are the same; a training step takes about a
    third longer. Hooks on its layers (a LoRA's) must still be there on the way back.
    """

    checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*inputs)


def set_checkpointing(network: nn.Module, on: bool = True) -> None:
    """Let every block of a network forget what it computes (see `Block`), or keep it again."""
    for module in network.modules():
        if isinstance(module, Block):
            module.checkpointing = on


class ResnetBlock(Block):
    """Two 3x3 convolutions around an identity; the time embedding is added between them.

    [N, C_in, H, W] (and [N, E] if it takes a time) -> [N, C_out, H, W].
    """

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, time_width: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_width, c_out) if time_width is not None else None
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None and time is not None:
            h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        y: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return y


class Upsample(Block):
    """Nearest-neighbour enlargement by two (or to a given size), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Doubling(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            doubled = self.conv.doubled(x)
            if doubled is not None:
                return doubled
        x = enlarged(x, size)
        y: Tensor = self.conv(x)
        return y


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, upcast: bool = False, causal: bool = False) -> Tensor:
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1): q [N, L, E], k and v [N, T, E] -> [N, L, E].

    E is `heads` times the width of a head. `upcast` guards float16 against overflowing scores; `causal` (L == T) lets a
    position see only itself and those before it.
    """
    n, length, width = q.shape
    q, k, v = (y.view(n, -1, heads, width // heads).transpose(1, 2) for y in (q, k, v))  # [N, heads, L or T, d]
    dtype = v.dtype
    if upcast and dtype == torch.float16 and not v.is_cuda:  # CUDA's kernels keep the scores in float32 anyway
        q, k, v = q.float(), k.float(), v.float()
    if _plain_is_faster(q, k):
        y = _plain_attention(q, k, v, causal)
    elif not causal and q.device.type == "cpu" and dtype == torch.bfloat16 and _pieces_are_faster(q, k):
        y = _attention_in_pieces(q, k, v)
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).to(dtype)
    return y.transpose(1, 2).reshape(n, length, width)


def _plain_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether to write the products out: torch's fused CPU kernel goes backward 2 to 8 times slower in bfloat16.

    Only while training, and only up to scores of 64 MB a layer, which have to be kept for the way back.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not (torch.is_grad_enabled() and q.requires_grad):
        return False
    return q.shape[:3].numel() * k.shape[2] <= 2**25


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k' / sqrt(d)) v over [N, heads, L or T, d] -> [N, heads, L, d]."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.matmul(scores.softmax(dim=-1), v)


def _pieces_are_faster(q: Tensor, k: Tensor) -> bool:
    """Whether to attend in pieces: torch's fused CPU kernel is up to twice slower on processors with bfloat16 products.

    Not for few scores, where the calls cost more than the products.
    """
    return not torch.is_grad_enabled() and fast_bfloat16() and q.shape[2] * k.shape[2] >= 64 * 64


def _attention_in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v over [N, heads, L or T, d] -> [N, heads, L, d], some heads or queries at a time.

    Both products run in bfloat16 with sums in float32, as the fused kernel's do; the scores are rounded in between.
    """
    n, heads, length, d = q.shape
    q, k, v = (y.reshape(n * heads, -1, d) for y in (q * d**-0.5, k, v))
    k, v = k.transpose(1, 2), F.pad(v, (0, -d % ALIGNED))
    y = torch.empty(n * heads, length, v.shape[2], dtype=q.dtype)
    rows = max(SCORES // k.shape[2], 1)  # of scores in a piece
    together, queries = (rows // length, length) if rows >= length else (1, rows)
    for head in range(0, n * heads, together):
        some = slice(head, head + together)
        for first in range(0, length, queries):
            piece = slice(first, first + queries)
            scores = torch.bmm(q[some, piece], k[some]).softmax(dim=-1)
            y[some, piece] = torch.bmm(scores, v[some])
    return y[..., :d].view(n, heads, length, d)


@torch.no_grad()
def parameter_count(module: nn.Module) -> int:
    """The number of trainable values in a network (works on the meta device)."""
    return sum(p.numel() for p in module.parameters())
