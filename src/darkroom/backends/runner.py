"""Runs a network's methods by OpenVINO on the processor: graphs, the network's weights in them, compiled, called.

LoRA in a compiled graph: the factors are inputs, so that adapters, their strengths and their rows come and go. Each
touched layer gets a side path, up(rows * down(x)). The adapters' factors lie side by side along the rank, padded with
zeros to one R for all layers; `rows` [N, R] holds the strength of each adapter's share in each row. Nothing is compiled
anew unless a new layer is touched, or R outgrows its power of two.

Shapes: N rows, r an adapter's rank, R the ranks together, O and I a layer's output and input width, k its kernel.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Group, Update, attached_to
from .convert import Method, core, graph_of, openvino

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
SMALL = 256 << 20  # bytes of weights up to which a network is compiled for single shapes: a quarter faster, in half a
# second; in a large one the products outweigh what a known shape saves, and each copy has the weights once more
OFTEN = 50  # calls of one shape that are worth compiling for it
SHARE = 8  # one part of so many of the machine's memory may hold a network's compiled copies beyond the second
ROWS = "lora.rows"
LEAST = 4  # of R

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Compiled:
    """A compiled graph with the inputs it has, and what its memory is borrowed from."""

    request: Any
    names: frozenset[str]
    weights: Sequence[Tensor]
    lent: Mapping[str, Tensor] = field(default_factory=dict)  # the LoRA factors that are set
    adapters: tuple[int, ...] = ()  # and whose they are


class Runner:
    """What one network has compiled. One call at a time: OpenVINO has all threads of it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._layers: list[nn.Module] = []  # all modules of the network
        self._graphs: dict[str, Any] = {}  # by the method's name, without weights
        self._known: dict[str, frozenset[str]] = {}  # and the names of their inputs
        self._compiled: OrderedDict[object, _Compiled] = OrderedDict()  # the latest last
        self._seen: dict[str, set[str]] = {}  # layers that adapters have touched, by method
        self._calls: Counter[object] = Counter()
        self._weights: Sequence[Tensor] = ()  # as they were compiled: kept, they stay the same ones (`models.packed`)
        self._stamp: object = None
        self._bytes = 0
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[type[Runner], tuple[()]]:
        return Runner, ()  # a copy of a network compiles its own

    def __call__(
        self, network: nn.Module, kind: Callable[[Any], nn.Module], method: Method, inputs: Mapping[str, Tensor]
    ) -> list[Tensor] | None:
        """The method's answers for a network's weights as they are now, in their dtype; None: do it natively.

        `kind` is the native class, made of `network.config` to be traced. Adapters that are attached are obeyed.
        """
        groups = attached_to(network)
        self._layers = self._layers or list(network.modules())
        # `network.parameters()`, in a tenth of the time
        weights = [weight for layer in self._layers for weight in layer._parameters.values() if weight is not None]
        if (reason := self._hindrance(network, weights, groups, inputs)) is not None:
            if reason not in self._warned:
                self._warned.add(reason)
                log.warning("%s: torch does it, not OpenVINO", reason)
            return None
        with self._lock:
            self._forget_old_weights(weights)
            if method.name not in self._graphs:
                self._graphs[method.name] = graph_of(kind, network.config, method)
                self._known[method.name] = _names(self._graphs[method.name])
            return self._run(network, method, dict(inputs), groups)

    def _hindrance(
        self, network: nn.Module, weights: Sequence[Tensor], groups: Sequence[Group], inputs: Mapping[str, Tensor]
    ) -> str | None:
        """Why OpenVINO can't do it, if it can't."""
        if weights[0].device.type != "cpu" or weights[0].dtype not in HINTS:
            return f"weights are {weights[0].dtype} on {weights[0].device}"
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*weights, *inputs.values())):
            return "gradients are asked for"
        if not expressible(groups, network):
            return "an adapter is attached that isn't plain LoRA (merge it, and it is in the weights)"
        hooks = sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in self._layers)
        if hooks != len({path for group in groups for path in group.updates}):
            return "hooks are on the layers"
        return None

    def _forget_old_weights(self, weights: Sequence[Tensor]) -> None:
        """Compile anew when weights have changed: a merged LoRA, another dtype."""
        stamp = [(weight.data_ptr(), weight._version) for weight in weights]
        if stamp != self._stamp:
            self._compiled.clear()
            self._stamp, self._weights = stamp, weights
            self._bytes = sum(weight.nbytes for weight in weights)

    def _run(
        self, network: nn.Module, method: Method, inputs: dict[str, Tensor], groups: Sequence[Group]
    ) -> list[Tensor]:
        layout = layout_of(groups, self._known[method.name], self._seen.get(method.name, ()))
        if layout is not None:
            self._seen[method.name] = set(layout.paths)
            inputs[ROWS] = strengths(groups, layout, len(next(iter(inputs.values()))))
        compiled = self._compiled_for(network, method, inputs, layout)
        adapters = tuple(id(group.updates) for group in groups)
        if layout is not None and compiled.adapters != adapters:
            compiled.lent = factors(groups, layout, network)
            compiled.adapters = adapters
            for name, tensor in compiled.lent.items():
                compiled.request.set_tensor(name, openvino().Tensor(tensor.numpy(), shared_memory=True))
        given = {name: _plain(tensor) for name, tensor in inputs.items() if name in compiled.names}
        for name, array in given.items():
            compiled.request.set_tensor(name, openvino().Tensor(array, shared_memory=True))
        compiled.request.infer()
        dtype = self._weights[0].dtype
        return [torch.from_numpy(np.array(output.data)).to(dtype) for output in compiled.request.output_tensors]

    def _compiled_for(
        self, network: nn.Module, method: Method, inputs: Mapping[str, Tensor], layout: Layout | None
    ) -> _Compiled:
        """The graph compiled for these shapes, or for all: see SMALL and OFTEN."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())
        threads = torch.get_num_threads()
        every, one = (method.name, layout, threads), (method.name, layout, threads, shapes)
        key: object = every
        if self._bytes <= SMALL:
            self._calls[one] += 1
            first = not any(isinstance(other, tuple) and other[:3] == every for other in self._compiled)
            if one in self._compiled or first or self._calls[one] > OFTEN:
                key = one
        if key not in self._compiled:
            while len(self._compiled) >= max(_memory() // SHARE // self._bytes, 2) or len(self._compiled) >= 32:
                self._compiled.popitem(last=False)
            self._compiled[key] = self._compile(network, method, dict(shapes) if key is one else {}, layout, threads)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _compile(
        self,
        network: nn.Module,
        method: Method,
        shapes: Mapping[str, Sequence[int]],
        layout: Layout | None,
        threads: int,
    ) -> _Compiled:
        library = openvino()
        graph = self._graphs[method.name].clone()
        if layout is not None:
            add_side_paths(graph, layout, network)
        weights = {name: weight.detach().contiguous() for name, weight in network.named_parameters()}
        for parameter in list(graph.get_parameters()):
            (name,) = parameter.output(0).get_names()
            if name in weights:
                parameter.output(0).replace(_constant(weights[name]))
                graph.remove_parameter(parameter)
            elif name in shapes:
                parameter.set_partial_shape(library.PartialShape(list(shapes[name])))
        graph.validate_nodes_and_infer_types()
        hint = HINTS[next(iter(weights.values())).dtype]
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        request = core().compile_model(graph, "CPU", options).create_infer_request()
        return _Compiled(request, _names(graph), list(weights.values()))


def _names(graph: Any) -> frozenset[str]:
    """Of a graph's inputs."""
    return frozenset(name for parameter in graph.get_parameters() for name in parameter.output(0).get_names())


def _constant(weight: Tensor) -> Any:
    """A weight in its own memory as the output of a node, in float32."""
    library = openvino()
    if weight.dtype == torch.float32:
        tensor = library.Tensor(weight.numpy(), shared_memory=True)
        return library.op.Constant(tensor, shared_memory=True).output(0)
    bits = weight.view(torch.int16).numpy()
    tensor = library.Tensor(bits, library.Shape(list(weight.shape)), library.Type.bf16)
    return library.opset15.convert(library.op.Constant(tensor, shared_memory=True), "f32").output(0)


def _plain(tensor: Tensor) -> Any:
    """A tensor as an array that OpenVINO takes: float32 or a whole number, its rows one after another."""
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous().numpy()


def _memory() -> int:
    """Bytes of the machine."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 << 30


# LoRA in a graph: the layout of its factors, and the values of its inputs.


@dataclass(frozen=True, slots=True)
class Layout:
    """The layers that have a side path, and R."""

    paths: tuple[str, ...]
    rank: int


def expressible(groups: Sequence[Group], network: nn.Module) -> bool:
    """Whether adapters are plain LoRA on linear and convolution layers: no DoRA, LoHa, LoKr, full change or bias."""
    return all(
        update.kind == "lora"
        and update.magnitude is None
        and update.bias is None
        and isinstance(layer := network.get_submodule(path), nn.Linear | nn.Conv2d)
        and getattr(layer, "groups", 1) == 1
        for group in groups
        for path, update in group.updates.items()
    )


def layout_of(groups: Sequence[Group], known: Iterable[str], seen: Iterable[str]) -> Layout | None:
    """What the adapters need of a graph whose weights are `known`, beside the layers `seen` before; None: nothing."""
    touched = {path for group in groups for path in group.updates if f"{path}.weight" in known}
    if not touched:
        return None
    rank = max(sum(_rank(group) for group in groups), LEAST)
    return Layout(tuple(sorted(touched.union(seen))), 1 << (rank - 1).bit_length())


def _rank(group: Group) -> int:
    return max(_pair(update)[0].shape[0] for update in group.updates.values())


def _pair(update: Update) -> tuple[Tensor, Tensor]:
    """down [r, I, *k] and up [O, r, ...]; a core between them (CP decomposition) goes into down."""
    down, up, mid = update.factors["down"].float(), update.factors["up"].float(), update.factors.get("mid")
    return (down if mid is None else torch.einsum("rskl, si -> rikl", mid.float(), down[:, :, 0, 0])), up


def add_side_paths(graph: Any, layout: Layout, network: nn.Module) -> None:
    """Give the layers of a graph (its weights still inputs) their side paths, and the graph their inputs."""
    library = openvino()
    op = library.opset15
    weights = {name: parameter for parameter in graph.get_parameters() for name in parameter.output(0).get_names()}
    rows = _parameter(ROWS, [-1, layout.rank])
    added = [rows]
    for path in layout.paths:
        layer = network.get_submodule(path)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        (into,) = weights[f"{path}.weight"].output(0).get_target_inputs()
        node = into.get_node()
        down = _parameter(f"{path}.down", [layout.rank, *weight.shape[1:]])
        up = _parameter(f"{path}.up", [len(weight), layout.rank, *[1] * (weight.ndim - 2)])
        added += [down, up]
        followers = list(node.output(0).get_target_inputs())
        if isinstance(layer, nn.Conv2d):
            by_row = op.unsqueeze(rows, op.constant([2, 3]))  # [N, R, 1, 1]
            places = [node.get_attributes()[name] for name in ("strides", "pads_begin", "pads_end", "dilations")]
            inner = op.convolution(node.input_value(0), down, *places)
            side = op.convolution(op.multiply(inner, by_row), up, [1, 1], [0, 0], [0, 0], [1, 1])
        else:
            axes = list(range(1, node.output(0).get_partial_shape().rank.get_length() - 1))
            by_row = op.unsqueeze(rows, op.constant(axes)) if axes else rows  # [N, 1, R], [N, R] for a time's layer
            inner = op.matmul(node.input_value(0), down, False, True)
            side = op.matmul(op.multiply(inner, by_row), up, False, True)
        together = op.add(node, side)
        for follower in followers:
            follower.replace_source_output(together.output(0))
    graph.add_parameters(added)


def _parameter(name: str, shape: Sequence[int]) -> Any:
    library = openvino()
    parameter = library.op.Parameter(library.Type.f32, library.PartialShape(list(shape)))
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def factors(groups: Sequence[Group], layout: Layout, network: nn.Module) -> Mapping[str, Tensor]:
    """The side paths' inputs but for `rows`: what changes only with the adapters themselves."""
    given: dict[str, Tensor] = {}
    for path in layout.paths:
        weight: Tensor = network.get_submodule(path).weight  # type: ignore[assignment]
        down = torch.zeros(layout.rank, *weight.shape[1:])
        up = torch.zeros(len(weight), layout.rank, *[1] * (weight.ndim - 2))
        start = 0
        for group in groups:
            if path in group.updates:
                update = group.updates[path]
                a, b = _pair(update)
                down[start : start + len(a)] = a
                up[:, start : start + len(a)] = update.factor * b
            start += _rank(group)
        given |= {f"{path}.down": down, f"{path}.up": up}
    return given


def strengths(groups: Sequence[Group], layout: Layout, count: int) -> Tensor:
    """`rows` [N, R] for a call of N rows."""
    rows = torch.zeros(count, layout.rank)
    start = 0
    for group in groups:
        chosen = slice(None) if group.rows is None else list(group.rows)
        rows[chosen, start : start + _rank(group)] = group.scale
        start += _rank(group)
    return rows
