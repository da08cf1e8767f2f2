"""Plans: published sums, wishes, names that lead back to the same plan, and what can't be asked."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from darkroom.diffusion.schedule import Schedule
from darkroom.diffusion.spacings import sigmas as spaced_sigmas
from darkroom.engine.plan import Plan, plan
from darkroom.errors import CheckpointError, RequestError
from darkroom.samplers import names
from darkroom.samplers.dpm import DPMMultistep
from darkroom.samplers.multistep import PNDM
from darkroom.samplers.state import Clip, SamplerState

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SCHEDULE = Schedule.from_config(SD15)

# The sums that diffusers' own scheduler tests publish, of the absolute values of the result.
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LONG = {**LINEAR, "num_train_timesteps": 1100}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
DPM = {**LINEAR, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
UNIPC = {**LINEAR, "solver_type": "bh2", "final_sigmas_type": "sigma_min"}
SUMS = [
    ("DDIMScheduler", LINEAR, 172.0067),
    ("DDIMScheduler", {**LINEAR, **V}, 52.5302),
    ("PNDMScheduler", LINEAR, 198.1318),
    ("PNDMScheduler", {**LINEAR, **V}, 67.3986),
    ("LMSDiscreteScheduler", LONG, 1006.388),
    ("LMSDiscreteScheduler", {**LONG, **KARRAS}, 3812.9927),
    ("EulerDiscreteScheduler", LONG, 10.0807),
    ("EulerDiscreteScheduler", {**LONG, **KARRAS}, 124.523),
    ("HeunDiscreteScheduler", LONG, 0.1233),
    ("KDPM2DiscreteScheduler", LONG, 20.4125),
]
MEANS = [
    ("DPMSolverMultistepScheduler", DPM, 0.3301),
    ("DPMSolverMultistepScheduler", {**DPM, **V}, 0.2251),
    ("DPMSolverMultistepScheduler", {**DPM, **V, **KARRAS}, 0.2096),
    ("UniPCMultistepScheduler", UNIPC, 0.2464),
    ("UniPCMultistepScheduler", {**UNIPC, **KARRAS}, 0.2925),
    ("UniPCMultistepScheduler", {**UNIPC, **V}, 0.1014),
]


def published(config: dict, steps: int, noise=None) -> torch.Tensor:
    """The loop of those tests: x = 0 ... 767 / 768, and a "network" that says x t / (t + 1).

    Where a scheduler scales the network's input, those tests go on from the scaled x; so does this loop.
    """
    scales = config["_class_name"][:3] in ("LMS", "Eul", "Heu", "KDP")
    schedule = Schedule.from_config(config)
    made = plan(schedule, config, steps, literal=True)
    x = torch.arange(768, dtype=torch.float32).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / 768
    state = SamplerState(x * made.init_scale, made.sigmas[0])
    while state.interval < made.steps:
        sigma = state.sigma
        t, root = made.timesteps.get(sigma, schedule.sigma_to_t(sigma)), math.hypot(1.0, sigma)
        if scales:
            state = replace(state, x=state.x / root)
        output = (state.x if scales else state.x / root) * t / (t + 1)
        if schedule.prediction_type == "epsilon":
            denoised = state.x - sigma * output
        else:
            denoised = state.x / root**2 - output * (sigma / root)
        state = made.sampler.step(state, denoised, made.sigmas, noise)
    return state.x * made.final_scale


@pytest.mark.parametrize(("name", "config", "expected"), SUMS)
def test_published_sums(name: str, config: dict, expected: float) -> None:
    assert float(published({"_class_name": name, **config}, 10).abs().sum()) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(("name", "config", "expected"), MEANS)
def test_published_means(name: str, config: dict, expected: float) -> None:
    assert float(published({"_class_name": name, **config}, 10).abs().mean()) == pytest.approx(expected, abs=1e-3)


def test_published_ddpm_sum() -> None:
    """A thousand steps; the generator's first draw is the first step's, as x doesn't come from it."""
    generator, drawn = torch.Generator().manual_seed(0), []

    def noise(k: int) -> torch.Tensor:
        while len(drawn) < k:
            drawn.append(torch.randn(4, 3, 8, 8, generator=generator))
        return drawn[k - 1]

    got = published({"_class_name": "DDPMScheduler", **LINEAR}, 1000, noise)
    assert float(got.abs().sum()) == pytest.approx(258.9606, abs=1e-2)


def test_the_checkpoints_own_plan() -> None:
    made = plan(SCHEDULE, SD15, 50)
    assert made.sampler_name == "plms"
    assert made.schedule_name == "automatic"
    assert made.steps == 50
    assert [made.timesteps[s] for s in made.sigmas[:3]] == [981.0, 961.0, 941.0]
    assert made.timesteps[made.sigmas[-2]] == 1.0
    assert made.sigmas[-1] == SCHEDULE.sigma_min  # set_alpha_to_one is False: it ends at timestep 0
    assert made.final_scale == pytest.approx(1 / math.hypot(1, SCHEDULE.sigma_min))
    assert made.init_scale == pytest.approx(math.hypot(1, made.sigmas[0]))
    assert pickle.loads(pickle.dumps(made)) == made


def test_usual_numbers_of_steps() -> None:
    assert plan(SCHEDULE, SD15).steps == 30
    assert plan(SCHEDULE, SD15, sampler="lcm").steps == 4
    assert plan(SCHEDULE, SD15, sampler="ddim", spacing="karras").steps == 30


def test_stable_diffusion_pipelines_correct_old_files() -> None:
    old = {**SD15, "_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True}
    assert plan(SCHEDULE, old, 50) == plan(SCHEDULE, {**old, "steps_offset": 1, "clip_sample": False}, 50, literal=True)
    literal = plan(SCHEDULE, old, 50, literal=True)
    assert literal.sampler.limit == Clip(1.0)
    assert literal.timesteps[literal.sigmas[0]] == 980.0


def test_a_sampler_by_name_keeps_the_checkpoints_spacing() -> None:
    made = plan(SCHEDULE, SD15 | {"timestep_spacing": "trailing"}, 10, "lms")
    assert [made.timesteps[s] for s in made.sigmas[:-1]] == [999.0 - 100 * i for i in range(10)]
    assert made.sigmas[-1] == 0
    assert made == plan(SCHEDULE, SD15 | {"timestep_spacing": "trailing"}, 10, "LMSDiscreteScheduler")
    assert plan(SCHEDULE, SD15, 10, "lms", "leading").timesteps[SCHEDULE.t_to_sigma(901)] == 901.0


def test_what_a_name_says_wins_over_flags() -> None:
    config = SD15 | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    assert plan(SCHEDULE, config, 10).sampler_name == "dpmpp_2m_sde"
    assert plan(SCHEDULE, config, 10, "dpmpp_2m").sampler.algorithm == "dpmsolver++"
    assert plan(SCHEDULE, SD15, 10, "pndm").sampler.warm_up
    assert not plan(SCHEDULE, SD15 | {"skip_prk_steps": False}, 10, "plms").sampler.warm_up
    assert isinstance(plan(SCHEDULE, SD15, 10, "dpmpp_3m_sde").sampler, DPMMultistep)


def test_old_names_imply_a_schedule() -> None:
    made = plan(SCHEDULE, SD15, 12, "DPM++ 2M Karras")
    assert made == plan(SCHEDULE, SD15, 12, "dpmpp_2m", "Karras")
    assert made.schedule_name == "karras"
    assert made.sigmas == spaced_sigmas(SCHEDULE, 12, "karras")
    assert made.timesteps == {}  # fractional timesteps, as k-diffusion has them
    assert made.init_scale == made.sigmas[0]  # as k-diffusion starts; 2e-3 more is what diffusers' class starts with
    assert plan(SCHEDULE, SD15, 12, "ddim", "Karras").init_scale == pytest.approx(math.hypot(1, made.sigmas[0]))
    assert plan(SCHEDULE, SD15, 12, "DPM++ 2M Karras", "exponential").schedule_name == "exponential"


def test_some_samplers_drop_the_last_level_but_one() -> None:
    whole, made = spaced_sigmas(SCHEDULE, 11, "karras"), plan(SCHEDULE, SD15, 10, "DPM2 a", "karras")
    assert made.sigmas == (*whole[:-2], 0.0)
    assert plan(SCHEDULE, SD15, 10, "heun", "karras").sigmas == spaced_sigmas(SCHEDULE, 10, "karras")


def test_diffusers_rounds_the_timesteps_of_its_solvers() -> None:
    made = plan(SCHEDULE, SD15 | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, 20)
    told = [made.timesteps[s] for s in made.sigmas[:-1]]
    assert told == [float(round(SCHEDULE.sigma_to_t(s))) for s in made.sigmas[:-1]]
    assert any(abs(t - SCHEDULE.sigma_to_t(s)) > 0.2 for t, s in zip(told, made.sigmas[:-1], strict=True))


CONFIGS = [
    SD15,
    SD15 | {"skip_prk_steps": False},
    SD15 | {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    SD15 | {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
    SD15 | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", **KARRAS},
    SD15 | {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
    SD15 | {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "predict_x0": False},
    SD15 | {"_class_name": "EulerDiscreteScheduler", **KARRAS},
    SD15 | {"_class_name": "FlaxDDIMScheduler"},
    {key: value for key, value in SD15.items() if key != "_class_name"},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("spacing", [None, "trailing", "karras"])
def test_names_lead_back_to_the_plan(config: dict, spacing: str | None) -> None:
    made = plan(SCHEDULE, config, 9, None, spacing)
    assert plan(SCHEDULE, config, made.steps, made.sampler_name, made.schedule_name) == made


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("spacing", [None, "trailing", "karras", "sgm_uniform", "align_your_steps"])
def test_every_sampler_on_every_kind_of_schedule(name: str, spacing: str | None) -> None:
    for steps in (4, 5, 20):
        made = plan(SCHEDULE, SD15, steps, name, spacing)
        assert made.sampler_name == name
        assert made.steps == steps
        assert all(a > b >= 0 for a, b in zip(made.sigmas, made.sigmas[1:], strict=False))
        assert made == plan(SCHEDULE, SD15, steps, made.sampler_name, made.schedule_name)


def test_v_prediction_reaches_pndm() -> None:
    config = SD15 | V
    sampler = plan(Schedule.from_config(config), config, 10).sampler
    assert isinstance(sampler, PNDM)
    assert sampler.prediction == "v_prediction"


def test_flow_models_start_from_noise_alone() -> None:
    schedule = Schedule.flow(1000, 3.0)
    made = plan(schedule, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, 8, "euler")
    assert made.init_scale == pytest.approx(1 + made.sigmas[0])
    assert made.sigmas[-1] == 0


@pytest.mark.parametrize(
    "wish",
    [
        {"steps": 0},
        {"steps": -3},
        {"steps": 10**9},
        {"steps": 2.5},
        {"steps": True},
        {"steps": "10"},
        {"steps": float("nan")},
        {"steps": 5000, "sampler": "ddim"},
        {"steps": 51, "sampler": "lcm"},
        {"steps": 3, "sampler": "pndm"},
        {"sampler": "nonsense"},
        {"sampler": 3},
        {"spacing": "nonsense"},
        {"spacing": 3},
    ],
)
def test_impossible_wishes(wish: dict) -> None:
    with pytest.raises(RequestError):
        plan(SCHEDULE, SD15, **wish)


@pytest.mark.parametrize(
    "flags",
    [
        {"_class_name": "CMStochasticIterativeScheduler"},
        {"timestep_spacing": "sideways"},
        {"_class_name": "LMSDiscreteScheduler", **KARRAS, "use_beta_sigmas": True},
        {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "nowhere"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "magic"},
        {"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 77},
        {"_class_name": "UniPCMultistepScheduler", "solver_p": {}},
        {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
        {"_class_name": "LCMScheduler", "original_inference_steps": 0},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": "two"},
        {"steps_offset": "one"},
    ],
)
def test_impossible_configurations(flags: dict) -> None:
    with pytest.raises(CheckpointError):
        plan(SCHEDULE, SD15 | flags, 10, literal=True)


def test_an_unknown_scheduler_still_takes_a_named_sampler() -> None:
    assert isinstance(plan(SCHEDULE, SD15 | {"_class_name": "OfMyOwnScheduler"}, 10, "euler"), Plan)
