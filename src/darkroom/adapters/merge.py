"""Adapters added to the weights themselves: nothing is left to do in a call, and undoing is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from ..accelerate.fp8 import round_anew
from .adapter import Scaled
from .attach import combined


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
