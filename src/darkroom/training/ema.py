"""Averages of weights over training: by a decay, or of any length, chosen after training (Karras et al. 2024, arXiv
2312.02696, sec. 3 and app. C).

A power-function average weighs the weights of time tau by tau^gamma, so that its width is always the same fraction of
the run, its relative length. Two of them, saved now and then, span a space in which those of all other lengths nearly
lie: the profile of the one that is wanted is put together of saved ones by least squares.

Times are steps, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import TrainingError
from . import state
from .parallel import local
from .recipe import LoopConfig

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


# --- lengths chosen after training


SNAPSHOTS = "snapshots"  # in a run's folder
_NAME = re.compile(r"step-(\d{9})\.pt")
Profile = tuple[float, float]  # the time at which an average was saved, and its relative length


def products(one: Sequence[Profile], other: Sequence[Profile]) -> NDArray[np.float64]:
    """The inner products [A, B] of profiles: the integral of p_a p_b, where p(tau) = (g + 1) tau^g / t^(g + 1) to t.

    With m = min(t_a, t_b): (g_a + 1) (g_b + 1) / (g_a + g_b + 1) m^(g_a + g_b + 1) / (t_a^(g_a + 1) t_b^(g_b + 1)).
    """
    ta, ga = (np.array([v], dtype=np.float64).T for v in zip(*((t, exponent(s)) for t, s in one), strict=True))
    tb, gb = (np.array([v], dtype=np.float64) for v in zip(*((t, exponent(s)) for t, s in other), strict=True))
    m = np.minimum(ta, tb)
    scale = (ga + 1) * (gb + 1) / (ga + gb + 1)
    return np.asarray(scale / m * (m / ta) ** (ga + 1) * (m / tb) ** (gb + 1))


def mixture(saved: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """The factors [A] by which the `saved` averages add up to the one nearest to the `wanted` one."""
    factors, *_ = np.linalg.lstsq(products(saved, saved), products(saved, [wanted])[:, 0], rcond=1e-12)
    return np.asarray(factors)


def save_snapshot(run: Path, step: int, averages: Mapping[float, Mapping[str, Mapping[str, Tensor]]]) -> None:
    """Keep averages, by their lengths, in float16; whole or not at all. Raises TrainingError if the disk is full."""
    half = {
        length: {n: {k: v.half() if v.is_floating_point() else v for k, v in s.items()} for n, s in weights.items()}
        for length, weights in averages.items()
    }
    folder = run / SNAPSHOTS
    folder.mkdir(parents=True, exist_ok=True)
    state.write(folder / f"step-{step:09d}.pt", {"step": step, "averages": half})


def average_of_length(run: Path, length: float, last: int) -> Weights:
    """The power-function average of relative `length` in (0, 0.28) out of a run's snapshots up to step `last`.

    Raises TrainingError where there are too few.
    """
    files = sorted(p for p in (run / SNAPSHOTS).glob("step-*.pt") if _NAME.fullmatch(p.name) and _time(p) <= last)
    if len(files) < 2:
        raise TrainingError(
            f"{run} has {len(files)} snapshots up to step {last}, and an average of another length needs 2 or more; "
            "set ema_lengths=0.05,0.1 and snapshot_every from the start"
        )
    # Files are mapped, not read: what is in memory at a time is one tensor of each.
    opened = [_averages(path) for path in files]
    saved = [(_time(path), s) for path, averages in zip(files, opened, strict=True) for s in averages]
    factors = mixture([(float(t), float(s)) for t, s in saved], (float(_time(files[-1])), length))
    parts = [averages[s] for averages in opened for s in averages]
    made: Weights = {}
    for name, tensors in parts[-1].items():
        made[name] = {}
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                made[name][key] = tensor.clone()
                continue
            total = torch.zeros(tensor.shape)
            for factor, part in zip(factors, parts, strict=True):
                total.add_(part[name][key].float(), alpha=float(factor))
            made[name][key] = total
    return made


def _averages(path: Path) -> Mapping[float, Weights]:
    """What `save_snapshot` wrote. Raises TrainingError."""
    found = state.read(path, mmap=True).get("averages")
    if not found or not state.are_averages(found):
        raise TrainingError(f"{path} is no snapshot of ours; delete it")
    averages: Mapping[float, Weights] = found
    return averages


def result(run: Path, config: LoopConfig | None = None) -> dict[str, Any]:
    """The checkpoint that a run's result is made from: the newest, or the best; its "ema" of the length that is wanted.

    `config` says which (`best`, `ema_length`); None: what the checkpoint's own recipe says. Raises TrainingError.
    """
    saved = state.load_last(run)
    if saved is None:
        raise TrainingError(f"{run} holds no checkpoint; train first")
    best = config.best if config is not None else saved["recipe"].get("best", False)
    length = config.ema_length if config is not None else saved["recipe"].get("ema_length", 0.0)
    if best:
        saved = state.load_best(run)
    if length:
        saved["ema"] = average_of_length(run, length, saved["step"])
    return saved


def _time(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
