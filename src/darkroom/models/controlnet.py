"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of a U-Net's way down that is shown a picture, the hint.

Shapes as in `unet`: N rows, C_in channels of the latent, C channels inside, H W latent size, T tokens, D width of the
text. The hint is s times the latent's size; s is 8 for Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..kernels.exact import silu
from ..kernels.packed import ready
from .config import ControlNetConfig, UNetConfig
from .unet import Encoder, UNet


class HintEmbedding(nn.Module):
    """The hint at the latent's size (sec. 3.3): [N, C', s H, s W] -> [N, C, H, W].

    Two 3x3 convolutions a width, the second with a stride of 2; the last convolution begins at zero.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.hint_widths
        self.conv_in = nn.Conv2d(config.hint_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for c, wider in pairwise(widths):
            self.blocks += [nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, wider, 3, padding=1, stride=2)]
        self.conv_out = _zero(nn.Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        y: Tensor = silu(self.conv_in(hint))
        for block in self.blocks:
            y = silu(block(y))
        y = self.conv_out(y)
        return y


class ControlNet(Encoder):
    """ControlNetModel: what a hint adds to a U-Net's skips and to its middle."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.hint = HintEmbedding(config)
        skips = [config.block_out_channels[0]]  # the width of each skip, in the order they arise
        for level, width in enumerate(config.block_out_channels):
            halving = level < len(config.block_out_channels) - 1
            skips += [width] * (config.layers_per_block[level] + halving)
        self.zero_convs = nn.ModuleList(_zero(nn.Conv2d(width, width, 1)) for width in skips)
        self.zero_mid = _zero(nn.Conv2d(skips[-1], skips[-1], 1))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor,
        hint: Tensor,
        class_labels: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The residuals of the skips, in the order they arise (`conv_in` first), and that of the middle.

        [N, C_in, H, W], timesteps [N] (or one for all), text [N, T, D] and what follows as a U-Net takes them; `hint`
        [N, 3, s H, s W] in 0..1. Computed in the dtype of the weights. Raises ValueError on shapes that don't fit.
        """
        self._check(x, timesteps, text, class_labels, None, pooled, sizes)
        config, dtype = self.config, self.conv_in.weight.dtype
        wanted = (len(x), config.hint_channels, *(side * config.hint_downscale for side in x.shape[2:]))
        if hint.shape != wanted:
            raise ValueError(f"a hint of shape {tuple(hint.shape)} given; these latents need {wanted}")
        x = ready(self, x.to(dtype))
        time = self.embed_time(timesteps.to(x.device).expand(len(x)), class_labels, None, pooled, sizes)
        hint = hint.flip(1) if config.hint_bgr else hint
        skips, middle = self.encode(self.conv_in(x) + self.hint(hint.to(dtype)), time, text.to(dtype))
        # 1x1 convolutions that begin at zero: training starts from the U-Net as it is (sec. 3.1).
        residuals = [conv(skip) for conv, skip in zip(self.zero_convs, skips, strict=True)]
        residuals.append(self.zero_mid(middle))
        # Only how much there is of what, not where: for hints whose layout shouldn't count (shuffled pictures).
        if config.global_pool:
            residuals = [r.mean(dim=(2, 3), keepdim=True).expand_as(r) for r in residuals]
        return residuals[:-1], residuals[-1]

    @classmethod
    def from_unet(
        cls, unet: UNet, *, attention: bool = True, hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    ) -> ControlNet:
        """A ControlNet to be trained for `unet`: the way down's weights are copied, on their device and in their dtype.

        Its zero convolutions are zero, so that at first it changes nothing (sec. 3.1). The hint embedding is random.
        Without `attention` it has no transformers: smaller, and enough for hints that say where things are.
        """
        net = cls(config_for(unet.config, attention, hint_widths))
        weight, made = next(unet.parameters()), next(net.parameters())
        if (weight.device, weight.dtype) != (made.device, made.dtype):  # without values it could not be moved
            net.to(device=weight.device, dtype=weight.dtype)
        state: Mapping[str, Tensor] = unet.state_dict()
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if name in state:
                    tensor.copy_(state[name])
        return net


def config_for(unet: UNetConfig, attention: bool, hint_widths: tuple[int, ...]) -> ControlNetConfig:
    """What `ControlNet.from_unet` configures, by the U-Net's configuration alone."""
    copied = {field.name: getattr(unet, field.name) for field in fields(UNetConfig)}
    if not attention:
        levels = len(unet.block_out_channels)
        copied |= {"attention_levels": (False,) * levels, "mid_block_attention": False}
    return ControlNetConfig(**{**copied, "time_cond_proj_dim": None, "hint_widths": hint_widths})


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, beginning at zero."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
