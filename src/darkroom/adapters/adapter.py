"""An adapter, one file's changes to the layers of a model's networks: asked for, attached for a call, or merged.

`Lora` is what a user asks for (a file and strengths, nothing read yet), `Adapter` the file's changes, `Scaled` one at
its strength. `attached` lets them act for the length of one call, each row of the batch with its own; `Merged` adds
them to the weights themselves, so that nothing is left to do in a call, and undoing is exact.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import get_ident, local
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..accelerate.fp8 import round_anew
from ..errors import RequestError
from ..kernels.exact import paired
from ..request import MAX_LORA_SCALE, real
from .updates import Update

Use = tuple[Update, float, Tensor | None]  # what is added, at which scale, to which rows (None: all of them)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, and how strongly it acts: 1 as it was trained, 0 not at all, below 0 the opposite.

    Args:
        path: kohya's, diffusers', PEFT's or LyCORIS' file, or "embedded:NAME" for one of the embedded model's.
        scale: -100 to 100, on all networks.
        text_scale: on the text encoders, where that differs.
        allow_unmatched: leave out what fits no layer of the model, instead of refusing the file.
    """

    path: str | Path
    scale: float = 1.0
    text_scale: float | None = None
    allow_unmatched: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path) or not str(self.path) or "\0" in str(self.path):
            raise RequestError(f"a LoRA's path is {str(self.path)[:60]!r}; give the name of a file")
        limit = MAX_LORA_SCALE
        object.__setattr__(self, "scale", real("a LoRA's scale", self.scale, -limit, limit))
        if self.text_scale is not None:
            object.__setattr__(self, "text_scale", real("a LoRA's text_scale", self.text_scale, -limit, limit))


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Changes by network ("unet", "text_encoder", ...) and by the layer's native name. Picklable."""

    parts: Mapping[str, Mapping[str, Update]]
    name: str = ""  # for people, and in recipes: the file's stem
    hash: str = field(default_factory=lambda: secrets.token_hex(32))  # 64 hexadecimal digits: the file's SHA-256
    metadata: Mapping[str, str] = field(default_factory=dict)  # ss_*, modelspec.* and what else the file says
    unmatched: tuple[str, ...] = ()  # keys of the file that found no home and were allowed to
    words: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)  # learned words that come with it: [n, D]s

    def to(self, device: torch.device | str) -> Adapter:
        """The same with its factors on a device."""
        moved = {part: {path: u.to(device) for path, u in updates.items()} for part, updates in self.parts.items()}
        return replace(self, parts=moved)

    def __repr__(self) -> str:
        kinds = Counter(update.kind for updates in self.parts.values() for update in updates.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"Adapter({self.name!r}, {self.hash[:12]}: {counts})"


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """An adapter at the strength it is asked for. Strength 0 is as if it were not there."""

    adapter: Adapter
    scale: float = 1.0  # on the U-Net
    text_scale: float = 1.0  # on the text encoders

    def on(self, part: str) -> float:
        """The strength for a network."""
        return self.scale if part == "unet" else self.text_scale


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
            seen = x.index_select(0, paired(rows))
            if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):  # convolutions look at that
                seen = seen.contiguous(memory_format=torch.channels_last)
            output = output.clone().index_add_(0, rows, update(layer, seen, scale)[: len(rows)])  # in its own layout
    return output


def combined(scaled: Sequence[Scaled], part: str) -> dict[Adapter, float]:
    """The strength of each adapter that changes a network, in order; strengths of one named twice add up."""
    scales: dict[Adapter, float] = {}
    for use in scaled:
        if part in use.adapter.parts:
            scales[use.adapter] = scales.get(use.adapter, 0.0) + use.on(part)
    return {adapter: scale for adapter, scale in scales.items() if scale}


def _groups(part: str, rows: Sequence[Sequence[Scaled]]) -> tuple[Group, ...]:
    """Rows with the same adapter at the same scale are done together, where it is as many-th of theirs.

    So a row's are added in its own order: sums of floats depend on that.
    """
    groups: dict[tuple[int, Adapter, float], list[int]] = {}
    for number, row in enumerate(rows):
        for place, (adapter, scale) in enumerate(combined(row, part).items()):
            groups.setdefault((place, adapter, scale), []).append(number)
    return tuple(
        Group(adapter.parts[part], scale, None if len(numbers) == len(rows) else tuple(numbers))
        for (_, adapter, scale), numbers in sorted(groups.items(), key=lambda group: group[0][0])
    )


def _uses(groups: Sequence[Group], device: torch.device) -> dict[str, list[Use]]:
    """What happens in each layer."""
    uses: dict[str, list[Use]] = {}
    for group in groups:
        chosen = None if group.rows is None else torch.tensor(group.rows, device=device)
        for path, update in group.updates.items():
            uses.setdefault(path, []).append((update, group.scale, chosen))
    return uses


class Merged:
    """Adds adapters to the weights of networks; `undo` (or leaving the context) brings every bit back.

    The touched weights are kept on the side, so memory holds them twice until then. No call may run meanwhile.

    Args:
        networks: by the adapters' part names ("unet", "text_encoder"); their weights change in place.
        scaled: the adapters. Each one's difference is reckoned in float32 from the original weight, and they add up.
    """

    def __init__(self, networks: Mapping[str, nn.Module], scaled: Sequence[Scaled]) -> None:
        self.scaled = tuple(scaled)
        self._kept: list[tuple[nn.Module, str, Tensor]] = []  # a layer, its parameter's name, and what that was
        self._networks = tuple(networks.values())
        try:
            for part, network in networks.items():
                self._merge(part, network)
                round_anew(network)
        except BaseException:
            self.undo()
            raise

    @torch.no_grad()
    def _merge(self, part: str, network: nn.Module) -> None:
        differences: dict[str, list[Tensor]] = {}
        adapters = combined(self.scaled, part)
        for path in dict.fromkeys(path for adapter in adapters for path in adapter.parts[part]):
            layer = network.get_submodule(path)
            assert isinstance(layer.weight, Tensor)
            for adapter, scale in adapters.items():
                if (update := adapter.parts[part].get(path)) is None:
                    continue
                if (delta := update.difference(layer.weight, scale)) is not None:
                    differences.setdefault("weight", []).append(delta)
                if update.bias is not None:
                    differences.setdefault("bias", []).append(scale * update.bias.float())
            for name, deltas in differences.items():
                parameter = layer.get_parameter(name)
                self._kept.append((layer, name, parameter.detach().clone()))
                parameter.copy_(parameter.float() + sum(deltas))
            differences.clear()

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original weights back, bit for bit. Nothing happens the second time."""
        while self._kept:
            layer, name, before = self._kept[-1]
            layer.get_parameter(name).copy_(before)  # asked for again: a packed layer's is another one by now
            self._kept.pop()
        for network in self._networks:
            round_anew(network)

    def __enter__(self) -> Merged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
