"""Spacings against diffusers, against closed forms, and for every number of steps."""

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from darkroom.diffusion import SPACINGS, spacing_name
from darkroom.diffusion.schedule import Schedule
from darkroom.diffusion.spacings import sigmas, spaced, timesteps
from darkroom.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers and numpy 2
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
STEPS = (1, 2, 3, 7, 15, 20, 50, 100, 333, 1000)
FRACTIONAL = {"EulerDiscreteScheduler": "euler_discrete", "LMSDiscreteScheduler": "lms_discrete"}
WHOLE = {"DDIMScheduler": "ddim", "DDPMScheduler": "ddpm"}
SPARE = {
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "UniPCMultistepScheduler": "unipc_multistep",
    "DEISMultistepScheduler": "deis_multistep",
}


def set_timesteps(name, steps, **config):
    module = {**FRACTIONAL, **WHOLE, **SPARE}[name]
    scheduler = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{module}"), name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.fixture(scope="module")
def sd():
    return Schedule.from_config(SD)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EulerDiscreteScheduler", SD),
        ("EulerDiscreteScheduler", ZERO_SNR),
        ("EulerDiscreteScheduler", {**SD, "num_train_timesteps": 50}),
        ("LMSDiscreteScheduler", SD),
        ("LMSDiscreteScheduler", {}),
    ],
)
def test_discrete_spacings_are_eulers_and_lmss(name, config, spacing):
    schedule = Schedule.from_config(config)
    offset = 1 if spacing == "leading" else 0
    for steps in STEPS:
        if steps + offset > schedule.steps:
            continue
        theirs = set_timesteps(name, steps, **config, timestep_spacing=spacing, steps_offset=offset)
        levels, ts = spaced(schedule, steps, spacing, steps_offset=offset)
        assert np.float32(levels).tolist() == theirs.sigmas.tolist()
        assert np.float32(ts).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_timesteps_are_ddims_and_ddpms(sd, name, spacing):
    for steps in STEPS:
        theirs = set_timesteps(name, steps, **SD, timestep_spacing=spacing)
        assert list(timesteps(sd, steps, spacing, whole=True)) == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", SPARE)
def test_spare_timesteps_are_those_of_dpm_solver_unipc_and_deis(sd, name, spacing):
    for steps in (1, 2, 10, 20, 49, 500):
        theirs = set_timesteps(name, steps, **SD, timestep_spacing=spacing, steps_offset=1)
        levels, ts = spaced(sd, steps, spacing, whole=True, spare=True, steps_offset=1)
        assert list(ts) == theirs.timesteps.tolist()
        assert np.float32(levels[:-1]).tolist() == theirs.sigmas.tolist()[:-1]


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("config", [SD, ZERO_SNR], ids=["sd", "zero-snr"])
def test_sigma_spacings_are_those_of_diffusers(config, spacing):
    schedule = Schedule.from_config(config)
    for steps in (2, 3, 10, 25, 100):
        theirs = set_timesteps("EulerDiscreteScheduler", steps, **config, **{f"use_{spacing}_sigmas": True})
        levels, ts = spaced(schedule, steps, spacing)
        assert levels == pytest.approx(theirs.sigmas.tolist(), rel=1e-6)
        assert ts == pytest.approx(theirs.timesteps.tolist(), abs=2e-3)


def test_karras_within_the_range_of_leading_timesteps(sd):
    """diffusers spaces between the first and last level of its timestep spacing: here from the options."""
    config = {**SD, "timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True}
    theirs = set_timesteps("EulerDiscreteScheduler", 20, **config)
    ends = sigmas(sd, 20, "leading", steps_offset=1)
    levels = sigmas(sd, 20, "karras", sigma_max=ends[0], sigma_min=ends[-2])
    assert levels == pytest.approx(theirs.sigmas.tolist(), rel=1e-6)


def test_final_level_is_diffusers_sigma_min(sd):
    theirs = set_timesteps("EulerDiscreteScheduler", 10, **SD, final_sigmas_type="sigma_min")
    assert np.float32(sigmas(sd, 10, "linspace", final=sd.sigma_min)).tolist() == theirs.sigmas.tolist()


def test_trailing_never_asks_below_timestep_0(sd):
    """numpy's arange gives diffusers a 62nd timestep, -1, for 61 steps."""
    assert set_timesteps("DDIMScheduler", 61, **SD, timestep_spacing="trailing").timesteps.tolist()[-1] == -1
    assert timesteps(sd, 61, "trailing") == tuple(
        set_timesteps("DDIMScheduler", 61, **SD, timestep_spacing="trailing").timesteps.tolist()[:-1]
    )


def test_align_your_steps_visits_the_published_timesteps(sd):
    from diffusers.schedulers.scheduling_utils import AysSchedules

    levels, ts = spaced(sd, 10, "align_your_steps")
    assert list(levels) == AysSchedules["StableDiffusionSigmas"]
    assert [round(t) for t in ts] == pytest.approx(AysSchedules["StableDiffusionTimesteps"], abs=1)
    levels, ts = spaced(sd, 10, "align_your_steps", table="sdxl")
    assert list(levels) == AysSchedules["StableDiffusionXLSigmas"]
    assert [round(t) for t in ts] == pytest.approx(AysSchedules["StableDiffusionXLTimesteps"], abs=1)


def test_align_your_steps_interpolates_log_linearly(sd):
    twenty = sigmas(sd, 20, "align_your_steps")
    ten = sigmas(sd, 10, "align_your_steps")
    assert twenty[:-1:2] == pytest.approx(ten[:-1])
    assert twenty[1] == pytest.approx((ten[0] * ten[1]) ** 0.5)
    assert twenty[19] == pytest.approx((0.152 * 0.029) ** 0.5)


def test_karras_is_equation_5(sd):
    levels = np.array(sigmas(sd, 12, "karras", rho=5.0, sigma_min=0.1, sigma_max=10.0)[:-1])
    assert levels[0] == pytest.approx(10)
    assert levels[-1] == pytest.approx(0.1)
    assert np.diff(levels**0.2) == pytest.approx(np.diff(levels**0.2).mean())


def test_even_in_their_own_measure(sd):
    for name, measure in (("exponential", np.log), ("kl_optimal", np.arctan)):
        levels = measure(np.array(sigmas(sd, 9, name)[:-1]))
        assert np.diff(levels) == pytest.approx(np.diff(levels).mean())
        assert levels[[0, -1]] == pytest.approx(measure([sd.sigma_max, sd.sigma_min]))


def test_over_timesteps(sd):
    assert timesteps(sd, 4, "normal") == pytest.approx((999, 666, 333, 0))
    assert timesteps(sd, 4, "sgm_uniform") == pytest.approx((999, 749.25, 499.5, 249.75))
    assert timesteps(sd, 4, "simple") == pytest.approx((999, 749, 499, 249))
    assert timesteps(sd, 3, "simple") == pytest.approx((999, 666, 333))
    # normal is log-linear between whole timesteps, linspace linear.
    half = timesteps(sd, 3, "normal")[1]
    assert half == pytest.approx(499.5)
    a, b = sd.training_sigmas[499:501]
    assert sigmas(sd, 3, "normal")[1] == pytest.approx((a * b) ** 0.5, rel=1e-12)
    assert sigmas(sd, 3, "linspace")[1] == pytest.approx((a + b) / 2, rel=1e-7)


def test_whole_timesteps_as_comfyui_has_them(sd):
    """By ComfyUI's rules, with scipy's quantile."""
    from scipy.stats import beta

    def at(places):
        return pytest.approx([*(sd.training_sigmas[t] for t in places), 0.0])

    assert sigmas(sd, 20, "ddim_uniform") == at(range(951, 0, -50))
    assert sigmas(sd, 30, "ddim_uniform") == at(range(991, 0, -33))  # 31 steps
    rounded = [int(t) for t in np.rint(beta.ppf(1 - np.linspace(0, 1, 20, endpoint=False), 0.6, 0.6) * 999)]
    assert sigmas(sd, 20, "beta_timesteps") == at(rounded)
    assert len(sigmas(sd, 500, "beta_timesteps")) < 501  # two places in one timestep are one step


def test_linear_quadratic_goes_on_as_steep_along_a_parabola(sd):
    """A movie model's schedule: 2.5% of the way in the first half of the steps; the numbers are worked out by hand."""
    way = 1 - np.array(sigmas(sd, 4, "linear_quadratic")) / sd.sigma_max
    assert way == pytest.approx([0, 0.0125, 0.025, 0.025 + 0.0125 + 0.95 / 4, 1])
    assert sigmas(sd, 1, "linear_quadratic") == (sd.sigma_max, 0.0)


def test_drop_penultimate(sd):
    more, fewer = sigmas(sd, 11, "karras"), sigmas(sd, 10, "karras", drop_penultimate=True)
    assert fewer == (*more[:-2], 0.0)
    assert timesteps(sd, 10, "karras", drop_penultimate=True) == timesteps(sd, 11, "karras")[:-1]


@settings(max_examples=80)
@example(1000, "linear_quadratic", "flow", False)
@example(300, "linear_quadratic", "flow", True)
@example(1000, "ddim_uniform", "sd", False)
@given(st.integers(1, 1000), st.sampled_from(SPACINGS), st.sampled_from(["sd", "zero-snr", "flow"]), st.booleans())
def test_every_count_descends_to_zero(steps, spacing, kind, drop):
    schedule = Schedule.flow(shift=3.0) if kind == "flow" else Schedule.from_config(SD if kind == "sd" else ZERO_SNR)
    if kind == "flow" and spacing == "leading":
        return
    try:
        levels, ts = spaced(schedule, steps, spacing, drop_penultimate=drop)
    except RequestError:
        # A thousand and one whole timesteps out of a thousand.
        assert steps == 1000
        assert drop
        return
    if spacing == "ddim_uniform":
        assert len(levels) > min(steps, 998 if drop else 999)  # it begins at timestep 1
    elif spacing == "beta_timesteps":
        assert len(levels) <= steps + 1
    else:
        assert len(levels) == steps + 1
    assert len(ts) == len(levels) - 1
    assert levels[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(levels))
    assert all(a >= b >= 0 for a, b in itertools.pairwise(ts))
    assert ts == pytest.approx([schedule.sigma_to_t(s) for s in levels[:-1]], abs=0.15)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_linspace_is_diffusers(shift):
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 1000, 28))
    s = theirs.sigmas.double().numpy()
    levels, ts = spaced(Schedule.flow(shift=shift), 28, "linspace")
    assert levels[1:] == pytest.approx(s[1:] / (1 - s[1:]), rel=1e-4)
    assert ts[1:] == pytest.approx(theirs.timesteps.tolist()[1:], rel=1e-5)
    assert levels[0] > 4000


@pytest.mark.parametrize(
    ("words", "canonical"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("Uniform", "normal"),
        ("KL Optimal", "kl_optimal"),
        ("Align Your Steps", "align_your_steps"),
        ("align-your-steps", "align_your_steps"),
        ("beta", "beta"),
        ("Exponential", "exponential"),
    ],
)
def test_peoples_names(words, canonical):
    assert spacing_name(words) == canonical


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(RequestError, match=r"no schedule 'karas'; did you mean 'karras'"):
        spacing_name("karas")


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, 10**9, "20"])
def test_impossible_counts(sd, steps):
    with pytest.raises(RequestError, match="number of steps"):
        sigmas(sd, steps, "karras")


@pytest.mark.parametrize(
    ("spacing", "steps", "options"),
    [("leading", 1001, {}), ("trailing", 1500, {}), ("simple", 1001, {}), ("leading", 1000, {"steps_offset": 1})],
)
def test_more_steps_than_there_are_timesteps(sd, spacing, steps, options):
    with pytest.raises(RequestError, match=f"{spacing!r} can't place {steps} steps"):
        sigmas(sd, steps, spacing, **options)
    assert len(sigmas(sd, 2000, "karras")) == 2001


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.0},
        {"sigma_min": 20.0},
        {"sigma_max": float("inf")},
        {"sigma_max": float("nan")},
        {"rho": 0.0},
        {"sigma_min": 1.0, "sigma_max": 1.0},
        {"final": 5.0},
        {"final": -1.0},
    ],
)
def test_impossible_options(sd, options):
    with pytest.raises(RequestError):
        sigmas(sd, 10, "karras", **options)


def test_impossible_options_of_others(sd):
    with pytest.raises(RequestError, match="table 'sd3'"):
        sigmas(sd, 10, "align_your_steps", table="sd3")
    with pytest.raises(RequestError, match="alpha is -1"):
        sigmas(sd, 10, "beta", alpha=-1)
    with pytest.raises(RequestError, match="'leading'"):
        sigmas(Schedule.flow(), 10, "leading")
