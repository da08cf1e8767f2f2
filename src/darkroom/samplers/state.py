"""What a sampler is: a pure function from one state to the next.

Samplers see x, sigma and a denoised answer, nothing else. All of them work in one coordinate system,
x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364, with s(t) = 1), in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Noise = Callable[[int], Tensor]
"""k -> the k-th unit-variance draw [C, H, W] of this picture; k = 0 is the starting noise, samplers draw from k = 1."""


@dataclass(frozen=True, slots=True)
class SamplerState:
    """The next question to the network, and what the solver remembers. Picklable at any moment."""

    x: Tensor  # [C, H, W] float32: where the network must look next; x = x0 + sigma * noise
    sigma: float  # its noise level, a host float (no device sync)
    interval: int = 0  # sigmas[interval] -> sigmas[interval + 1]
    evaluations: int = 0  # network evaluations so far; the key of the next noise draw
    memory: tuple[Any, ...] = ()  # the solver's own history


class Sampler(Protocol):
    """A frozen dataclass of options; it holds no state.

    `step` takes the denoised answer to the state's question and returns the next state. The picture is done when
    `state.interval == len(sigmas) - 1`; then `state.x` is the result.
    """

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState: ...
