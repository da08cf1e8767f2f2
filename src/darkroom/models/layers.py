"""Layers that more than one network is made of.

Shapes: N pictures, C channels, H W height and width, E width of the time embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.doubling import Doubling, enlarged
from ..kernels.exact import GroupNorm, silu


class Block(nn.Module):
    """A part of a network that can forget what it computed, and compute it again on the way back.

    Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): while gradients are asked for, a block with
    `checkpointing` keeps its inputs only. Its answer and its gradients are the same; a training step takes about a
    third longer. Hooks on its layers (a LoRA's) must still be there on the way back.
    """

    checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in a block draws random numbers, so their state needn't be kept.
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
        self.norm1 = GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_width, c_out) if time_width is not None else None
        self.norm2 = GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        if self.time is not None and time is not None:
            # One number a channel, the same for all pixels: this is how a block knows the noise level.
            h = h + self.time(silu(time))[:, :, None, None]
        h = self.conv2(silu(self.norm2(h)))
        y: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return y


class Upsample(Block):
    """Nearest-neighbour enlargement by two (or to a given size), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Doubling(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            # None where it has to be done the plain way: enlarge, then convolve.
            doubled = self.conv.doubled(x)
            if doubled is not None:
                return doubled
        x = enlarged(x, size)
        y: Tensor = self.conv(x)
        return y


@torch.no_grad()
def parameter_count(module: nn.Module) -> int:
    """The number of trainable values in a network (works on the meta device)."""
    return sum(p.numel() for p in module.parameters())
