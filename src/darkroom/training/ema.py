"""Averages of weights over training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, dict[str, Tensor]]  # by module and parameter


class Average:
    """A running average of networks' weights; what is no real number among them stays as it began.

    Its decay is `decay`, but (n + 1) / (n + 10) at step n while that is less: a young average forgets its beginning.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self._now = {n: m.state_dict() for n, m in modules.items()}
        self.weights: Weights = {n: {k: v.clone() for k, v in s.items()} for n, s in self._now.items()}

    def decay_at(self, step: int) -> float:
        """What the average keeps of itself at `step`, counted from 0."""
        return min(self.decay, (step + 1) / (step + 10))

    @torch.no_grad()
    def update(self, step: int, good: Tensor) -> None:
        """Take the weights after `step` in, if `good` (one boolean on their device) is true; nobody waits for it."""
        averages, weights = self._pairs()
        pull = good.float() * (1 - self.decay_at(step))
        torch._foreach_lerp_(averages, weights, [pull] * len(averages))

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on with a saved average's weights."""
        for name, tensors in self.weights.items():
            for key, tensor in tensors.items():
                tensor.copy_(weights[name][key])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The networks have the averaged weights meanwhile, and their own to the last bit afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages, and the weights they follow."""
        both = [(a, self._now[n][k]) for n, s in self.weights.items() for k, a in s.items() if a.is_floating_point()]
        return [a for a, _ in both], [v for _, v in both]

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(*self._pairs(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
