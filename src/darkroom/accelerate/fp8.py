"""Linear layers in 8-bit floating point on a GPU (e4m3: Micikevicius et al. 2022, arXiv 2209.05433); lossy.

Weights are rounded once, with the largest magnitude of each output as 448; what comes in is rounded in each call, with
the largest of each position. The product is the hardware's. Convolutions, normalisation and attention keep their type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.unet import TransformerBlock, UNet

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST = 1e-12  # of a row's magnitude: a row of zeros has a scale, too
MULTIPLE = 16  # of both widths, which the hardware's product asks for
CAPABILITY = (8, 9)  # of a CUDA device that multiplies such numbers: Ada, Hopper, and what came after


class Float8Linear(nn.Linear):
    """[..., I] -> [..., O], both multiples of 16. The weight stays beside its rounded form, for adapters and for files.

    Where gradients are asked for it is an ordinary layer.
    """

    rounded: Tensor  # [O, I] e4m3
    scale: Tensor  # [1, O] float32: the weight is about rounded * scale'

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        rows, scale = rounded_rows(x.reshape(-1, self.in_features))
        # With a scale for each row, the hardware's product answers in bfloat16 only.
        y: Tensor = torch._scaled_mm(
            rows, self.rounded.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, I] -> e4m3 [M, I] and scales [M, 1] float32, whose product is about x."""
    # One scale a row, so that a position of large numbers doesn't cost the others their digits.
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min(SMALLEST) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def to_fp8(unet: UNet) -> int:
    """Let the linear layers of a U-Net's transformer blocks multiply in 8 bits, in place; how many do.

    Those over the text stay, hundredths of the work, and so do layers whose widths are no multiples of 16.
    """
    made = 0
    for block in unet.modules():
        if not isinstance(block, TransformerBlock):
            continue
        for name, layer in block.named_modules():
            fits = type(layer) is nn.Linear and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
            if fits and name not in ("attn2.k", "attn2.v"):
                rounded, scale = rounded_rows(layer.weight.detach())
                layer.__class__ = Float8Linear
                layer.register_buffer("rounded", rounded, persistent=False)
                layer.register_buffer("scale", scale.t().contiguous(), persistent=False)
                made += 1
    return made


@torch.no_grad()
def round_anew(network: nn.Module) -> None:
    """Take over weights that were changed in place (merged LoRAs), in place too: compiled and recorded calls see it."""
    for layer in network.modules():
        if isinstance(layer, Float8Linear):
            rounded, scale = rounded_rows(layer.weight)
            layer.rounded.copy_(rounded)
            layer.scale.copy_(scale.t())


def fp8_problem(device: torch.device) -> str | None:
    """Why a device can't multiply such numbers, in words; None if it can."""
    if device.type != "cuda":
        return f"the device is {str(device)!r}"
    if (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        return f"this GPU's compute capability is {found[0]}.{found[1]}"
    return None
