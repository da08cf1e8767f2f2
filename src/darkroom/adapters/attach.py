"""Adapters on a network for the length of one call, each row of the batch with its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident, local
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, Scaled
from .updates import Update

Use = tuple[Update, float, Tensor | None]  # what is added, at which scale, to which rows (None: all of them)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The rows of a call (None: all) that have one adapter at one scale, and what it changes in the network."""

    updates: Mapping[str, Update]
    scale: float
    rows: tuple[int, ...] | None


_here = local()  # .groups: what this thread has attached at the moment, by the network's id


def attached_to(network: nn.Module) -> tuple[Group, ...]:
    """What this thread has attached to a network at the moment, for what runs it without calling its layers."""
    found: tuple[Group, ...] = getattr(_here, "groups", {}).get(id(network), ())
    return found


@contextmanager
def attached(network: nn.Module, part: str, rows: Sequence[Sequence[Scaled]]) -> Iterator[None]:
    """While this context lasts, row n of what the network is called with has the adapters `rows[n]`.

    Args:
        network: called with batches of len(rows) rows, dimension 0 of every layer's input.
        rows: each row's adapters; a single entry holds for all rows, however many come.
        part: which of an adapter's parts it is: "unet", "text_encoder".

    Forward hooks on the touched layers do it: no weight changes, other threads that use the network at the same time
    notice nothing, and nothing remains afterwards, whatever happened inside.
    """
    groups = _groups(part, rows)
    uses = _uses(groups, next((p.device for p in network.parameters()), torch.device("cpu")))
    thread = get_ident()
    before = getattr(_here, "groups", {})

    def hook(own: Sequence[Use]) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return _added(own, layer, inputs[0], output) if get_ident() == thread else None

        return add

    handles = []
    try:
        _here.groups = {**before, id(network): (*before.get(id(network), ()), *groups)}
        for path, own in uses.items():
            handles.append(network.get_submodule(path).register_forward_hook(hook(own)))
        yield
    finally:
        _here.groups = before
        for handle in handles:
            handle.remove()


def _added(uses: Sequence[Use], layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    for update, scale, rows in uses:
        if rows is None:
            output = output + update(layer, x, scale)
        else:
            output = output.index_add(0, rows, update(layer, x[rows], scale))
    return output


def combined(scaled: Sequence[Scaled], part: str) -> dict[Adapter, float]:
    """The strength of each adapter that changes a network, in order; strengths of one named twice add up."""
    scales: dict[Adapter, float] = {}
    for use in scaled:
        if part in use.adapter.parts:
            scales[use.adapter] = scales.get(use.adapter, 0.0) + use.on(part)
    return {adapter: scale for adapter, scale in scales.items() if scale}


def _groups(part: str, rows: Sequence[Sequence[Scaled]]) -> tuple[Group, ...]:
    """Rows with the same adapter at the same scale are done together."""
    groups: dict[tuple[Adapter, float], list[int]] = {}
    for number, row in enumerate(rows):
        for use in combined(row, part).items():
            groups.setdefault(use, []).append(number)
    return tuple(
        Group(adapter.parts[part], scale, None if len(numbers) == len(rows) else tuple(numbers))
        for (adapter, scale), numbers in groups.items()
    )


def _uses(groups: Sequence[Group], device: torch.device) -> dict[str, list[Use]]:
    """What happens in each layer."""
    uses: dict[str, list[Use]] = {}
    for group in groups:
        chosen = None if group.rows is None else torch.tensor(group.rows, device=device)
        for path, update in group.updates.items():
            uses.setdefault(path, []).append((update, group.scale, chosen))
    return uses
