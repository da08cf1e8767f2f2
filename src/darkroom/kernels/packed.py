"""A network's layers on a processor, with weights in the form in which oneDNN multiplies fastest.

oneDNN multiplies by blocks of its own. An ordinary layer's weights are cut into them anew in every call, or go to a
BLAS that is slow on some processors. Here they are cut once. A packed layer holds its weight in that form only; whoever
asks for its parameters is given one made of the blocks, with the same bits, until the next call:

    unet(x, t, text)        # packs what it can, see `ready`
    unet.mid.resnet1.conv1  # a PackedConv2d
    unet.state_dict()       # all weights; the layer stays packed
    unet.mid.resnet1.conv1.weight.mul_(2)  # the blocks are of no use any more: the weight answers, and is packed anew

Any number of threads may call a network, look at it and copy it at once, from its first call on: at every moment a
layer has blocks that are its weight's, or its weight. To change weights is no thread's right while others draw.

Shapes: N pictures, H W height and width, I O a layer's inputs and outputs, k its kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache, partial
from threading import Lock
from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn
from torch._C import _get_tracing_state
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.compiler import is_compiling

from ..errors import RequestError
from . import winograd
from .exact import exact
from .heap import keep_freed_memory

ORDINARY = (nn.Linear, nn.Conv2d)  # and no class made of them: that has a form of its own
NARROW = 16  # channels below which a convolution of several pixels is not worth packing
SIZE = 64  # height and width for which convolutions are packed
UNSETTLED = 48  # multiples of so many outputs: their blocks fit one size of picture, and are cut anew for others
_lock, _packing = Lock(), Lock()  # what a layer is, for a moment; what is packed
_forked = False  # whether threads have been lost

Geometry = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups


class Form:
    """What a packed layer's weight has become."""

    __slots__ = ("_known", "blocks", "dtype", "squares")

    def __init__(self, blocks: Tensor, weight: Tensor) -> None:
        self.blocks, self.dtype = blocks, blocks.dtype
        self.squares: Any = None  # what `winograd` multiplies by, from the first picture on for which it is faster
        self.know(weight)

    def know(self, weight: Tensor) -> None:
        """These are the blocks of a weight as it is now. One assignment: other threads see all of it or nothing."""
        self._known: tuple[ReferenceType[Tensor], tuple[object, ...]] = ref(weight), stamp(weight)

    def weight(self) -> Tensor | None:
        """The weight itself, while anybody keeps it."""
        return self._known[0]()

    def holds(self) -> bool:
        """Whether the weight is still what was packed."""
        origin, before = self._known
        weight = origin()
        return weight is None or stamp(weight) == before


def stamp(weight: Tensor) -> tuple[object, ...]:
    """What changes when a weight does."""
    return weight._version, weight.data_ptr(), weight.dtype, weight.device, weight.requires_grad


class _Parameters(dict[str, Any]):
    """A packed layer's `_parameters`: the weight is made when somebody looks, and whoever writes finds an ordinary
    layer. What torch asks of such a dictionary, and so every way to a module's parameters, goes through here."""

    def __init__(self, layer: nn.Module, others: Mapping[str, Any]) -> None:
        super().__init__({"weight": None, **others})
        self._layer = ref(layer)

    def _plain(self) -> dict[str, Any]:
        """The dictionary of the layer made ordinary."""
        layer = self._layer()
        if layer is None:
            return dict(super().items())
        unpack(layer)
        found: dict[str, Any] = layer.__dict__["_parameters"]
        return found

    def __getitem__(self, name: str) -> Any:
        layer = self._layer()
        return super().__getitem__(name) if name != "weight" or layer is None else _shown(layer)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def __iter__(self) -> Iterator[str]:  # which also tells dict() and ** not to pass us by
        return iter(list(super().keys()))

    def copy(self) -> dict[str, Any]:
        return {name: self[name] for name in self}

    def items(self) -> Any:
        return self.copy().items()

    def values(self) -> Any:
        return self.copy().values()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def __setitem__(self, name: str, value: Any) -> None:
        self._plain()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._plain()[name]

    def pop(self, *arguments: Any) -> Any:
        return self._plain().pop(*arguments)

    def popitem(self) -> Any:
        return self._plain().popitem()

    def clear(self) -> None:
        self._plain().clear()

    def update(self, *arguments: Any, **others: Any) -> None:
        self._plain().update(*arguments, **others)

    def setdefault(self, *arguments: Any) -> Any:
        return self._plain().setdefault(*arguments)


class Packed(nn.Module):
    """What packed layers share: their weight lies in `_form`, and in no parameter."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy is an ordinary layer."""
        state = self.__dict__.copy()
        for name in ("_form", "_kept"):
            state.pop(name, None)
        state["_parameters"] = dict(state["_parameters"].items())
        return _empty, (_PLAIN.get(type(self), type(self)),), state


def _empty(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def form_for(layer: nn.Module, x: Tensor) -> Form | None:
    """What of a packed layer can answer x; None: its weight has to.

    No method, and no attribute: another thread may have made the layer an ordinary one a moment ago.
    """
    form: Form | None = layer.__dict__.get("_form")
    if form is None or is_grad_enabled() or x.dtype != form.dtype or _written_down():
        return None
    return form if form.holds() else None


def _bias(layer: nn.Module) -> Tensor | None:
    """What `layer.bias` is, without torch's search for it, which takes longer than all of `form_for`."""
    found = dict.get(layer.__dict__["_parameters"], "bias", layer)
    bias: Tensor | None = layer.bias if found is layer else found
    return bias


class PackedLinear(Packed, nn.Linear):
    """`nn.Linear` on blocks: [..., I] -> [..., O]."""

    def forward(self, x: Tensor) -> Tensor:
        form = form_for(self, x)
        return nn.Linear.forward(self, x) if form is None else multiply(x, form.blocks, _bias(self))


class PackedPointwise(Packed, nn.Conv2d):
    """A convolution that is a linear layer on every pixel; oneDNN is slow to see that. [N, I, H, W] -> [N, O, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        form = form_for(self, x)
        if form is None:
            return nn.Conv2d.forward(self, x)
        return multiply(x.permute(0, 2, 3, 1), form.blocks, _bias(self)).permute(0, 3, 1, 2)


class PackedConv2d(Packed, nn.Conv2d):
    """`nn.Conv2d` on blocks: [N, I, H, W] -> [N, O, H', W'], with the channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        form = form_for(self, x)
        return nn.Conv2d.forward(self, x) if form is None else _convolved(self, x, self.padding, form)


def _convolved(layer: nn.Conv2d, x: Tensor, padding: Any, form: Form) -> Tensor:
    """A convolution's answer to x with so many zeros around it, down and across."""
    geometry = _geometry(layer)
    usual = layer.kernel_size == (3, 3) and geometry[1:] == ([1, 1], [1, 1], 1) and padding in ((0, 0), (1, 1))
    if not usual or not winograd.is_faster(x, layer.out_channels):
        return convolve(x, form.blocks, _bias(layer), (list(padding), *geometry[1:]))
    squares = form.squares
    if squares is None:
        parts = winograd.transformed(form.blocks.to_dense())
        squares = form.squares = [[partial(multiply, blocks=blocks_of(w)) for w in column] for column in parts]
    return winograd.convolve(x, squares, layer.out_channels, _bias(layer), padding[0])


_PLAIN: dict[type[Any], type[nn.Module]] = {
    PackedLinear: nn.Linear,
    PackedPointwise: nn.Conv2d,
    PackedConv2d: nn.Conv2d,
}


def ready(network: nn.Module, x: Tensor) -> Tensor:
    """Pack a network that is to answer x [N, I, H, W] or [N, ...], where that is faster; x as it will best read it.

    It is without gradients, on a CPU with oneDNN, for weights in float32 or bfloat16 that are frozen. Raises
    RequestError in a process that was forked from one whose threads have computed: it would wait for them for ever.
    """
    if _forked:
        raise RequestError(
            "this process was forked from one that had drawn with several threads, which are not here; start it with "
            'multiprocessing.get_context("spawn"), or fork before the first picture'
        )
    _watch_forks()
    if torch.is_grad_enabled() or x.device.type != "cpu" or network.training:
        return x
    if _written_down():
        return x
    return x.contiguous(memory_format=torch.channels_last) if pack(network) and x.ndim == 4 else x


@cache
def _watch_forks() -> None:
    """From now on, notice a fork: networks have been used in this process."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=_lose_threads)


def _lose_threads() -> None:
    global _forked
    _forked = torch.get_num_threads() > 1


def _written_down() -> bool:
    """Whether somebody writes down what is computed, which should hold the weights."""
    return is_compiling() or _get_tracing_state() is not None


def pack(network: nn.Module) -> bool:
    """Pack all layers of a network that gain by it; whether there are any. Quick where nothing has changed.

    A layer that was unpacked, or whose weight somebody has changed in place, is packed anew; one whose weight somebody
    has only looked at keeps it no longer.
    """
    layers: list[Any] | None = network.__dict__.get("_packable")
    if layers is None:
        compiled = any(module._compiled_call_impl is not None for module in network.modules())
        layers = [] if compiled else [m for m in network.modules() if isinstance(m, ORDINARY)]
        network.__dict__["_packable"] = layers  # torch's compiler packs by itself
    done = False
    for layer in layers:
        form = layer.__dict__.get("_form")
        if form is not None and not form.holds():
            unpack(layer)
        elif form is not None:
            layer.__dict__.pop("_kept", None)
        done = _packed(layer) or (type(layer) in ORDINARY and _pack(layer)) or done
    return done


def unpadded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution answers to x that is padded already; packed or not."""
    if isinstance(layer, PackedPointwise):
        return PackedPointwise.forward(layer, x)
    if isinstance(layer, PackedConv2d) and (form := form_for(layer, x)) is not None:
        return _convolved(layer, x, (0, 0), form)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride)


def weight_of(layer: Any) -> Tensor:
    """A layer's weight [O, I, *k], to look at only: of a packed layer a copy that nobody keeps."""
    form = layer.__dict__.get("_form")
    if form is None or form.weight() is not None or torch.is_grad_enabled():
        return layer.weight  # type: ignore[no-any-return]
    return _dense(layer, form)


def _dense(layer: Any, form: Form) -> Tensor:
    weight: Tensor = form.blocks.to_dense()
    return weight[:, :, None, None] if weight.ndim == 2 and isinstance(layer, nn.Conv2d) else weight


def _shown(layer: Any) -> Any:
    """A layer's weight: the one that somebody has kept, else one of equal bits, which is kept to the next call."""
    with _lock:
        form = layer.__dict__.get("_form")
        if form is None:
            return layer.__dict__["_parameters"]["weight"]
        weight = form.weight()
        if weight is None:
            with torch.inference_mode(False):  # whatever the caller is in, the weight is to be used everywhere
                weight = nn.Parameter(_dense(layer, form), requires_grad=False)
            form.know(weight)
        layer.__dict__["_kept"] = weight
        return weight


def unpack(layer: Any) -> None:
    """Make a packed layer an ordinary one: with the same parameter if somebody has kept it, else one of equal bits."""
    if not _packed(layer):
        return
    weight = _shown(layer)
    with _lock:
        if not _packed(layer):
            return
        others = layer.__dict__["_parameters"]
        # The weight first: another thread that is calling the layer finds it, or blocks, at every moment. For its sake
        # dictionaries are exchanged whole, too.
        layer.__dict__["_parameters"] = {name: weight if name == "weight" else others[name] for name in others}
        layer.__class__ = _PLAIN[type(layer)]
        for name in ("_form", "_kept"):
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
    with _packing:  # threads that come to a new network at once: one packs, and the others find that done
        if _packed(layer):
            return True
        before = stamp(weight)
        blocks = blocks_of(weight, _geometry(layer)) if kind is PackedConv2d else blocks_of(weight.flatten(1))
        with _lock:
            own = layer.__dict__["_parameters"]
            if own.get("weight") is not weight or stamp(weight) != before:
                return False  # somebody has changed it meanwhile; the next call looks again
            layer.__dict__["_form"] = Form(blocks, weight)
            # First: another thread that is calling the layer finds a weight at every moment.
            layer.__class__ = kind
            layer.__dict__["_parameters"] = _Parameters(layer, {name: p for name, p in own.items() if name != "weight"})
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
