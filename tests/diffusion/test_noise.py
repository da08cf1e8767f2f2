"""The k-th draw of a picture is what diffusers would draw k-th."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom.diffusion.noise import SeededNoise

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers and numpy 2
SHAPE = (4, 8, 6)


def test_the_first_draw_is_diffusers_initial_latent():
    from diffusers.utils.torch_utils import randn_tensor

    generators = [torch.Generator("cpu").manual_seed(s) for s in (7, 8, 9)]
    theirs = randn_tensor((3, *SHAPE), generator=generators, dtype=torch.float32)
    for row, seed in zip(theirs, (7, 8, 9), strict=True):
        assert torch.equal(SeededNoise(seed, SHAPE)(0), row)


def test_later_draws_are_those_of_diffusers_ancestral_sampler():
    """With a network that answers 0, each of its steps adds nothing but noise."""
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

    generator = torch.Generator("cpu").manual_seed(5)
    noise = SeededNoise(5, SHAPE)
    assert torch.equal(torch.randn((1, *SHAPE), generator=generator)[0], noise(0))
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(6)
    x = torch.zeros(1, *SHAPE)
    for k, t in enumerate(scheduler.timesteps[:-1], start=1):
        high, low = scheduler.sigmas[k - 1].double(), scheduler.sigmas[k].double()
        up = float((low**2 * (high**2 - low**2) / high**2).sqrt())
        scheduler.scale_model_input(x, t)
        after = scheduler.step(torch.zeros_like(x), t, x, generator=generator).prev_sample
        torch.testing.assert_close(after[0], x[0] + up * noise(k), rtol=1e-4, atol=1e-4 * up)
        x = after


@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_any_order_gives_the_same_draws(seed, order):
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = [torch.randn(1, *SHAPE, generator=generator)[0] for _ in range(13)]
    noise = SeededNoise(seed, SHAPE)
    for k in order:
        assert torch.equal(noise(k), draws[k])


def test_going_on_costs_one_draw_each(monkeypatch):
    noise, drawn = SeededNoise(1, SHAPE), []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(1) or randn(*a, **k))
    for k in range(50):
        noise(k)
        noise(k)
    assert len(drawn) == 50


def test_it_pickles_in_the_middle():
    noise = SeededNoise(3, SHAPE)
    noise(4)
    again = pickle.loads(pickle.dumps(noise))
    assert (again.seed, again.shape) == (3, SHAPE)
    assert torch.equal(again(5), noise(5))
    assert torch.equal(again(0), noise(0))
    assert len(pickle.dumps(noise)) < 200


def test_draws_are_the_callers_own():
    noise = SeededNoise(3, SHAPE)
    noise(2).zero_()
    assert noise(2).std() == pytest.approx(1, abs=0.2)


def test_draws_are_independent_unit_normals():
    draws = torch.stack([SeededNoise(11, (4, 64, 64))(k) for k in (0, 1, 2)]).flatten(1)
    covariance = draws @ draws.T / draws.shape[1]
    torch.testing.assert_close(covariance, torch.eye(3), rtol=0, atol=0.04)


def test_global_seeds_are_not_touched():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SeededNoise(99, SHAPE)(3)
    assert torch.equal(torch.rand(3), expected)


def test_no_draw_before_the_first():
    with pytest.raises(ValueError, match="numbered from 0"):
        SeededNoise(0, SHAPE)(-1)
