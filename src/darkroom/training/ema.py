"""Averages of weights over training: by a decay, or by a power of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .parallel import local

Weights = dict[str, dict[str, Tensor]]  # by module and parameter


def plain(decay: float) -> Callable[[int], float]:
    """`decay`, but (n + 1) / (n + 10) at step n while that is less: a young average forgets its beginning."""
    return lambda step: min(decay, (step + 1) / (step + 10))


def power(length: float) -> Callable[[int], float]:
    """(1 - 1 / t)^(gamma + 1) at step t, counted from 1 (Karras et al. 2024, arXiv 2312.02696, sec. 3.1)."""
    gamma = exponent(length)
    return lambda step: float((1 - 1 / (step + 1)) ** (gamma + 1))


def exponent(length: float) -> float:
    """The gamma of a profile tau^gamma whose standard deviation is `length` times the run, above 0 and below 0.288.

    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2 (the same paper, sec. 3.1 and alg. 2).
    """
    if not 0 < length < 12**-0.5:
        raise ValueError(f"length is {length}; it must be above 0 and below 0.288")
    t = length**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class Average:
    """A running average of networks' weights; what is no real number among them stays as it began.

    `keeps` says what it keeps of itself at a step, counted from 0.
    """

    def __init__(self, modules: Mapping[str, nn.Module], keeps: Callable[[int], float]) -> None:
        self.keeps = keeps
        self._now = {n: {k: local(v) for k, v in m.state_dict().items()} for n, m in modules.items()}
        self.weights: Weights = {n: {k: v.clone() for k, v in s.items()} for n, s in self._now.items()}

    @torch.no_grad()
    def update(self, step: int, good: Tensor) -> None:
        """Take the weights after `step` in, if `good` (one boolean on their device) is true; nobody waits for it."""
        averages, weights = self._pairs()
        pull = good.float() * (1 - self.keeps(step))
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
