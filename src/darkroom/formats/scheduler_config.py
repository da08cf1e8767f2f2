"""Reading a diffusers `scheduler_config.json` as noise levels and a sampler.

Each diffusers class lays out its timesteps in its own way and rounds them, or not, in its own way; all of that is here,
checked against the installed diffusers by tests/engine/test_scheduler_parity.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..diffusion.schedule import EDM_CLASSES, Schedule, number
from ..diffusion.spacings import Options, sigmas, spaced
from ..errors import CheckpointError, RequestError
from ..samplers import Entry, entries, get
from ..samplers.dpm import DPMMultistep, DPMSinglestep
from ..samplers.multistep import DEIS, PNDM
from ..samplers.sa_solver import SASolver
from ..samplers.single import DDIM, DDPM, LCM, TCD
from ..samplers.state import Clip, Limit, Sampler, Threshold
from ..samplers.two_stage import Heun
from ..samplers.unipc import UniPC
from .layouts import MARKS

# By diffusers class, or by the id of a sampler that diffusers doesn't have.
_ROWS: Mapping[str, Entry] = {row.scheduler: row for row in entries() if row.shares is None}
_SIGMA_SPACE, _SOLVERS, _DISCRETE = (
    tuple(name for name, row in _ROWS.items() if row.levels == levels) for levels in ("sigma", "solver", "whole")
)
_OF_K_DIFFUSION = (*_SIGMA_SPACE, "DPMSolverMultistepScheduler")
CLASSES = tuple(name for name in (*_SIGMA_SPACE, *_SOLVERS, *_DISCRETE) if _ROWS[name].diffusers)
# EDM's classes step as these do, between levels of their own.
_EDM = dict(zip(EDM_CLASSES, ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"), strict=True))
_THRESHOLDING = (*_SOLVERS, "DDIMScheduler", "DDPMScheduler", "LCMScheduler")
_DPM_SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
_SA_DRAWS = (200, 800)  # the timesteps between which diffusers' SASolverScheduler has tau 1, and elsewhere 0
_CLIPPING = {  # the classes that clip denoised answers, and whether they do where a file doesn't say
    "DDIMScheduler": True,
    "DDPMScheduler": True,
    "LCMScheduler": False,
    "HeunDiscreteScheduler": False,
}


@dataclass(frozen=True)
class Layout:
    """Where a sampler goes. `timesteps` maps a level to the timestep the network sees, where diffusers' differs."""

    sampler: Sampler
    sigmas: tuple[float, ...]
    init_scale: float
    final_scale: float = 1.0
    timesteps: Mapping[float, float] = field(default_factory=dict)


def known_class(config: Mapping[str, Any]) -> str | None:
    """The diffusers class a configuration names, under the name this module knows it by; None if it is another."""
    name = (
        str(config.get("_class_name", "PNDMScheduler")).removeprefix("Flax").replace("ParallelScheduler", "Scheduler")
    )
    name = _EDM.get(name, name)
    return name if name in CLASSES else None


def as_stable_diffusion(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as diffusers' Stable Diffusion pipelines correct it: steps_offset 1 and no clipping."""
    return {**config, "steps_offset": 1, "clip_sample": False}


def marks_of(
    config: Mapping[str, Any], mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Sequence[float]] | None:
    """The marks (`layouts.MARKS`) of an SDXL model's single file, name -> numbers; None where no mark says so.

    `mean`, `std`: of its autoencoder's latents. Raises CheckpointError for a configuration that can't be read.
    """
    schedule = Schedule.from_config(config)
    if schedule.sigma_data is None:
        said = ["v_prediction"] if schedule.prediction_type == "v_prediction" else []
        said += ["zero_snr"] if config.get("rescale_betas_zero_snr") else []
        return {key: () for kind in said for key in MARKS[kind]}
    if schedule.prediction_type == "v_prediction" and schedule.sigma_data == 1:
        return dict(zip(MARKS["edm_vpred"], ([schedule.sigma_max], [schedule.sigma_min]), strict=True))
    return None if mean is None or std is None else dict(zip(MARKS["edm"], (mean, std), strict=True))


def make_sampler(name: str, config: Mapping[str, Any], schedule: Schedule) -> Sampler:
    """The sampler that class `name` is with a configuration's flags. Raises CheckpointError for flags that can't be."""
    limit = _limit(name, config)
    if name == "HeunDiscreteScheduler":
        return Heun(limit)
    if name in _SIGMA_SPACE:
        return get(_ROWS[name].id)
    order, lower = int(number(config, "solver_order", 2)), bool(config.get("lower_order_final", True))
    if config.get("variance_type") in ("learned", "learned_range") and name in (*_DPM_SOLVERS, "SASolverScheduler"):
        raise CheckpointError(
            "the scheduler's variance_type says that the network predicts variances; that is not supported"
        )
    solver = str(config.get("solver_type", ""))
    try:
        if name == "DPMSolverMultistepScheduler":
            euler = bool(config.get("euler_at_final", False))
            algorithm, solver_type = _dpm_solver(config)
            return DPMMultistep(
                order, algorithm, solver_type, lower_order_final=lower, euler_at_final=euler, limit=limit
            )
        if name == "DPMSolverSinglestepScheduler":
            lower = bool(config.get("lower_order_final", False))
            return DPMSinglestep(order, *_dpm_solver(config), lower_order_final=lower, limit=limit)
        if name == "SASolverScheduler":
            return _sa_solver(config, schedule, lower, limit)
        if name == "UniPCMultistepScheduler":
            if config.get("solver_p") is not None:
                raise CheckpointError("the scheduler's solver_p (another scheduler inside UniPC) is not supported")
            corrected = tuple(config.get("disable_corrector") or ())
            solver = solver if solver in ("bh1", "bh2") else "bh2"
            return UniPC(order, solver, bool(config.get("predict_x0", True)), lower, corrected, limit)
        if name == "DEISMultistepScheduler":
            return DEIS(order, lower, limit)
    except RequestError as error:
        raise CheckpointError(f"the checkpoint's scheduler can't be: {error}") from error
    if name == "DDIMScheduler":
        return DDIM(limit=limit)
    if name == "TCDScheduler":
        return TCD()
    if name == "DDPMScheduler":
        return DDPM(_variance(config), limit)
    if name == "LCMScheduler":
        return LCM(limit, timestep_scaling=number(config, "timestep_scaling", 10.0))
    prediction = "v_prediction" if schedule.prediction_type == "v_prediction" else "epsilon"
    return PNDM(not config.get("skip_prk_steps", False), prediction)


def spaced_layout(name: str, sampler: Sampler, schedule: Schedule, steps: int, spacing: str, drop: bool) -> Layout:
    """A sampler on a spacing asked for by name, without any class's rounding.

    Noise starts at the first sigma, as k-diffusion and A1111 start it, or at unit variance for samplers that
    k-diffusion doesn't have and diffusers starts so.
    """
    levels = sigmas(schedule, steps, spacing, drop_penultimate=drop)
    if schedule.prediction_type == "flow":
        scale = 1.0 + levels[0]
    else:
        scale = levels[0] if name in _OF_K_DIFFUSION else math.hypot(1.0, levels[0])
    return Layout(sampler, levels, scale)


def class_layout(name: str, config: Mapping[str, Any], schedule: Schedule, steps: int) -> Layout:
    """What diffusers' class `name` does with a configuration: its levels, its sampler, its rounding.

    Raises CheckpointError for flags that can't be and RequestError for a number of steps that doesn't fit.
    """
    sampler = make_sampler(name, config, schedule)
    if schedule.sigma_data is not None:
        return _edm_layout(sampler, config, schedule, steps)
    if name in ("LCMScheduler", "TCDScheduler"):
        return _distilled_layout(sampler, config, schedule, steps)
    if name in _DISCRETE:
        return _discrete_layout(name, sampler, config, schedule, steps)
    spacing = _spacing(config, "linspace") if _ROWS[name].takes_spacing else "linspace"
    levels, timesteps, final = _levels(name, config, schedule, steps, spacing)
    by_level = dict(zip(levels, timesteps, strict=True))
    if name in _SIGMA_SPACE:
        scale = math.hypot(1.0, levels[0]) if spacing == "leading" else levels[0]
        return Layout(sampler, (*levels, final), scale, 1.0, by_level)
    if isinstance(sampler, SASolver):
        drawn = [level for level, t in by_level.items() if _SA_DRAWS[0] <= t <= _SA_DRAWS[1]]
        sampler = replace(sampler, between=(min(drawn, default=0.0), max(drawn, default=0.0)))
    return Layout(sampler, (*levels, final), math.hypot(1.0, levels[0]), 1 / math.hypot(1.0, final), by_level)


def _edm_layout(sampler: Sampler, config: Mapping[str, Any], schedule: Schedule, steps: int) -> Layout:
    """The levels of EDM's classes: their own between sigma_max and sigma_min, whatever the sampler."""
    kind, rho = config.get("sigma_schedule") or "karras", number(config, "rho", 7.0)
    levels = sigmas(schedule, steps, str(kind), rho=rho)[:-1]
    return Layout(sampler, (*levels, _final(config, schedule.sigma_min)), math.hypot(1.0, levels[0]))


def _levels(
    name: str, config: Mapping[str, Any], schedule: Schedule, steps: int, spacing: str
) -> tuple[list[float], list[float], float]:
    """(levels [steps], the timesteps the network sees [steps], the level at the end)."""
    solver = name in _SOLVERS
    options: Options = {"steps_offset": int(number(config, "steps_offset", 0)), "whole": solver, "spare": solver}
    placed, timesteps = spaced(_clipped(name, config, schedule), steps, spacing, **options)
    levels = list(placed[:-1])
    low, high = (schedule.sigma_min, schedule.sigma_max) if solver else (levels[-1], levels[0])
    last = schedule.sigma_min
    flag = _sigma_flag(name, config)
    if name == "EulerDiscreteScheduler" and config.get("interpolation_type", "linear") == "log_linear":
        line = np.linspace(math.log(schedule.sigma_max), math.log(schedule.sigma_min), steps + 1)
        levels, low, high = np.exp(line[:-1]).tolist(), schedule.sigma_min, schedule.sigma_max
        if not flag:  # diffusers makes one level more than it steps to, and so ends at the lowest
            return levels, list(timesteps), last
    if flag:
        if name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler"):
            low, high = number(config, "sigma_min", low), number(config, "sigma_max", high)
        how = "exponential" if flag == "lu" else flag
        levels = list(sigmas(schedule, steps, how, sigma_min=low, sigma_max=high)[:-1])
        timesteps = tuple(_timestep(name, config, schedule, sigma, flag) for sigma in levels)
        last = last if name in ("EulerDiscreteScheduler", *_DPM_SOLVERS) else levels[-1]
    if name not in (*_SOLVERS, "EulerDiscreteScheduler"):
        last = 0.0
    elif name not in ("DEISMultistepScheduler", "SASolverScheduler"):
        last = _final(config, last)
    return levels, list(timesteps), last


def _final(config: Mapping[str, Any], low: float) -> float:
    """The level at the end: none, or `low`."""
    ends = config.get("final_sigmas_type", "zero")
    if ends not in ("zero", "sigma_min"):
        raise CheckpointError(f"the scheduler's final_sigmas_type {ends!r} is not zero or sigma_min")
    return 0.0 if ends == "zero" else low


def _timestep(name: str, config: Mapping[str, Any], schedule: Schedule, sigma: float, flag: str) -> float:
    """The timestep the network sees in diffusers at a level of Karras', exponential, beta or Lu's spacing."""
    if name not in (*_SOLVERS, "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
        return schedule.sigma_to_t(sigma)
    # In float32 as diffusers has it: its solvers cut off the fraction, so the last digit can decide.
    table = np.log(schedule.training_sigmas.astype(np.float32))
    level = math.log(max(sigma, 1e-10))
    index = min(max(int(np.searchsorted(table, level, side="right")) - 1, 0), len(table) - 2)
    low, high = table[index], table[index + 1]
    weight = min(max(float((low - np.float64(level)) / (low - high)), 0.0), 1.0)
    timestep = (1 - weight) * index + weight * (index + 1)
    rounds = flag in ("karras", "lu")
    if name == "DPMSolverMultistepScheduler" and config.get("beta_schedule") == "squaredcos_cap_v2":
        rounds = False
    timestep = float(np.round(timestep)) if rounds else timestep
    return float(int(timestep)) if name in _SOLVERS else timestep


def _discrete_layout(name: str, sampler: Sampler, config: Mapping[str, Any], schedule: Schedule, steps: int) -> Layout:
    """DDIM, DDPM and PNDM, between whole timesteps."""
    offset = int(number(config, "steps_offset", 0))
    options: Options = {"steps_offset": offset, "whole": True}
    timesteps = [int(t) for t in spaced(schedule, steps, _spacing(config, "leading"), **options)[1]]
    stride = schedule.steps // steps
    to_one = bool(config.get("set_alpha_to_one", name != "PNDMScheduler"))

    top = _top(config, schedule)

    def level(t: int) -> float:
        if t < 0:
            return 0.0 if to_one else schedule.sigma_min
        return top if t >= schedule.steps - 1 else float(schedule.training_sigmas[t])

    levels = [level(t) for t in timesteps]
    targets = [level(t - stride) for t in timesteps]
    final = targets[-1]
    if isinstance(sampler, DDPM):
        final = 0.0
        sampler = DDPM(sampler.variance, sampler.limit, timesteps[-1] > 0)
    elif isinstance(sampler, DDIM):
        sampler = DDIM(sampler.eta, sampler.limit, _unless_plain(targets, [*levels[1:], final]))
    elif isinstance(sampler, PNDM):
        halves = None
        if sampler.warm_up:
            if steps < 4:
                raise RequestError(f"the PNDM sampler warms up in its first 3 steps, so {steps} are too few; ask for 4")
            half = stride // 2
            halves = tuple((level(timesteps[i] - half), level(timesteps[i + 1] + half)) for i in range(3))
        sources = tuple(level(t + stride) for t in timesteps)
        plain = _unless_plain(targets, [*levels[1:], final])
        sampler = PNDM(sampler.warm_up, sampler.prediction, plain, sources, halves)
    by_level = dict(zip(levels, map(float, timesteps), strict=True))
    return Layout(sampler, (*levels, final), math.hypot(1.0, levels[0]), 1 / math.hypot(1.0, final), by_level)


def _distilled_layout(sampler: Sampler, config: Mapping[str, Any], schedule: Schedule, steps: int) -> Layout:
    """LCM's and TCD's timesteps: a subset of the grid of original_inference_steps that it was distilled on."""
    original = int(number(config, "original_inference_steps", 50))
    if not 1 <= original <= schedule.steps:
        raise CheckpointError(f"the scheduler's original_inference_steps {original} is not from 1 to {schedule.steps}")
    if not 1 <= steps <= original:
        name = "TCD" if isinstance(sampler, TCD) else "LCM"
        raise RequestError(
            f"{name} takes from 1 to {original} steps with this checkpoint, not {steps}; 4 to 8 are usual"
        )
    top = _top(config, schedule)
    grid = (np.arange(1, original + 1) * (schedule.steps // original) - 1)[::-1]
    timesteps = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)].tolist()
    levels = [float(schedule.training_sigmas[t]) if t < schedule.steps - 1 else top for t in timesteps]
    if isinstance(sampler, LCM):
        sampler = LCM(sampler.limit, tuple(map(float, timesteps)), sampler.timestep_scaling, sampler.sigma_data)
    by_level = dict(zip(levels, map(float, timesteps), strict=True))
    if isinstance(sampler, TCD):  # the last step ends at the lowest level of training, not at none
        final = schedule.sigma_min
        targets = [float(schedule.training_sigmas[math.floor((1 - sampler.eta) * t)]) for t in (*timesteps[1:], 0)]
        sampler = TCD(sampler.eta, tuple(targets))
        return Layout(sampler, (*levels, final), math.hypot(1.0, levels[0]), 1 / math.hypot(1.0, final), by_level)
    return Layout(sampler, (*levels, 0.0), math.hypot(1.0, levels[0]), 1.0, by_level)


def _top(config: Mapping[str, Any], schedule: Schedule) -> float:
    """The highest level.

    These classes leave a zero-terminal-SNR schedule's infinite one as it is. 2^20 is near enough, and float32 bears it
    with any network but one that predicts noise (which can't start from pure noise at all).
    """
    infinite = config.get("rescale_betas_zero_snr") and schedule.prediction_type in ("v_prediction", "sample")
    return max(schedule.sigma_max, 2.0**20) if infinite else schedule.sigma_max


def _unless_plain(targets: Sequence[float], usual: Sequence[float]) -> tuple[float, ...] | None:
    return None if list(targets) == list(usual) else tuple(targets)


def _clipped(name: str, config: Mapping[str, Any], schedule: Schedule) -> Schedule:
    """The training levels above `lambda_min_clipped`, which DPM-Solver wants with a cosine schedule."""
    low = number(config, "lambda_min_clipped", -math.inf)
    if name not in (*_DPM_SOLVERS, "SASolverScheduler") or low == -math.inf:
        return schedule
    kept = int((-np.log(schedule.training_sigmas) >= low).sum())
    if kept < 2:
        raise CheckpointError(f"the scheduler's lambda_min_clipped {low!r} leaves no noise levels")
    return Schedule(schedule.alphas_cumprod[:kept], schedule.prediction_type)


def _spacing(config: Mapping[str, Any], default: str) -> str:
    spacing = config.get("timestep_spacing", default)
    if spacing not in ("linspace", "leading", "trailing"):
        raise CheckpointError(f"the scheduler's timestep_spacing {spacing!r} is not linspace, leading or trailing")
    return str(spacing)


def _sigma_flag(name: str, config: Mapping[str, Any]) -> str:
    """karras, exponential, beta, lu, or nothing."""
    if name in _DISCRETE or not _ROWS[name].takes_sigmas:
        return ""
    flags = [kind for kind in ("karras", "exponential", "beta") if config.get(f"use_{kind}_sigmas")]
    if len(flags) > 1:
        raise CheckpointError(f"the scheduler asks for {' and '.join(flags)} sigmas; it can have only one of them")
    if name == "DPMSolverMultistepScheduler" and config.get("use_lu_lambdas") and flags[:1] != ["karras"]:
        return "lu"
    return flags[0] if flags else ""


def _limit(name: str, config: Mapping[str, Any]) -> Limit | None:
    if name in _THRESHOLDING and config.get("thresholding"):
        ratio = number(config, "dynamic_thresholding_ratio", 0.995)
        return Threshold(ratio, number(config, "sample_max_value", 1.0))
    if name in _CLIPPING and config.get("clip_sample", _CLIPPING[name]):
        return Clip(number(config, "clip_sample_range", 1.0))
    return None


def _variance(config: Mapping[str, Any]) -> str:
    kind = config.get("variance_type", "fixed_small")
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise CheckpointError(f"the scheduler's variance_type {kind!r} is not fixed_small or fixed_large")
    return "fixed_large" if kind == "fixed_large" else "fixed_small"


def _dpm_solver(config: Mapping[str, Any]) -> tuple[str, Literal["midpoint", "heun"]]:
    """(algorithm, solver type) of a DPM-Solver class."""
    algorithm = str(config.get("algorithm_type", "dpmsolver++"))
    algorithm = "dpmsolver++" if algorithm == "deis" else algorithm
    if not algorithm.endswith("++") and config.get("final_sigmas_type", "zero") == "zero":
        raise CheckpointError(
            f"the scheduler's {algorithm} can't end at zero noise; final_sigmas_type must be sigma_min"
        )
    return algorithm, "heun" if config.get("solver_type") == "heun" else "midpoint"


def _sa_solver(config: Mapping[str, Any], schedule: Schedule, lower: bool, limit: Limit | None) -> Sampler:
    kind = config.get("algorithm_type", "data_prediction")
    if kind not in ("data_prediction", "noise_prediction"):
        raise CheckpointError(f"the scheduler's algorithm_type {kind!r} is not data_prediction or noise_prediction")
    if config.get("tau_func") is not None:
        raise CheckpointError(
            f"the scheduler's tau_func {str(config['tau_func'])[:60]!r} is not supported; only null is"
        )
    orders = (int(number(config, "predictor_order", 2)), int(number(config, "corrector_order", 2)))
    low, high = (schedule.t_to_sigma(float(t)) for t in _SA_DRAWS)
    predict_x0 = kind == "data_prediction"
    return SASolver(*orders, predict_x0, between=(low, high), lower_order_final=lower, limit=limit)
