"""Guidance on denoised predictions equals guidance on the network's outputs."""

import math
import pickle

import pytest
import torch

from darkroom.diffusion.condition import Condition, Timeline
from darkroom.diffusion.guidance import ClassifierFree, Unguided
from darkroom.diffusion.scalings import X0, Epsilon, Flow, V
from darkroom.errors import RequestError

POSITIVE, NEGATIVE = Condition(torch.ones(2, 3)), Condition(torch.zeros(2, 3))


def outputs():
    generator = torch.Generator().manual_seed(0)
    x, positive, negative = (torch.randn(4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, positive + 0.3, negative


@pytest.mark.parametrize("scaling", [Epsilon(), V(), X0(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 4096.0])
def test_it_is_guidance_and_rescale_of_the_networks_output(scaling, rescale, sigma):
    noise, positive, negative = outputs()
    x = sigma * noise

    def denoised(output):
        return scaling.c_skip(sigma) * x + scaling.c_out(sigma) * output

    # Lin et al. 2023, eq. 14 to 16, on the output, as in diffusers' rescale_noise_cfg.
    guided = negative + 7.5 * (positive - negative)
    rescaled = guided * positive.std() / guided.std()
    expected = denoised(rescale * rescaled + (1 - rescale) * guided)

    guidance = ClassifierFree(POSITIVE, NEGATIVE, 7.5, rescale=rescale, scaling=scaling)
    assert guidance.branches(sigma) == (POSITIVE, NEGATIVE)
    answer = guidance.combine((denoised(positive), denoised(negative)), x, sigma)
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-7)


def test_rescale_brings_the_deviation_back():
    x, positive, negative = outputs()
    guidance = ClassifierFree(POSITIVE, NEGATIVE, 12.0, rescale=1.0, scaling=Epsilon())
    answer = guidance.combine((x - 2 * positive, x - 2 * negative), x, 2.0)
    assert ((x - answer) / 2).std() == pytest.approx(positive.std())


def test_rescale_is_per_picture_in_a_batch():
    x, positive, negative = outputs()
    guidance = ClassifierFree(POSITIVE, NEGATIVE, 5.0, rescale=0.7, scaling=V())
    pairs = [(positive, negative), (negative * 3, positive)]
    together = guidance.combine([torch.stack(b) for b in zip(*pairs, strict=True)], torch.stack([x, x]), 3.0)
    for row, pair in zip(together, pairs, strict=True):
        torch.testing.assert_close(row, guidance.combine(pair, x, 3.0))


def test_a_constant_output_stays_finite():
    zero = torch.zeros(4, 8, 8)
    guidance = ClassifierFree(POSITIVE, NEGATIVE, 5.0, rescale=0.7, scaling=Epsilon())
    assert torch.equal(guidance.combine((zero, zero), zero, 3.0), zero)


@pytest.mark.parametrize("scale", [1.0, 0.0, 0.5])
def test_without_guidance_one_branch_is_asked(scale):
    guidance = ClassifierFree(POSITIVE, NEGATIVE, scale, rescale=0.7, scaling=Epsilon())
    assert guidance.branches(3.0) == (POSITIVE,)
    x, answer, _ = outputs()
    assert torch.equal(guidance.combine((answer,), x, 3.0), answer)


def test_the_interval_is_open_below_and_closed_above():
    guidance = ClassifierFree(POSITIVE, NEGATIVE, 4.0, interval=(0.5, 2.0))
    asked = {sigma: len(guidance.branches(sigma)) for sigma in (0.1, 0.5, 0.51, 2.0, 2.01, 14.6)}
    assert asked == {0.1: 1, 0.5: 1, 0.51: 2, 2.0: 2, 2.01: 1, 14.6: 1}
    x, positive, negative = outputs()
    assert torch.equal(guidance.combine((positive,), x, 14.6), positive)
    torch.testing.assert_close(guidance.combine((positive, negative), x, 1.0), 4 * positive - 3 * negative)


def test_unguided():
    guidance = Unguided(POSITIVE)
    assert guidance.branches(1.0) == (POSITIVE,)
    x, answer, _ = outputs()
    assert guidance.combine((answer,), x, 1.0) is answer


def test_they_pickle():
    guidance = pickle.loads(pickle.dumps(ClassifierFree(POSITIVE, NEGATIVE, 4.0, 0.5, (0.1, 3.0), V())))
    assert (guidance.scale, guidance.rescale, guidance.interval) == (4.0, 0.5, (0.1, 3.0))
    assert torch.equal(guidance.positive.text, POSITIVE.text)
    x, positive, negative = outputs()
    before = ClassifierFree(POSITIVE, NEGATIVE, 4.0, 0.5, scaling=V()).combine((positive, negative), x, 1.0)
    assert torch.equal(guidance.combine((positive, negative), x, 1.0), before)
    assert torch.equal(pickle.loads(pickle.dumps(Unguided(POSITIVE))).condition.text, POSITIVE.text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": math.inf}, "scale is inf"),
        ({"rescale": 1.5}, "rescale is 1.5"),
        ({"rescale": math.nan}, "rescale is nan"),
        ({"interval": (2.0, 1.0)}, r"interval is \(2.0, 1.0\)"),
        ({"interval": (-1.0, 1.0)}, "interval"),
        ({"interval": (0.0, math.nan)}, "interval"),
    ],
)
def test_nonsense(options, words):
    with pytest.raises(RequestError, match=words):
        ClassifierFree(POSITIVE, NEGATIVE, **{"scale": 7.5, **options})


def test_rescale_needs_to_know_what_the_output_means():
    with pytest.raises(ValueError, match="scaling"):
        ClassifierFree(POSITIVE, NEGATIVE, 7.5, rescale=0.7)


def test_a_timeline_changes_its_condition_with_the_noise_level() -> None:
    first, second, last = (Condition(torch.full((1, 2), float(i))) for i in range(3))
    timeline = Timeline(((5.0, first), (1.0, second), (0.0, last)))
    assert [timeline.at(sigma) for sigma in (9.0, 5.1, 5.0, 1.5, 1.0, 0.1, 0.0)] == [
        first, first, second, second, last, last, last,
    ]  # fmt: skip
    always = Condition(torch.zeros(1, 2))
    guidance = ClassifierFree(timeline, always, 3.0)
    assert guidance.branches(5.0) == (second, always)
    assert Unguided(timeline).branches(6.0) == (first,)
