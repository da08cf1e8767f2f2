"""The training noise levels are diffusers' own, and t <-> sigma is a round trip."""

import importlib
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom.diffusion.schedule import Schedule, rescale_zero_terminal_snr
from darkroom.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers and numpy 2
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODULES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms_discrete",
    "EulerDiscreteScheduler": "euler_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
    "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "UniPCMultistepScheduler": "unipc_multistep",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete",
}


def diffusers_scheduler(name, **config):
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}")
    return getattr(module, name)(**config)


@pytest.fixture(scope="module")
def sd():
    return Schedule.from_config(SD)


@pytest.mark.parametrize(
    "config",
    [
        SD,
        {},
        {"beta_schedule": "squaredcos_cap_v2"},
        {**SD, "num_train_timesteps": 100},
        {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.3]},
        {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    ],
)
def test_levels_are_those_of_diffusers_to_the_last_bit(config):
    theirs = diffusers_scheduler("EulerDiscreteScheduler", **config)
    ours = Schedule.from_config(config)
    assert np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.double().numpy())
    assert np.array_equal(ours.training_sigmas[::-1], theirs.sigmas[:-1].double().numpy())
    assert ours.steps == len(theirs.alphas_cumprod)
    assert ours.sigma_max == float(theirs.sigmas[0])


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith("Flow")])
def test_what_a_file_leaves_out_is_the_default_of_its_class(name):
    theirs = diffusers_scheduler(name)
    ours = Schedule.from_config({"_class_name": name})
    assert np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.double().numpy())
    assert ours.prediction_type == theirs.config.prediction_type


def test_sigmoid_betas_are_those_of_ddpm():
    config = {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02}
    theirs = diffusers_scheduler("DDPMScheduler", **config)
    assert np.array_equal(Schedule.from_config(config).alphas_cumprod, theirs.alphas_cumprod.double().numpy())


def test_stable_diffusions_known_range(sd):
    assert sd.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert sd.sigma_max == pytest.approx(14.6146, abs=5e-5)


def test_zero_terminal_snr_ends_in_noise_and_keeps_its_beginning():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    before = torch.cumprod(1 - betas, 0)
    after = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    assert after[-1] == 0
    assert after[0] == pytest.approx(float(before[0]), abs=1e-7)
    # Affine in the square root: the defining property of algorithm 1.
    ratio = np.diff(after.sqrt().numpy()) / np.diff(before.sqrt().numpy())
    assert ratio[:-1] == pytest.approx(ratio.mean(), rel=1e-2)
    assert Schedule.from_config({**SD, "rescale_betas_zero_snr": True}).sigma_max == pytest.approx(4096, abs=0.01)


def test_zero_terminal_snr_rises_where_diffusers_levels_fall_back():
    config = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "rescale_betas_zero_snr": True}
    theirs = diffusers_scheduler("EulerDiscreteScheduler", **config).sigmas[:-1].flip(0).double().numpy()
    ours = Schedule.from_config(config).training_sigmas
    assert theirs[-2] > theirs[-1]  # what we do not copy
    assert (np.diff(ours) > 0).all()
    same = theirs < 4096
    assert np.array_equal(ours[same], theirs[same])
    assert ours[-1] == theirs[-1]


@pytest.mark.parametrize("config", [SD, {**SD, "rescale_betas_zero_snr": True}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_whole_timesteps_come_back_exactly(config):
    schedule = Schedule.from_config(config)
    assert [schedule.sigma_to_t(schedule.t_to_sigma(t)) for t in range(1000)] == list(range(1000))
    ts = torch.arange(1000)
    assert torch.equal(schedule.t_to_sigma(ts).double(), torch.from_numpy(schedule.training_sigmas))
    assert torch.equal(schedule.sigma_to_t(schedule.t_to_sigma(ts)), ts.float())


def test_sigma_to_t_is_that_of_diffusers(sd):
    theirs = diffusers_scheduler("EulerDiscreteScheduler", **SD)
    log_sigmas = theirs.sigmas[:-1].flip(0).log().double().numpy()
    sigmas = np.exp(np.random.default_rng(0).uniform(math.log(0.01), math.log(30), 500))
    expected = np.array([theirs._sigma_to_t(s, log_sigmas) for s in sigmas])
    assert np.array([sd.sigma_to_t(s) for s in sigmas]) == pytest.approx(expected, abs=1e-4)
    assert sd.sigma_to_t(torch.from_numpy(sigmas)).numpy() == pytest.approx(expected, abs=1e-4)


@given(st.floats(0, 999))
def test_fractional_timesteps_round_trip(t):
    schedule = Schedule.from_config(SD)
    assert schedule.sigma_to_t(schedule.t_to_sigma(t)) == pytest.approx(t, abs=1e-9)


@given(st.floats(0, 1e6))
def test_tensor_and_float_agree(value):
    schedule = Schedule.from_config(SD)
    row = torch.tensor([value], dtype=torch.float64)
    assert float(schedule.sigma_to_t(row)) == pytest.approx(schedule.sigma_to_t(value), abs=1e-4)
    assert float(schedule.t_to_sigma(row)) == pytest.approx(schedule.t_to_sigma(value), rel=1e-6)


def test_outside_the_range_it_clamps(sd):
    assert sd.sigma_to_t(0.0) == 0.0
    assert sd.sigma_to_t(1e9) == sd.sigma_to_t(math.inf) == 999.0
    assert sd.t_to_sigma(-3) == sd.sigma_min
    assert sd.t_to_sigma(1e9) == sd.sigma_max
    assert sd.sigma_to_t(torch.tensor([0.0, math.inf])).tolist() == [0.0, 999.0]
    assert sd.t_to_sigma(torch.tensor([[-1.0], [5000.0]])).flatten().tolist() == [sd.sigma_min, sd.sigma_max]
    with pytest.raises(ValueError, match="not a number"):
        sd.sigma_to_t(math.nan)
    with pytest.raises(ValueError, match="not a number"):
        sd.t_to_sigma(math.nan)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_are_diffusers_in_our_coordinates(shift):
    theirs = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", shift=shift)
    ours = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift})
    s = theirs.sigmas.double().numpy()[::-1]
    assert ours.prediction_type == "flow"
    assert ours.training_sigmas[:-1] == pytest.approx((s / (1 - s + 1e-30))[:-1], rel=1e-3)
    assert ours.sigma_max > 4000
    # The network is told T * s.
    told = np.array([ours.sigma_to_t(float(sigma)) for sigma in ours.training_sigmas])
    assert told[:-1] == pytest.approx(theirs.timesteps.numpy()[::-1][:-1], abs=1e-2)


@given(st.floats(1, 999))
def test_flow_round_trips(t):
    schedule = Schedule.flow()
    assert schedule.t_to_sigma(t) == pytest.approx(t / (1000 - t), rel=1e-9)
    assert schedule.sigma_to_t(schedule.t_to_sigma(t)) == pytest.approx(t, abs=1e-9)
    row = torch.tensor([t])
    assert float(schedule.sigma_to_t(schedule.t_to_sigma(row))) == pytest.approx(t, rel=1e-5)


def test_flow_at_its_ends():
    schedule = Schedule.flow(shift=50.0)
    assert schedule.t_to_sigma(1000) == schedule.sigma_max
    assert float(schedule.t_to_sigma(torch.tensor(1000.0))) == pytest.approx(schedule.sigma_max)
    assert schedule.t_to_sigma(0) == schedule.sigma_min
    assert math.isfinite(schedule.sigma_max)


@pytest.mark.parametrize("key", ["use_flow_sigmas", "prediction_type"])
def test_flow_is_recognised_in_other_classes(key):
    config = {"use_flow_sigmas": {"use_flow_sigmas": True}, "prediction_type": {"prediction_type": "flow_prediction"}}
    assert Schedule.from_config({**config[key], "flow_shift": 3.0}).shift == 3.0


def test_it_pickles(sd):
    sd.sigma_to_t(torch.ones(2))  # with its tables made
    again = pickle.loads(pickle.dumps(sd))
    assert np.array_equal(again.training_sigmas, sd.training_sigmas)
    assert again.sigma_to_t(1.234) == sd.sigma_to_t(1.234)
    assert torch.equal(again.sigma_to_t(torch.ones(2)), sd.sigma_to_t(torch.ones(2)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prediction_type": "noise"}, "prediction_type 'noise'"),
        ({"beta_schedule": "cubic"}, "beta_schedule 'cubic'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps is 2.5"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'"),
        ({"beta_start": -1}, "beta_start is -1"),
        ({"beta_end": math.nan}, "beta_end is nan"),
        ({"beta_end": True}, "beta_end is True"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "rise at every timestep"),
        ({"beta_start": 0.5, "beta_end": 1.0}, "rise at every timestep"),
        ({"trained_betas": "abc"}, "trained_betas"),
        ({"trained_betas": [[0.1, 0.2]]}, "trained_betas"),
        ({"trained_betas": []}, "trained_betas"),
        ({"trained_betas": [0.1, 1.5]}, "from 0.1 to 1.5"),
        ({"timestep_type": "continuous", "prediction_type": "v_prediction"}, "timestep_type 'continuous'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift is 0"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "'sample' is not one of epsilon"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "linear"}, "sigma_schedule 'linear'"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90}, "sigma_min 90 is not below its sigma_max 80"),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": math.inf}, "sigma_max is inf"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "'CMStochasticIterativeScheduler' is not supported"),
        ({"_class_name": "CogVideoXDDIMScheduler", "beta_schedule": "linear"}, "'CogVideoXDDIMScheduler' is not"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting True"),
        ({"prediction_type": "edm"}, "prediction_type 'edm'"),
        ({"prediction_type": ["epsilon"]}, "prediction_type"),
    ],
)
def test_nonsense_is_one_sentence_with_the_value(config, words):
    with pytest.raises(CheckpointError) as error:
        Schedule.from_config(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


NUMBERS = (
    *("num_train_timesteps", "beta_start", "beta_end", "steps_offset", "solver_order", "predictor_order"),
    *("corrector_order", "original_inference_steps", "timestep_scaling", "lambda_min_clipped", "shift", "flow_shift"),
    *("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "sigma_min", "sigma_max", "sigma_data"),
    "rho",
)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [10**30, 1e30, 10**400, math.nan, math.inf, "7", "nan", True, [1], {}])
def test_any_number_that_cannot_be_meant_is_refused_when_it_is_read(key, value):
    with pytest.raises(CheckpointError, match=f"^the scheduler's {key} is .*; it must be a (whole )?number ") as caught:
        Schedule.from_config({**SD, key: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_train_timesteps", value) for value in (10**9, 1, -5, 2.5)),
        *((key, -1) for key in NUMBERS if key != "lambda_min_clipped"),
        *(("steps_offset", 0.5), ("sigma_max", 0), ("rho", 0), ("beta_end", 1.5), ("solver_order", 0)),
        ("lambda_min_clipped", 100),
    ],
)
def test_numbers_outside_their_bounds_are_refused(key, value):
    with pytest.raises(CheckpointError, match=f"{key} is {value}; it must be"):
        Schedule.from_config({**SD, key: value})


def test_published_numbers_are_within_their_bounds():
    for told in (
        {
            "steps_offset": 1,
            "lambda_min_clipped": "-inf",
            "sigma_min": None,
            "solver_order": 2,
            "sample_max_value": 1.0,
        },
        {"lambda_min_clipped": -math.inf, "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0},
        {"lambda_min_clipped": -5.1, "original_inference_steps": 50, "timestep_scaling": 10.0, "sigma_max": 1348.0},
    ):
        assert Schedule.from_config({**SD, **told}).steps == 1000
