"""What a network's output means: denoised = c_skip * x + c_out * network(c_in * x, t), with x = x0 + sigma * noise.

Karras et al. 2022 (arXiv 2206.00364), eq. 7. Three of their four numbers are here; the fourth, c_noise, is what the
network is told, `Schedule.told(Schedule.sigma_to_t(sigma))`. A variance-preserving network wants
x / sqrt(1 + sigma^2) = sqrt(a) x0 + sqrt(1 - a) noise, and sigma / sqrt(1 + sigma^2) = sqrt(1 - a).

sigma is a positive float or a float tensor; coefficients come back as what sigma was.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


class Scaling(Protocol):
    """The meaning of a network's output F: D = c_skip x + c_out F, where F was asked at c_in x."""

    def c_skip(self, sigma: Level) -> Level: ...
    def c_out(self, sigma: Level) -> Level: ...
    def c_in(self, sigma: Level) -> Level: ...
    def target(self, x0: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        """What the perfect network answers at x0 + sigma noise: (x0 - c_skip x) / c_out, without its cancellation.

        x0, noise [..., C, H, W]; sigma a float, or a tensor that broadcasts against them ([N, 1, 1, 1]).
        """
        ...


def _root(sigma: Level, data: float = 1.0) -> Level:
    """sqrt(data^2 + sigma^2), accurate at both ends."""
    if isinstance(sigma, Tensor):
        return torch.hypot(torch.full_like(sigma, data), sigma)
    return math.hypot(data, sigma)


class Epsilon:
    """The network predicts the noise (Ho et al. 2020, arXiv 2006.11239): x0 = x - sigma eps."""

    def c_skip(self, sigma: Level) -> Level:
        return sigma * 0 + 1

    def c_out(self, sigma: Level) -> Level:
        return -sigma

    def c_in(self, sigma: Level) -> Level:
        return 1 / _root(sigma)

    def target(self, x0: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        return noise


class EDM:
    """The network predicts F of Karras et al. 2022 (arXiv 2206.00364, table 1): x of unit variance in, and out."""

    def __init__(self, sigma_data: float = 0.5, sign: float = 1.0) -> None:
        """`sigma_data`: the deviation of the clean pictures; `sign` -1: the network predicts -F."""
        self.sigma_data = sigma_data
        self.sign = sign

    def c_skip(self, sigma: Level) -> Level:
        data = self.sigma_data * self.sigma_data
        return data / (data + sigma * sigma)

    def c_out(self, sigma: Level) -> Level:
        return sigma * self.sign * self.sigma_data / _root(sigma, self.sigma_data)

    def c_in(self, sigma: Level) -> Level:
        return 1 / _root(sigma, self.sigma_data)

    def target(self, x0: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        data, sign = self.sigma_data, self.sign
        return (sigma * x0 * (sign / data) - noise * (sign * data)) / _root(sigma, data)


class V(EDM):
    """The network predicts v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans and Ho 2022, arXiv 2202.00512, app. D): -F of
    pictures of unit variance.
    """

    def __init__(self) -> None:
        super().__init__(1.0, -1.0)


class X0:
    """The network predicts the clean picture itself (diffusers' "sample")."""

    def c_skip(self, sigma: Level) -> Level:
        return sigma * 0

    def c_out(self, sigma: Level) -> Level:
        return sigma * 0 + 1

    def c_in(self, sigma: Level) -> Level:
        return 1 / _root(sigma)

    def target(self, x0: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        return x0


class Flow:
    """The network predicts the velocity noise - x0 at (1 - s) x0 + s noise, s = sigma / (1 + sigma).

    Rectified flow (Liu et al. 2022, arXiv 2209.03003): x0 = x_s - s F, and x_s = x / (1 + sigma).
    """

    def c_skip(self, sigma: Level) -> Level:
        return 1 / (1 + sigma)

    def c_out(self, sigma: Level) -> Level:
        return -sigma / (1 + sigma)

    def c_in(self, sigma: Level) -> Level:
        return 1 / (1 + sigma)

    def target(self, x0: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        return noise - x0


_BY_PREDICTION: dict[str, type[Scaling]] = {"epsilon": Epsilon, "v_prediction": V, "sample": X0, "flow": Flow}


def scaling_for(prediction_type: str, sigma_data: float | None = None) -> Scaling:
    """The scaling of a `Schedule.prediction_type`; `sigma_data`: of an EDM model."""
    if sigma_data is not None:
        return EDM(sigma_data, 1.0 if prediction_type == "edm" else -1.0)
    return _BY_PREDICTION[prediction_type]()
