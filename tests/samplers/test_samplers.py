"""Samplers on Gaussian data, where the denoised answer and the solution of the ODE are known in closed form.

For data of mean m and deviation s0 in every number, D(x, s) = m + s0^2 / (s0^2 + s^2) (x - m), and the ODE takes
x_T at s_T to m + (x_T - m) sqrt((s0^2 + s^2) / (s0^2 + s_T^2)).
"""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from darkroom.errors import RequestError
from darkroom.samplers import get, names
from darkroom.samplers.multistep import lagrange_integrals
from darkroom.samplers.state import Clip, SamplerState, Threshold

MEAN, DEVIATION = 0.7, 0.5
START, END = 8.0, 0.1


def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - MEAN)


def exact(x: torch.Tensor, sigma: float, after: float) -> torch.Tensor:
    return MEAN + (x - MEAN) * math.sqrt((DEVIATION**2 + after**2) / (DEVIATION**2 + sigma**2))


def no_noise(k: int) -> torch.Tensor:
    raise AssertionError(f"a deterministic sampler asked for draw {k}")


def log_levels(steps: int, start: float = START, end: float = END) -> list[float]:
    return [start * (end / start) ** (i / steps) for i in range(steps + 1)]


def even_levels(steps: int, start: float = START, end: float = END) -> list[float]:
    return [start + (end - start) * i / steps for i in range(steps + 1)]


def run(sampler, sigmas, x, noise=no_noise, exact_until=0):
    """The result and the number of evaluations. The first `exact_until` intervals end at the exact solution."""
    state, start = SamplerState(x, sigmas[0]), x
    while state.interval < len(sigmas) - 1:
        state = sampler.step(state, denoised(state.x, state.sigma), sigmas, noise)
        if not 0 < state.interval <= exact_until or state.sigma != sigmas[state.interval]:
            continue
        state = replace(state, x=exact(start, sigmas[0], state.sigma))
    return state.x, state.evaluations


# name, options, order of convergence, intervals of start-up that are given exactly, levels, steps at the coarsest
ORDERS = [
    ("euler", {}, 1, 0, log_levels, 64),
    ("ddim", {}, 1, 0, log_levels, 64),
    ("euler_ancestral", {"eta": 0.0}, 1, 0, log_levels, 64),
    ("heun", {}, 2, 0, log_levels, 32),
    ("dpm_2", {}, 2, 0, log_levels, 32),
    ("dpm_2_ancestral", {"eta": 0.0}, 2, 0, log_levels, 32),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, 0, log_levels, 32),
    ("dpmpp_sde", {"eta": 0.0}, 2, 0, log_levels, 32),
    ("dpmpp_2m", {}, 2, 0, log_levels, 32),
    ("dpmpp_2m", {"solver": "heun"}, 2, 0, log_levels, 32),
    ("dpmpp_2m", {"algorithm": "dpmsolver"}, 2, 0, log_levels, 32),
    # The published third-order multistep term lacks a factor 2: order 2 without it, 3 with.
    ("dpmpp_2m", {"order": 3, "lower_order_final": False}, 2, 2, log_levels, 64),
    ("dpmpp_2m", {"order": 3, "full_third_order": True, "lower_order_final": False}, 3, 2, log_levels, 64),
    ("dpmpp_2m", {"order": 3, "full_third_order": True, "algorithm": "dpmsolver"}, 3, 2, log_levels, 128),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2, 0, log_levels, 32),
    ("dpmpp_2s", {}, 2, 0, log_levels, 32),
    ("dpmpp_2s", {"solver": "heun"}, 2, 0, log_levels, 32),
    ("dpmpp_2s", {"order": 3, "solver": "heun"}, 3, 0, log_levels, 48),
    ("dpmpp_2s", {"order": 3, "solver": "heun", "algorithm": "dpmsolver"}, 3, 0, log_levels, 96),
    ("dpmpp_2s", {"order": 3, "solver": "heun", "algorithm": "sde-dpmsolver++", "eta": 0.0}, 3, 0, log_levels, 48),
    ("sa_solver", {"eta": 0.0, "lower_order_final": False}, 2, 1, log_levels, 64),
    (
        "sa_solver",
        {"eta": 0.0, "predictor_order": 2, "corrector_order": 3, "lower_order_final": False},
        *(3, 2, log_levels, 64),
    ),
    ("sa_solver", {"eta": 0.0, "predict_x0": False, "lower_order_final": False}, 2, 1, log_levels, 128),
    ("sa_solver", {"eta": 0.0, "predictor_order": 1, "corrector_order": 1}, 1, 0, log_levels, 64),
    ("dpmpp_3m_sde", {"eta": 0.0, "full_third_order": True}, 3, 2, log_levels, 64),
    ("lms", {"order": 1}, 1, 0, log_levels, 64),
    ("lms", {"order": 2}, 2, 1, log_levels, 64),
    ("lms", {"order": 3}, 3, 2, log_levels, 64),
    ("lms", {}, 4, 3, log_levels, 64),
    ("plms", {}, 2, 0, log_levels, 128),
    ("ipndm", {}, 4, 3, even_levels, 512),
    ("pndm", {}, 4, 0, even_levels, 512),
    ("uni_pc", {"lower_order_final": False}, 3, 2, log_levels, 32),
    ("uni_pc_bh2", {"order": 1, "lower_order_final": False}, 2, 0, log_levels, 32),
    ("uni_pc_bh2", {"lower_order_final": False}, 3, 2, log_levels, 32),
    ("uni_pc_bh2", {"order": 3, "lower_order_final": False}, 4, 3, log_levels, 32),
    ("uni_pc_bh2", {"predict_x0": False, "lower_order_final": False}, 3, 2, log_levels, 32),
    ("deis", {"order": 1}, 1, 0, log_levels, 64),
    ("deis", {}, 2, 1, log_levels, 64),
    ("deis", {"order": 3}, 3, 2, log_levels, 128),
]


@pytest.mark.parametrize(("name", "options", "order", "given", "levels", "steps"), ORDERS)
def test_order_of_convergence(name, options, order, given, levels, steps) -> None:
    x = torch.linspace(-3.0, 3.0, 6, dtype=torch.float64).reshape(1, 2, 3) * START + MEAN
    sampler, errors = get(name, **options), []
    for count in (steps, 2 * steps):
        got, _ = run(sampler, levels(count), x, exact_until=given)
        errors.append(float((got - exact(x, START, END)).abs().max()))
    assert errors[1] < 0.05
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


STOCHASTIC = {
    "euler": {"s_churn": 4.0},
    "euler_ancestral": {},
    "dpm_2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {},
    "dpmpp_2m_sde": {},
    "dpmpp_2m_sde_heun": {},
    "dpmpp_3m_sde": {},
    # Of order 2 diffusers draws the noise of two intervals anew at the second's end: the deviation comes out too small.
    "dpmpp_2s": {"algorithm": "sde-dpmsolver++", "order": 1},
    "sa_solver": {},
    "ddim": {"eta": 1.0},
    "ddpm": {},
}


def seeded(shape, seed=5):
    def noise(k: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1000 + k), dtype=torch.float64)

    return noise


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_right_distribution(name) -> None:
    shape, draws = (4, 100, 100), seeded((4, 100, 100))
    sigmas = log_levels(100, start=20.0, end=0.01)
    x = draws(0) * math.hypot(20.0, DEVIATION) + MEAN
    got, _ = run(get(name, **STOCHASTIC[name]), sigmas, x, draws)
    assert got.shape == shape
    # 40,000 numbers: the mean is known to 0.0025 and the deviation to 0.0018, one standard error each.
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(got.std()) == pytest.approx(math.hypot(DEVIATION, sigmas[-1]), rel=0.03)
    other, _ = run(get(name, **STOCHASTIC[name]), sigmas, x, seeded(shape, seed=6))
    assert float((got - other).abs().mean()) > 0.02  # noise was really used


@pytest.mark.parametrize(
    ("name", "options", "skeleton", "more"),
    [
        ("euler_ancestral", {"eta": 0.0}, "euler", {}),
        ("dpm_2_ancestral", {"eta": 0.0}, "dpm_2", {}),
        ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m", {}),
        ("dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_2m", {"order": 3, "solver": "heun", "lower_order_final": False}),
        ("dpmpp_sde", {"eta": 0.0}, "dpmpp_2s_ancestral", {"eta": 0.0}),
        ("ddim", {}, "euler", {}),
        ("lms", {"order": 1}, "euler", {}),
        ("deis", {"order": 1}, "euler", {}),
        ("dpmpp_2s", {"order": 1}, "euler", {}),
        ("ipndm", {"order": 1}, "euler", {}),
        ("dpmpp_2m", {"order": 1, "algorithm": "dpmsolver"}, "euler", {}),
    ],
)
def test_without_noise_or_memory_samplers_become_simpler_ones(name, options, skeleton, more) -> None:
    x = torch.linspace(-30.0, 30.0, 12, dtype=torch.float64).reshape(1, 3, 4)
    for sigmas in ([*log_levels(9), 0.0], log_levels(20)):
        got, _ = run(get(name, **options), sigmas, x)
        expected, _ = run(get(skeleton, **more), sigmas, x)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def every():
    return [*((name, {}) for name in names()), *STOCHASTIC.items(), ("pndm", {"prediction": "v_prediction"})]


@pytest.mark.parametrize(("name", "options"), every())
def test_pickled_between_any_two_steps(name, options) -> None:
    """The same picture, bit for bit, when sampler and state are written down and read again after every evaluation."""
    draws = {k: torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(40)}
    sigmas, sampler = [*log_levels(6), 0.0], get(name, **options)
    straight, evaluations = run(sampler, sigmas, draws[0] * START, draws.__getitem__)
    state = SamplerState(draws[0] * START, sigmas[0])
    for _ in range(evaluations):
        x = state.x.clone()
        following = sampler.step(state, denoised(state.x, state.sigma), sigmas, draws.__getitem__)
        assert torch.equal(state.x, x)  # a step changes nothing it was given
        sampler, state = pickle.loads(pickle.dumps((sampler, following)))
    assert state.interval == len(sigmas) - 1
    assert state.evaluations == evaluations
    assert straight.dtype == torch.float32
    assert torch.equal(state.x, straight)


@pytest.mark.parametrize("name", names())
def test_any_number_of_steps(name) -> None:
    """From one step up, ending at zero or above it, everything is finite and the last level is reached."""
    draws = seeded((1, 2, 2))
    for count in (1, 2, 3, 4, 16):
        for end in (0.0, 0.05):
            sigmas = [*log_levels(count, end=0.1)[:count], end]
            x, evaluations = run(get(name), sigmas, draws(0) * START, draws)
            assert torch.isfinite(x).all()
            assert count <= evaluations <= 4 * count


@pytest.mark.parametrize("name", ["dpmpp_2m", "uni_pc", "deis"])
def test_a_repeated_last_level_stands_still(name) -> None:
    sigmas = log_levels(20)
    x = torch.full((1, 1, 1), 9.0, dtype=torch.float64)
    options = {"lower_order_final": False}
    expected, _ = run(get(name, **options), sigmas, x)
    got, _ = run(get(name, **options), [*sigmas, sigmas[-1]], x)
    # UniPC's corrector still moves x when it sees the answer at the last level.
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_lagrange_integrals_are_exact_for_polynomials() -> None:
    nodes, start, end = [3.0, 5.0, 5.5, 9.0], 3.0, 1.2
    weights = lagrange_integrals(nodes, start, end)
    for power in range(4):
        exactly = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert sum(w * node**power for w, node in zip(weights, nodes, strict=True)) == pytest.approx(exactly, rel=1e-10)


def test_churn_asks_at_raised_levels_within_its_range() -> None:
    sigmas, draws = [8.0, 4.0, 2.0, 1.0, 0.0], seeded((1, 2, 2))
    sampler = get("euler", s_churn=1.0, s_tmin=1.5, s_tmax=5.0)
    state, asked = SamplerState(draws(0) * 8, 8.0), []
    while state.interval < 4:
        asked.append(state.sigma)
        state = sampler.step(state, denoised(state.x, state.sigma), sigmas, draws)
    assert asked == pytest.approx([8.0, 5.0, 2.5, 1.0])


def test_limits() -> None:
    x = torch.tensor([[[-4.0, -0.5, 0.25, 2.0]]])
    assert Clip(1.5)(x).tolist() == [[[-1.5, -0.5, 0.25, 1.5]]]
    assert Threshold(1.0, 10.0)(x).tolist() == [[[-1.0, -0.125, 0.0625, 0.5]]]
    assert Threshold(0.995, 1.0)(x).tolist() == [[[-1.0, -0.5, 0.25, 1.0]]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp_2m", {"order": 4}),
        ("dpmpp_2m", {"algorithm": "magic"}),
        ("dpmpp_2m", {"solver": "bh1"}),
        ("dpmpp_2m", {"algorithm": "sde-dpmsolver", "order": 3}),
        ("uni_pc", {"solver": "heun"}),
        ("uni_pc", {"order": 0}),
        ("deis", {"order": 4}),
        ("lms", {"order": 0}),
        ("ipndm", {"order": 5}),
        ("euler", {"eta": 0.5}),
    ],
)
def test_impossible_options(name, options) -> None:
    with pytest.raises(RequestError):
        get(name, **options)


def test_ipndm_is_diffusers_on_diffusers_own_levels() -> None:
    """diffusers' class has levels of its own (cos and sin, of audio models), and a network that answers with v."""
    from diffusers import IPNDMScheduler

    theirs = IPNDMScheduler()
    theirs.set_timesteps(9)
    alphas, betas = theirs.alphas.double(), theirs.betas.double()
    theirs.alphas, theirs.betas = alphas, betas
    theirs.set_begin_index(1)  # the first level is infinite
    sigmas = tuple((betas / alphas)[1:].tolist())
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).double() * sigmas[0]

    def answer(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.tanh(x / math.hypot(1.0, sigma)) / (1 + sigma)

    sampler, state, sample = get("ipndm"), SamplerState(x, sigmas[0]), x * alphas[1]
    for i, sigma in enumerate(sigmas[:-1], start=1):
        eps = (sample / alphas[i] - answer(sample / alphas[i], sigma)) / sigma
        v = (eps - betas[i] * sample) / alphas[i]
        sample = theirs.step(v, theirs.timesteps[i], sample).prev_sample
        state = sampler.step(state, answer(state.x, state.sigma), sigmas, no_noise)
    assert sigmas[-1] == 0.0
    torch.testing.assert_close(state.x, sample, rtol=1e-6, atol=1e-6)  # its levels are float32's
