"""Guidance on denoised predictions equals guidance on the network's outputs."""

import math
import pickle

import pytest
import torch

from darkroom.diffusion.condition import Condition, Timeline
from darkroom.diffusion.guidance import (
    ClassifierFree,
    Perturbed,
    Projected,
    Rescaled,
    Thresholded,
    TwoConditions,
    Unguided,
    Within,
)
from darkroom.diffusion.scalings import X0, Epsilon, Flow, V
from darkroom.diffusion.schedule import Schedule
from darkroom.errors import RequestError

SCHEDULE = Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
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

    guidance = Rescaled(ClassifierFree(POSITIVE, NEGATIVE, 7.5), rescale, scaling)
    assert guidance.branches(sigma) == (POSITIVE, NEGATIVE)
    answer = guidance.combine((denoised(positive), denoised(negative)), x, sigma)
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-7)


def test_rescale_brings_the_deviation_back():
    x, positive, negative = outputs()
    guidance = Rescaled(ClassifierFree(POSITIVE, NEGATIVE, 12.0), 1.0, Epsilon())
    answer = guidance.combine((x - 2 * positive, x - 2 * negative), x, 2.0)
    assert ((x - answer) / 2).std() == pytest.approx(positive.std())


def test_rescale_is_per_picture_in_a_batch():
    x, positive, negative = outputs()
    guidance = Rescaled(ClassifierFree(POSITIVE, NEGATIVE, 5.0), 0.7, V())
    pairs = [(positive, negative), (negative * 3, positive)]
    together = guidance.combine([torch.stack(b) for b in zip(*pairs, strict=True)], torch.stack([x, x]), 3.0)
    for row, pair in zip(together, pairs, strict=True):
        torch.testing.assert_close(row, guidance.combine(pair, x, 3.0))


def test_a_constant_output_stays_finite():
    zero = torch.zeros(4, 8, 8)
    guidance = Rescaled(ClassifierFree(POSITIVE, NEGATIVE, 5.0), 0.7, Epsilon())
    assert torch.equal(guidance.combine((zero, zero), zero, 3.0), zero)


@pytest.mark.parametrize("scale", [1.0, 0.0, 0.5])
def test_without_guidance_one_branch_is_asked(scale):
    guidance = Rescaled(ClassifierFree(POSITIVE, NEGATIVE, scale), 0.7, Epsilon())
    assert guidance.branches(3.0) == (POSITIVE,)
    x, answer, _ = outputs()
    assert torch.equal(guidance.combine((answer,), x, 3.0), answer)


def test_the_interval_is_open_below_and_closed_above():
    guidance = Within(ClassifierFree(POSITIVE, NEGATIVE, 4.0), (0.5, 2.0))
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
    inner = Perturbed(ClassifierFree(POSITIVE, NEGATIVE, 4.0), 3.0, adaptive=0.001, schedule=SCHEDULE)
    guidance = Within(Thresholded(Projected(Rescaled(inner, 0.5, V())), 0.9), (0.1, 3.0))
    again = pickle.loads(pickle.dumps(guidance))
    assert torch.equal(again.branches(1.0)[0].text, POSITIVE.text)
    x, positive, negative = outputs()
    answers = (positive, negative, 0.5 * positive)
    assert torch.equal(again.combine(answers, x, 1.0), guidance.combine(answers, x, 1.0))
    assert torch.equal(pickle.loads(pickle.dumps(Unguided(POSITIVE))).condition.text, POSITIVE.text)


INNER = ClassifierFree(POSITIVE, NEGATIVE, 7.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClassifierFree(POSITIVE, NEGATIVE, math.nan), "scale is nan"),
        (lambda: ClassifierFree(POSITIVE, NEGATIVE, math.inf), "scale is inf"),
        (lambda: TwoConditions(POSITIVE, NEGATIVE, NEGATIVE, 7.5, math.nan), "image guidance scale is nan"),
        (lambda: Perturbed(INNER, math.inf), "perturbed-attention guidance is inf"),
        (lambda: Rescaled(INNER, 1.5, V()), "rescale is 1.5"),
        (lambda: Rescaled(INNER, math.nan, V()), "rescale is nan"),
        (lambda: Projected(INNER, -0.5), "is -0.5"),
        (lambda: Thresholded(INNER, 99.5), "threshold is 99.5"),
        (lambda: Thresholded(INNER, 0.9, 2.0), "mimicked part of guidance is 2.0"),
        (lambda: Within(INNER, (2.0, 1.0)), r"interval is \(2.0, 1.0\)"),
        (lambda: Within(INNER, (-1.0, 1.0)), "interval"),
        (lambda: Within(INNER, (0.0, math.nan)), "interval"),
    ],
)
def test_nonsense(make, words):
    with pytest.raises(RequestError, match=words):
        make()


def test_an_adaptive_scale_needs_the_schedule():
    with pytest.raises(ValueError, match="schedule"):
        Perturbed(INNER, 3.0, adaptive=0.001)


def test_an_edit_is_guided_by_both_its_conditions():
    conditions = [Condition(torch.full((1, 2), float(i))) for i in range(3)]
    x, both, picture = outputs()
    neither = both.flip(-1)
    guidance = TwoConditions(*conditions, 7.5, 1.5)
    assert guidance.branches(3.0) == tuple(conditions)
    answer = guidance.combine((both, picture, neither), x, 3.0)
    torch.testing.assert_close(answer, 7.5 * both + (1.5 - 7.5) * picture + (1 - 1.5) * neither)
    for scales in ((1.0, 1.5), (7.5, 0.9), (0.0, 0.0)):
        alone = TwoConditions(*conditions, *scales)
        assert alone.branches(3.0) == (conditions[0],)
        assert torch.equal(alone.combine((both,), x, 3.0), both)


def test_the_perturbed_branch_is_the_prompts_with_its_attention_taken_away():
    x, positive, negative = outputs()
    perturbed = positive.roll(1)
    guidance = Perturbed(ClassifierFree(POSITIVE, NEGATIVE, 4.0), 3.0, ("mid", "up.0"))
    asked = guidance.branches(2.0)
    assert asked[:2] == (POSITIVE, NEGATIVE)
    assert asked[2].text is POSITIVE.text
    assert asked[2].identity == ("mid", "up.0")
    answer = guidance.combine((positive, negative, perturbed), x, 2.0)
    torch.testing.assert_close(answer, negative + 4 * (positive - negative) + 3 * (positive - perturbed))
    alone = Perturbed(Unguided(POSITIVE), 3.0)
    assert [c.identity for c in alone.branches(2.0)] == [(), ("mid",)]
    torch.testing.assert_close(alone.combine((positive, perturbed), x, 2.0), 4 * positive - 3 * perturbed)


def test_a_scale_of_nothing_asks_and_changes_nothing():
    x, positive, negative = outputs()
    guidance = Perturbed(INNER, 0.0)
    assert guidance.branches(2.0) == (POSITIVE, NEGATIVE)
    plain = INNER.combine((positive, negative), x, 2.0)
    assert torch.equal(guidance.combine((positive, negative), x, 2.0), plain)
    assert torch.equal(Projected(INNER, 1.0).combine((positive, negative), x, 2.0), plain)
    assert torch.equal(Thresholded(INNER, 0.9, 1.0).combine((positive, negative), x, 2.0), plain)


def test_an_adaptive_scale_falls_with_the_timestep_to_nothing():
    x, positive, negative = outputs()
    guidance = Perturbed(Unguided(POSITIVE), 3.0, adaptive=0.01, schedule=SCHEDULE)
    early, late = SCHEDULE.t_to_sigma(900), SCHEDULE.t_to_sigma(500)
    torch.testing.assert_close(
        guidance.combine((positive, negative), x, early), positive + (3.0 - 0.01 * 100) * (positive - negative)
    )
    assert guidance.branches(late) == (POSITIVE,)
    assert torch.equal(guidance.combine((positive,), x, late), positive)


def test_projection_takes_the_part_along_the_picture_away():
    x, positive, negative = outputs()
    added = INNER.combine((positive, negative), x, 2.0) - positive
    answer = Projected(INNER).combine((positive, negative), x, 2.0)
    kept = answer - positive
    assert float((kept * positive).sum()) == pytest.approx(0.0, abs=1e-6)
    half = Projected(INNER, 0.5).combine((positive, negative), x, 2.0)
    torch.testing.assert_close(half, (answer + positive + added) / 2)
    zero = torch.zeros_like(positive)
    torch.testing.assert_close(Projected(INNER).combine((zero, negative), x, 2.0), -6.5 * negative)


def test_thresholding_brings_a_channels_range_back():
    x, positive, negative = outputs()
    guided = INNER.combine((positive, negative), x, 2.0)
    answer = Thresholded(INNER, 0.9).combine((positive, negative), x, 2.0)

    def spread(picture, percentile=0.9):
        distances = (picture - guided.mean(dim=(1, 2), keepdim=True)).abs().flatten(1)
        return torch.quantile(distances, percentile, dim=1)

    r = (positive - positive.mean(dim=(1, 2), keepdim=True)).abs().flatten(1).quantile(0.9, dim=1)
    assert (spread(guided) > r).all()
    torch.testing.assert_close(spread(answer, 1.0), r)  # nothing is left outside
    mean = guided.mean(dim=(1, 2), keepdim=True)
    inside = (guided - mean).abs() < spread(guided)[:, None, None]
    shrunk = mean + (guided - mean) * (r / spread(guided))[:, None, None]
    torch.testing.assert_close(answer[inside], shrunk[inside])
    milder = Thresholded(INNER, 0.9, mimic=0.5).combine((positive, negative), x, 2.0)
    assert (spread(milder, 1.0) > r).all()
    narrow, calm = ClassifierFree(POSITIVE, NEGATIVE, 2.0), 1.5 * positive  # 2 p - 1.5 p: a smaller range stays
    assert torch.equal(Thresholded(narrow, 0.9).combine((positive, calm), x, 2.0), calm + 2.0 * (positive - calm))


def test_all_of_it_in_one_order():
    """Perturbation adds to guidance, projection and rescaling see the sum, the interval switches everything off."""
    x, positive, negative = outputs()
    perturbed = positive.roll(1)
    inner = Perturbed(INNER, 3.0)
    whole = Within(Rescaled(inner, 0.7, Epsilon()), (1.0, 3.0))
    assert [len(whole.branches(sigma)) for sigma in (1.0, 2.0, 3.5)] == [1, 3, 1]
    sigma = 2.0
    total = INNER.combine((positive, negative), x, sigma) + 3.0 * (positive - perturbed)
    output, own = (total - x) / -sigma, (positive - x) / -sigma
    rescaled = 0.7 * output * own.std() / output.std() + 0.3 * output
    answer = whole.combine((positive, negative, perturbed), x, sigma)
    torch.testing.assert_close(answer, x - sigma * rescaled)


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
