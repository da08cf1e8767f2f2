"""Linear layers and convolutions in 8 bits on a CPU: about twice the products a second of bfloat16, and lossy.

Weights are rounded once, symmetrically, with a scale for each output channel; activations in each call, with the scale
and the zero point of all that comes in (dynamic quantization; Jacob et al. 2018, arXiv 1712.05877, sec. 2.1). Products
add up in 32 bits. oneDNN does them; the answer has the type of the input. Processors without VNNI add products in
pairs of 16 bits first, and cut off what is larger: there weights are rounded to 7 bits (see `largest`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.packed import unpack
from ..models.unet import UNet

LEVELS = 254  # steps of an activation in 0..255; one less, so that the largest never goes over when it is rounded
PIECE = 2**20  # activations that are rounded at a time: fewer are not faster, and wait for each other's threads more
# A float32 of this size has no bits for fractions: the sum is rounded to a whole number, which its lowest byte tells.
# torch is slow to make bytes of floats, and quick to make them of whole numbers.
MAGIC = 1.5 * 2**23
FEW = 16  # positions below which rounding costs more than the products


@cache
def largest() -> int:
    """Rounded weights are -largest..largest: 127 where sums are exact, else 64, whose pairs fit 16 bits (2 * 255 * 64).

    Asked of oneDNN, which may have been told to use less than the processor can.
    """
    ops, count = torch.ops.onednn, 64
    ones, zeros = torch.ones(count), torch.zeros(count, dtype=torch.int32)
    weight = torch.full((count, count), 127, dtype=torch.int8)
    inputs = torch.full((count, count), 255, dtype=torch.uint8)
    rest = (ones, zeros, None)
    last: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    linear = ops.qlinear_pointwise(inputs, 1.0, 0, ops.qlinear_prepack(weight, None), *rest, *last)
    shape = [[1, 1], [0, 0], [1, 1], 1]
    packed = ops.qconv_prepack(weight[:, :, None, None], ones, 1.0, 0, *shape, None)
    convolved = ops.qconv_pointwise(inputs.view(1, count, 8, 8), 1.0, 0, packed, *rest, *shape, *last)
    exact = count * 255 * 127
    return 127 if bool((linear == exact).all()) and bool((convolved == exact).all()) else 64


class _Rounded:
    """A layer's weight in 8 bits, in the layout that oneDNN wants, made again when the weight has changed."""

    _made: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:  # a copy, or a pickle, makes its own
        return {name: value for name, value in self.__dict__.items() if name != "_made"}


class _Form(NamedTuple):
    """What a rounded layer multiplies by."""

    packed: Tensor
    scales: Tensor  # [O]
    zeros: Tensor  # [O]
    sums: Tensor  # [O], of the weights as they are rounded: what an input that is 1 everywhere gives
    bias: Tensor | None  # [O], float32


def _int8(layer: Int8Linear | Int8Conv2d, pack: Callable[[Tensor, Tensor], Tensor]) -> _Form:
    """A layer's form, made anew when its weight has changed."""
    weight, bias = layer.weight, layer.bias
    state = [(one.data_ptr(), one._version, one.dtype) for one in (weight, bias) if one is not None]
    if layer._made is None or layer._made[0] != state:
        plain = weight.detach().float()
        scales = plain.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / largest()
        rounded = (plain / scales.view(-1, *[1] * (plain.ndim - 1))).round().to(torch.int8)
        sums = rounded.flatten(1).sum(1, dtype=torch.int32) * scales
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        form = _Form(pack(rounded, scales), scales, zeros, sums, None if bias is None else bias.detach().float())
        # What was rounded is held: nothing else can come to lie at its address.
        layer._made = state, form, weight.detach(), None if bias is None else bias.detach()
    made: _Form = layer._made[1]
    return made


def _multiplied(layer: Int8Linear | Int8Conv2d, x: Tensor) -> Tensor:
    """A linear layer: [..., I] -> [..., O], with the rows of x one behind the other in memory."""
    ops = torch.ops.onednn
    form = _int8(layer, lambda weight, _: ops.qlinear_prepack(weight.flatten(1), None))
    rounded, scale, zero = _rounded(x.reshape(-1, x.shape[-1]))
    y: Tensor = ops.qlinear_pointwise(
        rounded, scale, zero, form.packed, form.scales, form.zeros, form.bias, 1.0, 0, x.dtype, "none", [], ""
    )
    return y.view(*x.shape[:-1], len(form.scales))


class Int8Linear(_Rounded, nn.Linear):
    """[..., I] -> [..., O]."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.numel() < FEW * self.in_features:
            return super().forward(x)
        return _multiplied(self, x)


class Int8Conv2d(_Rounded, nn.Conv2d):
    """[N, C, H, W] -> [N, O, H', W'], with the channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.numel() < FEW * self.in_channels:
            plain: Tensor = super().forward(x)
            return plain
        assert not isinstance(self.padding, str)
        alone = self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
        if alone:  # a linear layer on every pixel; oneDNN is slow to see that
            return _multiplied(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        ops = torch.ops.onednn
        shape = [list(self.stride), [0, 0], list(self.dilation), self.groups]
        form = _int8(self, lambda weight, scales: ops.qconv_prepack(weight, scales, 1.0, 0, *shape, None))
        rounded, scale, zero = _rounded(x.contiguous(memory_format=torch.channels_last))
        # oneDNN would take what stands for 0 out of its sums by adding up all weights in each call, which takes as long
        # as the products of a small picture. It is the same for all pixels once the border is there, and so a bias.
        bias = form.sums * (-scale * zero)
        y: Tensor = ops.qconv_pointwise(
            _bordered(rounded, self.padding, zero),
            scale,
            0,
            form.packed,
            form.scales,
            form.zeros,
            bias if form.bias is None else bias.add_(form.bias),
            *shape,
            1.0,
            0,
            x.dtype,
            "none",
            [],
            "",
        )
        return y


def _bordered(x: Tensor, padding: tuple[int, ...], zero: int) -> Tensor:
    """Rounded activations [N, C, H, W] with what stands for 0 around them."""
    down, across = padding
    if not (down or across):
        return x
    n, c, h, w = x.shape
    room = torch.full((n, h + 2 * down, w + 2 * across, c), zero, dtype=x.dtype)
    room[:, down : down + h, across : across + w] = x.permute(0, 2, 3, 1)
    return room.permute(0, 3, 1, 2)


def _rounded(x: Tensor) -> tuple[Tensor, float, int]:
    """Activations as 0..255, their scale and what stands for 0: x is about scale * (rounded - zero)."""
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    numbers = _flat(x)
    # 0 must be one of the steps: the zeros of padding stay exact.
    least, most = (float(end) for end in numbers.aminmax())
    least, most = min(least, 0.0), max(most, 0.0)
    scale = max((most - least) / LEVELS, 1e-12)
    zero = round(-least / scale)
    rounded = torch.empty_like(x, dtype=torch.uint8)
    # A piece at a time, which stays in the cache: a float32 copy of all of it costs more than the products.
    room = torch.empty(min(PIECE, x.numel()))
    for piece, answer in zip(torch.split(numbers, PIECE), torch.split(_flat(rounded), PIECE), strict=True):
        steps = room[: len(piece)].copy_(piece).mul_(1 / scale).add_(MAGIC + zero)
        answer.copy_(steps.view(torch.int32))  # the lowest byte
    return rounded, scale, zero


def _flat(x: Tensor) -> Tensor:
    """All values in the order of memory: torch goes through this view faster than through one of four dimensions."""
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)


def to_int8(unet: UNet) -> int:
    """Let the blocks of a U-Net compute in 8 bits, in place; how many layers do. What lies around them stays.

    Weights stay beside their rounded form, which takes half as much again in bfloat16: LoRA finds them as it always
    does, and one that is merged into them is rounded anew. For inference only: where gradients are asked for, a layer
    computes as before.
    """
    made = 0
    for part in (unet.down, unet.mid, unet.up):
        for name, layer in part.named_modules() if part is not None else ():
            if name.endswith(".time"):  # one position a row
                continue
            unpack(layer)
            if type(layer) is nn.Linear:
                layer.__class__ = Int8Linear
                made += 1
            elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                layer.__class__ = Int8Conv2d
                made += 1
    return made


def int8_problem(device: torch.device, compile: bool = False) -> str | None:
    """What keeps a U-Net from computing in 8 bits, in words; None: nothing."""
    if device.type != "cpu":
        return f"the device is '{device}'"
    if compile:
        return "compile is asked for"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv_pointwise"):  # type: ignore[no-untyped-call]
        return "this build of torch multiplies no 8-bit numbers"
    return None
