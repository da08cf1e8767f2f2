"""The k-th draw of a picture is what diffusers would draw k-th."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom.diffusion.noise import PhiloxNoise, SeededNoise, _philox, centred, slerp

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


# --- the GPU's noise


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of Random123, the authors' own library
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_authors_answers(counter: str, key: str, words: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    given = np.array([[int(word, 16)] for word in counter.split()], np.uint32)
    assert [f"{word:08x}" for word in _philox(given, low | high << 32)[:, 0]] == words.split()


def test_philox_noise_is_what_cuda_draws() -> None:
    """torch.manual_seed(0); torch.randn(3, 4, device="cuda"), as published with A1111's definition."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert torch.allclose(PhiloxNoise(0, (3, 4))(0), torch.tensor(expected), rtol=0, atol=1e-7)


def test_philox_noise_is_a_function_of_seed_and_number() -> None:
    noise = PhiloxNoise(2**64 - 1, SHAPE)
    again = pickle.loads(pickle.dumps(noise))
    assert torch.equal(noise(3), again(3))
    assert not torch.equal(noise(3), noise(4))
    assert not torch.equal(noise(3), PhiloxNoise(2**32 - 1, SHAPE)(3))
    assert torch.equal(PhiloxNoise(7, SHAPE, before=(1,))(0), PhiloxNoise(7, SHAPE)(1))
    draws = torch.stack([PhiloxNoise(11, (4, 64, 64))(k) for k in range(4)])
    assert abs(float(draws.mean())) < 0.02
    assert abs(float(draws.std()) - 1) < 0.02
    assert draws.isfinite().all()
    with pytest.raises(ValueError, match="numbered from 0"):
        noise(-1)


# --- variations


def test_slerp_turns_each_column_along_the_great_circle() -> None:
    """By A1111's formula, in float64 and with plain loops; the ends, and variance kept on the way."""
    low, high = SeededNoise(1, SHAPE)(0), SeededNoise(2, SHAPE)(0)
    got = slerp(0.3, low, high)
    for c in range(SHAPE[0]):
        for w in range(SHAPE[2]):
            a, b = low[c, :, w].double().numpy(), high[c, :, w].double().numpy()
            omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            expected = (np.sin(0.7 * omega) * a + np.sin(0.3 * omega) * b) / np.sin(omega)
            assert np.allclose(got[c, :, w].numpy(), expected, atol=2e-6)
    assert torch.allclose(slerp(0.0, low, high), low, atol=1e-6)
    assert torch.allclose(slerp(1.0, low, high), high, atol=1e-6)
    assert torch.equal(slerp(0.5, low, low), low)
    wide = [SeededNoise(seed, (4, 64, 64))(0) for seed in (1, 2)]
    assert abs(float(slerp(0.5, wide[0], wide[1]).std()) - 1) < 0.02


@pytest.mark.parametrize(("size", "inner"), [((6, 8), (3, 4)), ((6, 8), (9, 11)), ((6, 8), (3, 13)), ((5, 5), (5, 5))])
def test_a_smaller_noise_stands_in_the_middle(size: tuple[int, int], inner: tuple[int, int]) -> None:
    """By A1111's rule, place by place: a noise that is larger is cut instead."""
    whole, small = SeededNoise(1, (2, *size))(0), SeededNoise(2, (2, *inner))(0)
    got = centred(small, whole)
    shift = [(outer - of) // 2 for outer, of in zip(size, inner, strict=True)]
    expected = whole.clone()
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = y - shift[0], x - shift[1]
            ends = [of + min(s, 0) for of, s in zip(inner, shift, strict=True)]
            if 0 <= v < ends[0] and 0 <= u < ends[1]:
                expected[:, y, x] = small[:, v, u]
    assert torch.equal(got, expected)
