"""Each scaling is the algebra of the model's own coordinates."""

import math

import pytest
import torch

from darkroom.diffusion.scalings import X0, Epsilon, Flow, V, scaling_for

LEVELS = [1e-4, 0.029, 0.5, 1.0, 14.6, 700.0, 4500.0]
ALL = [Epsilon(), V(), X0(), Flow()]


def own_coordinates(scaling, sigma):
    """(signal, noise) share of what the network was trained on."""
    if isinstance(scaling, Flow):
        return 1 / (1 + sigma), sigma / (1 + sigma)
    return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)


def own_answer(scaling, x0, noise, signal, share):
    """What the perfect network answers, by its papers' definitions."""
    if isinstance(scaling, Epsilon):
        return noise
    if isinstance(scaling, V):
        return signal * noise - share * x0
    return x0 if isinstance(scaling, X0) else noise - x0


def own_x0(scaling, z, output, signal, share):
    """x0 from the network's answer at z, by its papers' formulas."""
    if isinstance(scaling, Epsilon):
        return (z - share * output) / signal
    if isinstance(scaling, V):
        return signal * z - share * output
    return output if isinstance(scaling, X0) else z - share * output


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_what_diffusers_conditions_by(sigma, prediction, tensors):
    from diffusers import EDMEulerScheduler

    x0, noise, output = tensors
    peer = EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction)
    scaling = scaling_for({"epsilon": "edm"}.get(prediction, prediction), 0.7)
    x = x0 + sigma * noise
    torch.testing.assert_close(scaling.c_in(sigma) * x, peer.precondition_inputs(x, sigma))
    denoised = scaling.c_skip(sigma) * x + scaling.c_out(sigma) * output
    torch.testing.assert_close(denoised, peer.precondition_outputs(x, output, sigma))
    level = torch.full((2, 1, 1, 1), sigma, dtype=torch.float64)
    torch.testing.assert_close(peer.precondition_outputs(x, scaling.target(x0, noise, level), sigma), x0)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("scaling", ALL, ids=lambda s: type(s).__name__)
def test_any_output_means_the_same_in_both_coordinates(scaling, sigma, tensors):
    x0, noise, output = tensors
    x = x0 + sigma * noise
    signal, share = own_coordinates(scaling, sigma)
    z = scaling.c_in(sigma) * x
    torch.testing.assert_close(z, signal * x0 + share * noise, rtol=1e-12, atol=1e-12)
    denoised = scaling.c_skip(sigma) * x + scaling.c_out(sigma) * output
    torch.testing.assert_close(denoised, own_x0(scaling, z, output, signal, share), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("scaling", ALL, ids=lambda s: type(s).__name__)
def test_target_is_the_perfect_answer(scaling, sigma, tensors):
    x0, noise, _ = tensors
    target = scaling.target(x0, noise, sigma)
    torch.testing.assert_close(target, own_answer(scaling, x0, noise, *own_coordinates(scaling, sigma)))
    x = x0 + sigma * noise
    general = (x0 - scaling.c_skip(sigma) * x) / scaling.c_out(sigma)
    torch.testing.assert_close(target, general, rtol=1e-6, atol=1e-9)  # what cancels at small sigma, in float64


@pytest.mark.parametrize("scaling", ALL, ids=lambda s: type(s).__name__)
def test_tensors_and_floats_agree(scaling):
    rows = torch.tensor(LEVELS, dtype=torch.float64)
    for name in ("c_skip", "c_out", "c_in"):
        f = getattr(scaling, name)
        assert f(rows).tolist() == pytest.approx([f(s) for s in LEVELS], rel=1e-14)
        assert f(rows.float()).tolist() == pytest.approx([f(s) for s in LEVELS], rel=1e-6)


@pytest.mark.parametrize("scaling", ALL, ids=lambda s: type(s).__name__)
def test_one_level_a_row(scaling, tensors):
    x0, noise, _ = tensors
    sigma = torch.tensor([0.1, 7.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    target = scaling.target(x0, noise, sigma)
    for i, s in enumerate((0.1, 7.0)):
        torch.testing.assert_close(target[i], scaling.target(x0[i], noise[i], s))


@pytest.mark.parametrize("scaling", [V(), X0(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sigma", [1000.0, 4500.0])
def test_float32_is_enough_at_the_top(scaling, sigma, tensors):
    """x is thousands there; the perfect answer still gives the picture back to six digits."""
    x0, noise, _ = (t.float() for t in tensors)
    x = x0 + sigma * noise
    denoised = scaling.c_skip(sigma) * x + scaling.c_out(sigma) * scaling.target(x0, noise, sigma)
    torch.testing.assert_close(denoised, x0, rtol=0, atol=4e-6)


def test_by_prediction_type():
    for name, kind in (("epsilon", Epsilon), ("v_prediction", V), ("sample", X0), ("flow", Flow)):
        assert isinstance(scaling_for(name), kind)
