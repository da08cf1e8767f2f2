"""LoRA in a compiled graph: the factors are inputs, so that adapters, their strengths and their rows come and go.

Each touched layer gets a side path, up(rows * down(x)). The adapters' factors lie side by side along the rank, padded
with zeros to one R for all layers; `rows` [N, R] holds the strength of each adapter's share in each row. Nothing is
compiled anew unless a new layer is touched, or R outgrows its power of two.

Shapes: N rows, r an adapter's rank, R the ranks together, O and I a layer's output and input width, k its kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Group, Update
from .library import openvino

ROWS = "lora.rows"
LEAST = 4


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
