"""A network's layers on a processor, with weights in the form in which oneDNN multiplies fastest.

oneDNN multiplies by blocks of its own. An ordinary layer's weights are cut into them anew in every call, or go to a
BLAS that is slow on some processors. Here they are cut once. A packed layer holds its weight in that form only; whoever
asks for its parameters finds an ordinary layer again, with the same bits:

    unet(x, t, text)        # packs what it can, see `ready`
    unet.mid.resnet1.conv1  # a PackedConv2d
    unet.state_dict()       # of ordinary layers, until the next call

Shapes: N pictures, H W height and width, I O a layer's inputs and outputs, k its kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from threading import Lock
from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from . import winograd
from .exact import exact
from .heap import keep_freed_memory

ORDINARY = (nn.Linear, nn.Conv2d)  # and no class made of them: that has a form of its own
NARROW = 16  # channels below which a convolution of several pixels is not worth packing
SIZE = 64  # height and width for which convolutions are packed
UNSETTLED = 48  # multiples of so many outputs: their blocks fit one size of picture, and are cut anew for others
_lock = Lock()

Geometry = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups


class Packed(nn.Module):
    """What packed layers share: their weight lies in `_blocks`, and in no parameter."""

    _blocks: Tensor
    _origin: ReferenceType[Tensor]  # the weight as it was, if somebody has kept it
    _version: int  # how often it had been changed in place

    @property
    def weight(self) -> Any:
        """The weight [O, I, *k]; asking for it makes the layer an ordinary one again."""
        unpack(self)
        return self.weight  # the parameter

    @property
    def _parameters(self) -> Any:  # type: ignore[override]  # what every way to a module's parameters goes through
        unpack(self)
        return self.__dict__["_parameters"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        unpack(self)
        return self.__reduce_ex__(protocol)  # the ordinary layer's

    def takes(self, x: Tensor) -> bool:
        """Whether the blocks can answer x; else the weight has to."""
        return not torch.is_grad_enabled() and x.dtype == self._blocks.dtype


class PackedLinear(Packed, nn.Linear):  # type: ignore[override]
    """`nn.Linear` on blocks: [..., I] -> [..., O]."""

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self._blocks, self.bias) if self.takes(x) else nn.Linear.forward(self, x)


class PackedPointwise(Packed, nn.Conv2d):  # type: ignore[override]
    """A convolution that is a linear layer on every pixel; oneDNN is slow to see that. [N, I, H, W] -> [N, O, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.takes(x):
            return nn.Conv2d.forward(self, x)
        return multiply(x.permute(0, 2, 3, 1), self._blocks, self.bias).permute(0, 3, 1, 2)


class PackedConv2d(Packed, nn.Conv2d):  # type: ignore[override]
    """`nn.Conv2d` on blocks: [N, I, H, W] -> [N, O, H', W'], with the channels last in memory."""

    _squares: Any = None  # what `winograd` multiplies by, from the first picture on for which it is faster

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(x, self.padding) if self.takes(x) else nn.Conv2d.forward(self, x)

    def padded(self, x: Tensor, padding: Any) -> Tensor:
        """The answer to x with so many zeros around it, down and across."""
        geometry = _geometry(self)
        usual = self.kernel_size == (3, 3) and geometry[1:] == ([1, 1], [1, 1], 1) and padding in ((0, 0), (1, 1))
        if not usual or not winograd.is_faster(x, self.out_channels):
            return convolve(x, self._blocks, self.bias, (list(padding), *geometry[1:]))
        if self._squares is None:
            squares = winograd.transformed(self._blocks.to_dense())
            self._squares = [[partial(multiply, blocks=blocks_of(weight)) for weight in column] for column in squares]
        return winograd.convolve(x, self._squares, self.out_channels, self.bias, padding[0])


_PLAIN: dict[type[Any], type[nn.Module]] = {
    PackedLinear: nn.Linear,
    PackedPointwise: nn.Conv2d,
    PackedConv2d: nn.Conv2d,
}


def ready(network: nn.Module, x: Tensor) -> Tensor:
    """Pack a network that is to answer x [N, I, H, W] or [N, ...], where that is faster; x as it will best read it.

    It is without gradients, on a CPU with oneDNN, for weights in float32 or bfloat16 that are frozen.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or network.training:
        return x
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return x  # what is written down should hold the weights
    return x.contiguous(memory_format=torch.channels_last) if pack(network) and x.ndim == 4 else x


def pack(network: nn.Module) -> bool:
    """Pack all layers of a network that gain by it; whether there are any. Quick where nothing has changed.

    A layer that was unpacked, or whose weight somebody has changed in place, is packed anew.
    """
    layers: list[Any] | None = network.__dict__.get("_packable")
    if layers is None:
        compiled = any(module._compiled_call_impl is not None for module in network.modules())
        layers = [] if compiled else [m for m in network.modules() if isinstance(m, ORDINARY)]
        network.__dict__["_packable"] = layers  # torch's compiler packs by itself
    done = False
    for layer in layers:
        if _packed(layer) and (weight := layer._origin()) is not None and weight._version != layer._version:
            unpack(layer)
        done = _packed(layer) or (type(layer) in ORDINARY and _pack(layer)) or done
    return done


def unpadded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution answers to x that is padded already; packed or not."""
    if isinstance(layer, PackedPointwise):
        return layer.forward(x)
    if isinstance(layer, PackedConv2d) and layer.takes(x):
        return layer.padded(x, (0, 0))
    return F.conv2d(x, layer.weight, layer.bias, layer.stride)


def weight_of(layer: Any) -> Tensor:
    """A layer's weight [O, I, *k], to look at only: of a packed layer a copy, and it stays packed."""
    if not _packed(layer) or torch.is_grad_enabled():
        return layer.weight  # type: ignore[no-any-return]
    weight: Tensor = layer._blocks.to_dense()
    return weight[:, :, None, None] if isinstance(layer, PackedPointwise) else weight


def unpack(layer: Any) -> None:
    """Make a packed layer an ordinary one: with the same parameter if somebody has kept it, else one of equal bits."""
    with _lock:
        if not _packed(layer):
            return
        weight = layer._origin()
        if weight is None:
            with torch.inference_mode(False):  # whatever the caller is in, the weight is to be used everywhere
                dense = layer._blocks.to_dense()
                dense = dense[:, :, None, None] if isinstance(layer, PackedPointwise) else dense
                weight = nn.Parameter(dense, requires_grad=False)
        # Weight first, then the class: another thread that is calling the layer finds one or the other at every moment.
        layer.__dict__["_parameters"] = {"weight": weight, **layer.__dict__["_parameters"]}
        layer.__class__ = _PLAIN[type(layer)]
        for name in ("_blocks", "_origin", "_version", "_squares"):
            layer.__dict__.pop(name, None)


def multiply(x: Tensor, blocks: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer: x [..., I] -> [..., O]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of an ordinary weight [O, I], by a BLAS, or in a `SameBits` by oneDNN: its bits are constant."""
    known = exact() and available(x.dtype) and x.dtype == weight.dtype and not torch.is_grad_enabled()
    return multiply(x, weight, bias) if known else F.linear(x, weight, bias)


def convolve(x: Tensor, blocks: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution: x [N, I, H, W] -> [N, O, H', W'], with the channels last in memory."""
    x = x.contiguous(memory_format=torch.channels_last)
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, blocks, bias, *geometry, "none", [], "")
    return y


def blocks_of(weight: Tensor, geometry: Geometry | None = None) -> Tensor:
    """A weight [O, I] as `multiply` takes it, or with a geometry [O, I, k, k] as `convolve` does."""
    weight = weight.detach().contiguous()
    if geometry is None:
        blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    else:
        size = [2, weight.shape[1], SIZE, SIZE]
        blocks = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)
    return blocks


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, can pack weights of a dtype, and answers rightly with them."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # Elsewhere oneDNN would compute in float32 and convert: slower than float32 itself.
    if dtype == torch.bfloat16 and not fast_bfloat16():
        return False
    try:  # these operators are torch's own affair: another release may have others
        # The answer is kept for the whole process, so it must not come from tensors without values (memory estimates).
        with unset_fake_temporarily():
            return all(_agree(ours, theirs) for ours, theirs in _trials(dtype))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


@cache
def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers by itself, faster than float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def packable(weight: Tensor) -> bool:
    """Whether a weight is frozen, on a CPU, and of a dtype that gains."""
    if type(weight) not in (Tensor, nn.Parameter):  # without values, or a part of a sharded one
        return False
    if weight.requires_grad or weight.is_inference() or weight.device.type != "cpu":
        return False
    return available(weight.dtype)


def narrow(weight: Tensor) -> bool:
    """Whether a convolution of several pixels has too few channels to gain."""
    return min(weight.shape[:2]) < NARROW


def unsettled(outputs: int) -> bool:
    """Whether a convolution of so many outputs is better left as it is (seen in oneDNN 3: up to 80 times slower)."""
    return outputs % UNSETTLED == 0


def _packed(layer: nn.Module) -> bool:
    return type(layer) in _PLAIN


def _kind(layer: nn.Module) -> type[Packed] | None:
    """What a layer becomes; None for those of unusual geometry."""
    if isinstance(layer, nn.Linear):
        return PackedLinear
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    alone = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)
    return PackedPointwise if alone else PackedConv2d


@torch.no_grad()
def _pack(layer: Any) -> bool:
    """Pack one layer, if it gains by it; whether it did."""
    weight, kind = layer.weight, _kind(layer)
    if kind is None or not packable(weight):
        return False
    if kind is PackedConv2d and (narrow(weight) or unsettled(weight.shape[0])):
        return False
    keep_freed_memory()
    blocks = blocks_of(weight, _geometry(layer)) if kind is PackedConv2d else blocks_of(weight.flatten(1))
    with _lock:
        if not _packed(layer):
            layer._blocks, layer._origin, layer._version = blocks, ref(weight), weight._version
            layer.__class__ = kind  # first: another thread that is calling the layer finds a weight at every moment
            del layer.__dict__["_parameters"]["weight"]
    return True


@torch.no_grad()
def _trials(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of tensors that must agree."""
    x = torch.linspace(-1, 1, 32 * 25).to(dtype)
    weight = torch.linspace(-0.1, 0.1, 48 * 32 * 9).to(dtype)
    geometry: Geometry = ([1, 1], [1, 1], [1, 1], 1)
    blocks = blocks_of(weight.view(48, 32 * 9))
    yield blocks.to_dense(), weight.view(48, 32 * 9)
    yield multiply(x[: 32 * 9].view(1, -1), blocks, None), x[: 32 * 9].view(1, -1) @ weight.view(48, -1).T
    blocks = blocks_of(weight.view(48, 32, 3, 3), geometry)
    yield blocks.to_dense(), weight.view(48, 32, 3, 3)
    yield (
        convolve(x.view(1, 32, 5, 5), blocks, None, geometry),
        F.conv2d(x.view(1, 32, 5, 5), weight.view(48, 32, 3, 3), padding=1),
    )


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.05)


def _geometry(layer: nn.Conv2d) -> Geometry:
    assert not isinstance(layer.padding, str)
    return list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups


class Hooks:
    """True while a hook hangs on any layer of a network, such as a LoRA's.

    Compiled and recorded code would pass over it: nobody told them, when they were made.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places = [
            hooks for module in network.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def __bool__(self) -> bool:
        return any(self._places)
