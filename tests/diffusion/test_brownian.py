"""Brownian noise: k-diffusion's, by torchsde itself, with the processor's random numbers and with the GPU's."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch

from darkroom.diffusion.brownian import BrownianNoise
from darkroom.diffusion.noise import PhiloxNoise, SeededNoise, first_draw
from darkroom.errors import RequestError
from darkroom.samplers import entries, get
from darkroom.samplers.state import Stochastic

SHAPE, SEED = (4, 6, 5), 3
SIGMAS = (14.6, 5.2, 1.7, 0.6, 0.03, 0.0)


def noise(sampler: str, kind: Any = SeededNoise) -> BrownianNoise:
    made = get(sampler)
    assert isinstance(made, Stochastic)
    rest = SeededNoise(SEED, SHAPE)
    return BrownianNoise(SEED, SHAPE, (0.03, 14.6), made.spans(SIGMAS), rest, partial(first_draw, kind))


def theirs(monkeypatch: pytest.MonkeyPatch, kind: Any = SeededNoise) -> Any:
    """k-diffusion's noise sampler: (sigma, next) -> noise; A1111 gives torchsde its own random numbers."""
    torchsde = pytest.importorskip("torchsde")
    module = torchsde._brownian.brownian_interval
    monkeypatch.setattr(module, "_randn", lambda size, dtype, device, seed: kind(int(seed), tuple(size))(0))
    tree = torchsde.BrownianTree(torch.tensor(0.03), torch.zeros(SHAPE), torch.tensor(14.6), entropy=SEED)

    def noise_of(sigma: float, after: float) -> torch.Tensor:
        low, high = torch.tensor(after), torch.tensor(sigma)
        return -tree(low, high) / (high - low).sqrt()

    return noise_of


@pytest.mark.parametrize("kind", [SeededNoise, PhiloxNoise])
def test_one_draw_an_interval_is_torchsdes(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, got = theirs(monkeypatch, kind), noise("dpmpp_2m_sde", kind)
    assert torch.equal(got(0), SeededNoise(SEED, SHAPE)(0))
    for k in (3, 1, 2, 4):  # in any order
        torch.testing.assert_close(got(k), expected(SIGMAS[k - 1], SIGMAS[k]), rtol=0, atol=2e-5)
    assert torch.equal(pickle.loads(pickle.dumps(got))(2), got(2))


def test_the_two_draws_of_dpmpp_sde_make_its_overlapping_increments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step of k-diffusion's: its second noise spans the interval, and is made of both of ours."""
    expected, got = theirs(monkeypatch), noise("dpmpp_sde")
    sigma, after = SIGMAS[1], SIGMAS[2]
    middle = (sigma * after) ** 0.5
    share = (sigma - middle) / (sigma - after)
    torch.testing.assert_close(got(3), expected(sigma, middle), rtol=0, atol=2e-5)
    whole = got(3) * share**0.5 + got(4) * (1 - share) ** 0.5
    torch.testing.assert_close(whole, expected(sigma, after), rtol=0, atol=2e-5)


def test_the_samplers_that_follow_a_path_are_known() -> None:
    stochastic = [row.id for row in entries() if isinstance(made := get(row.id), Stochastic) and made.spans(SIGMAS)]
    assert stochastic == [row.id for row in entries() if row.draws == "brownian"]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.diffusion.brownian.has_torchsde", lambda: False)
    with pytest.raises(RequestError, match="torchsde, which makes Brownian paths, is not installed"):
        noise("dpmpp_sde", kind=torch.Tensor)  # a kind that no other test has: modules are kept
