"""Token merging (Bolya and Hoffman 2023, arXiv 2303.17604): self-attention over fewer tokens.

Neighbouring pixels often say nearly the same. In every square of 2 x 2 tokens one is kept; the others that are most
like a kept one are averaged into it, attention runs over what is left, and each merged token gets its group's answer.

Shapes: N rows, L = H W tokens of width C, K of them kept in any case, M after merging.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.unet import TransformerBlock, UNet


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Which of M groups each token belongs to."""

    places: Tensor  # [N, L] int64: 0..M - 1 in row 0, M..2 M - 1 in row 1, ...
    counts: Tensor  # [N, M, 1] float32: how many tokens a group has

    def merge(self, x: Tensor) -> Tensor:
        """Each group's mean: [N, L, C] -> [N, M, C]."""
        n, m, _ = self.counts.shape
        sums = x.new_zeros(n * m, x.shape[-1]).index_add_(0, self.places.flatten(), x.reshape(-1, x.shape[-1]))
        return sums.view(n, m, -1) / self.counts.to(x.dtype)

    def unmerge(self, y: Tensor) -> Tensor:
        """Each token gets its group's: [N, M, C] -> [N, L, C]."""
        return y.reshape(-1, y.shape[-1])[self.places]


def grouped(x: Tensor, size: tuple[int, int], ratio: float) -> Groups:
    """Group tokens [N, L, C] of a picture of H x W so that about L * ratio of them are gone (sec. 3 of the paper).

    One token of each whole 2 x 2 square is kept, which one is drawn once for a size (the same for all pictures, layers
    and steps). Of the others, those whose cosine with a kept one is largest join it.
    """
    n, length, _ = x.shape
    kept, others = (index.to(x.device) for index in _split(*size))
    gone = min(int(length * ratio), len(others))
    x = F.normalize(x, dim=-1)
    likeness, nearest = (x[:, others] @ x[:, kept].transpose(1, 2)).max(dim=-1)  # [N, L - K]
    # Stable: equal likenesses (flat areas) are taken in the same order everywhere.
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    joining, staying = order[:, :gone], order[:, gone:]
    m = length - gone
    places = torch.empty(n, length, dtype=torch.int64, device=x.device)
    places[:, kept] = torch.arange(len(kept), device=x.device)
    rest = torch.arange(len(kept), m, device=x.device).expand(n, -1)
    places.scatter_(1, others[staying], rest)
    places.scatter_(1, others[joining], nearest.gather(1, joining))
    counts = torch.zeros(n, m, device=x.device).scatter_add_(1, places, torch.ones(n, length, device=x.device))
    return Groups(places + m * torch.arange(n, device=x.device)[:, None], counts[:, :, None])


@lru_cache(maxsize=64)
def _split(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The tokens that are kept, one in each whole square of 2 x 2, and all others."""
    h, w = height // 2, width // 2
    which = torch.randint(4, (h, w), generator=torch.Generator().manual_seed(0))
    rows = 2 * torch.arange(h)[:, None] + which // 2
    kept = (rows * width + 2 * torch.arange(w) + which % 2).flatten()
    others = torch.ones(height * width, dtype=torch.bool).index_fill_(0, kept, False).nonzero().flatten()
    return kept, others


@contextmanager
def merging(network: nn.Module, ratio: float, size: tuple[int, int]) -> Iterator[None]:
    """While this context lasts, the finest self-attention of a U-Net merges a fraction of its tokens.

    Args:
        network: a UNet, called with latents of `size` (height, width).
        ratio: 0 (nothing happens) to 0.75: of all tokens, how many are merged into others.

    Forward hooks do it, as in `adapters.attached`: other threads notice nothing, and nothing remains afterwards.
    """
    handles = []
    try:
        if ratio and isinstance(network, UNet):
            level, layers = _finest(network)
            scale = 2**level
            shrunk = math.ceil(size[0] / scale), math.ceil(size[1] / scale)
            for layer in layers if min(shrunk) > 1 else ():  # a single row of tokens has no squares
                before, after = _hooks(shrunk, ratio)
                handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finest(unet: UNet) -> tuple[int, list[nn.Module]]:
    """The finest level whose pixels attend to each other, and its self-attention on the way down and up."""
    config = unet.config
    for level, (attends, only_cross) in enumerate(
        zip(config.attention_levels, config.only_cross_attention, strict=True)
    ):
        if attends and not only_cross:
            sides = (unet.down[level], unet.up[len(unet.up) - 1 - level])
            return level, [
                block.attn1 for side in sides for block in side.modules() if isinstance(block, TransformerBlock)
            ]
    return 0, []


def _hooks(size: tuple[int, int], ratio: float) -> tuple[Any, Any]:
    """What to do before and after a self-attention of `size` tokens, in this thread."""
    thread = get_ident()
    found: list[Groups] = []

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if get_ident() != thread:
            return None
        found.append(grouped(inputs[0], size, ratio))
        fewer = found[0].merge(inputs[0])
        return (fewer, fewer, *inputs[2:])

    def after(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return found.pop().unmerge(output) if get_ident() == thread else None

    return before, after
