"""Training noise levels, and the way between a timestep t and a noise level sigma.

All of Darkroom works in one coordinate system, x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364, s(t) = 1).
A variance-preserving model was trained on sqrt(a) x0 + sqrt(1 - a) noise, where a = alphas_cumprod[t]; divided by
sqrt(a) this is ours with sigma = sqrt((1 - a) / a). A flow model was trained on (1 - s) x0 + s noise, which is ours
with sigma = s / (1 - s). An EDM model (CosXL, Playground 2.5) was trained in these very coordinates, and is told
0.25 ln(sigma) where others are told t.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, clip

Floats = NDArray[np.float64]

# Where diffusers clamps the last alphas_cumprod of a zero-terminal-SNR schedule: the top sigma is then about 4096.
TERMINAL_ALPHA = 2.0**-24
# A flow model's s = 1 is an infinite sigma; clamped to 1 - 2**-12 the top sigma is 4095, as for the others.
TERMINAL_FLOW = 1.0 - 2.0**-12

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
_EDM_TYPES = ("edm", "v_prediction")
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# diffusers' classes of the same noise levels, made of betas, and of the same timesteps; besides those of flow and EDM.
BETA_CLASSES = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
        *("DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
        *("EulerDiscrete", "HeunDiscrete", "IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete"),
        *("PNDM", "RePaint", "SASolver", "TCD", "UniPCMultistep"),
    )
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")

# What a diffusers class assumes when its scheduler_config.json does not say: beta_start, beta_end, beta_schedule.
_USUAL = (0.0001, 0.02, "linear")
_BETA_DEFAULTS = {
    "HeunDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2DiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012, "linear"),
    "DPMSolverSDEScheduler": (0.00085, 0.012, "linear"),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "TCDScheduler": (0.00085, 0.012, "scaled_linear"),
}


# diffusers' classes with betas that move or tell them in their own way, and flags that do.
_OTHER_TIMES = ("CogVideoX", "UnCLIP", "VQDiffusion", "DDPMWuerstchen", "CMStochastic", "ConsistencyDecoder")
_OTHER_LEVELS = ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling", "shift_terminal")

# The numbers of a scheduler_config.json that are read: (lowest, highest, whole). Published ones lie far within.
_NUMBERS: Mapping[str, tuple[float, float, bool]] = {
    "num_train_timesteps": (2, 100_000, True),
    "beta_start": (0, 1, False),
    "beta_end": (0, 1, False),
    "steps_offset": (0, 1000, True),
    "solver_order": (1, 9, True),
    "predictor_order": (1, 4, True),
    "corrector_order": (1, 4, True),
    "original_inference_steps": (1, 100_000, True),
    "timestep_scaling": (1e-6, 1e6, False),
    "lambda_min_clipped": (-math.inf, 20, False),
    "dynamic_thresholding_ratio": (0, 1, False),
    "sample_max_value": (1e-3, 1e6, False),
    "clip_sample_range": (1e-3, 1e6, False),
    "shift": (1e-3, 1e3, False),
    "flow_shift": (1e-3, 1e3, False),
    "sigma_min": (1e-5, 1e3, False),
    "sigma_max": (1e-5, 1e5, False),
    "sigma_data": (1e-3, 1e3, False),
    "rho": (0.1, 100, False),
}


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A number of a `scheduler_config.json`, one of those that have bounds; `default` where it's missing or null.

    Raises CheckpointError, with the value, where it is outside them or no number.
    """
    value = config.get(key)
    if value is None:
        return default
    low, high, whole = _NUMBERS[key]
    value = float(value) if value in ("-inf", "-Infinity") else value  # how JSON files write lambda_min_clipped
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high or (whole and value != int(value)):  # NaN is within nothing
        kind = "a whole number" if whole else "a number"
        told = repr(clip(value)) if isinstance(value, str) else clip(value)
        wanted = f"from {low:g} to {high:g}" if low > -math.inf else f"of at most {high:g}"
        raise CheckpointError(f"the scheduler's {key} is {told}; it must be {kind} {wanted}")
    return float(value)


def _usual(name: str) -> tuple[float, float, str]:
    return _BETA_DEFAULTS.get(name, _USUAL)


def levels_of(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `scheduler_config.json` that say which noise levels there are and what the network predicts.

    All are written out, so that they mean the same under any `_class_name`.
    """
    start, end, kind = _usual(str(scheduler_config.get("_class_name", "")))
    usual = {
        "num_train_timesteps": 1000, "beta_start": start, "beta_end": end, "beta_schedule": kind,
        "trained_betas": None, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
    }  # fmt: skip
    return {name: scheduler_config.get(name, value) for name, value in usual.items()}


class Schedule:
    """The noise levels a model was trained at, and what its network predicts.

    Attributes:
        alphas_cumprod: float64 [T]; the signal's share of the variance at each training timestep, descending in 0..1.
        training_sigmas: float64 [T]; sqrt((1 - alphas_cumprod) / alphas_cumprod), ascending.
        prediction_type: "epsilon", "v_prediction", "sample" (x0), "flow", or "edm" (F of Karras et al. 2022, eq. 7).
        shift: the timestep shift of a flow model (1 otherwise).
        sigma_data: of an EDM model, the deviation of the latents it was scaled by; None for all others.

    Values are those of diffusers' schedulers to the last digit, because they are computed in the same float32 steps.
    Timesteps are 0 to T - 1; a flow model's are T * s, in 0..T, and its t <-> sigma is a formula, not a table.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor | Floats,
        prediction_type: str = "epsilon",
        shift: float = 1.0,
        sigma_data: float | None = None,
    ) -> None:
        """Raises CheckpointError when the levels are not finite and strictly ascending, or the type is unknown."""
        types = PREDICTION_TYPES if sigma_data is None else _EDM_TYPES
        if prediction_type not in types:
            raise CheckpointError(
                f"the scheduler's prediction_type {prediction_type!r} is not one of {', '.join(types)}"
            )
        # The division and root stay in the precision they arrive in (float32 from from_config), as in diffusers.
        cumprod = torch.as_tensor(alphas_cumprod)
        sigmas = ((1 - cumprod) / cumprod) ** 0.5
        self.alphas_cumprod: Floats = cumprod.double().numpy()
        self.training_sigmas: Floats = sigmas.double().numpy()
        self.prediction_type = prediction_type
        self.shift = shift
        self.sigma_data = sigma_data
        ok = self.training_sigmas.ndim == 1 and len(self.training_sigmas) >= 2
        ok = ok and bool(np.isfinite(self.training_sigmas).all()) and self.training_sigmas[0] > 0
        if not ok or not bool((np.diff(self.training_sigmas) > 0).all()):
            raise CheckpointError(
                "the scheduler's betas do not give noise levels that rise at every timestep; "
                "check num_train_timesteps, beta_start, beta_end and trained_betas in scheduler_config.json"
            )
        self._host = self.training_sigmas.tolist()  # bisect on a list beats numpy for one number
        self._tables: dict[torch.device, Tensor] = {}

    @classmethod
    def from_config(cls, scheduler_config: Mapping[str, Any]) -> Schedule:
        """Read the fields of diffusers' `scheduler_config.json`; what is missing is that class's default.

        Used: _class_name, num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
        rescale_betas_zero_snr; for flow models use_flow_sigmas, shift, flow_shift; for EDM models sigma_min, sigma_max,
        sigma_data, sigma_schedule, rho.
        Raises CheckpointError, with the value, for anything that can't be meant, and for a class whose network is told
        something else.
        """
        config = scheduler_config
        for key in _NUMBERS:  # those of the sampler, too: a file is refused when it is read
            number(config, key, 0.0)
        steps = int(number(config, "num_train_timesteps", 1000))
        name = str(config.get("_class_name", ""))
        prediction = config.get("prediction_type") or "epsilon"
        if name in EDM_CLASSES:
            return cls._edm(config, steps, prediction)
        _check_class(name, config)
        if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or prediction in ("flow", "flow_prediction"):
            key = "shift" if "shift" in config else "flow_shift"
            return cls.flow(steps, number(config, key, 1.0))
        if config.get("timestep_type", "discrete") != "discrete" and prediction == "v_prediction":
            raise CheckpointError(
                f"the scheduler's timestep_type {config['timestep_type']!r} is not supported; only 'discrete' is"
            )
        betas = _betas(config, steps, _usual(name))
        rescale = bool(config.get("rescale_betas_zero_snr", False))
        if rescale:
            betas = rescale_zero_terminal_snr(betas)
        cumprod = torch.cumprod(1.0 - betas, dim=0)
        return cls(_clamp_terminal(cumprod) if rescale else cumprod, prediction)

    @classmethod
    def flow(cls, steps: int = 1000, shift: float = 1.0) -> Schedule:
        """A rectified-flow model: s = t / steps for t = 1 .. steps, moved by `shift` (arXiv 2403.03206, eq. 23)."""
        s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        s = shift * s / (1 + (shift - 1) * s)
        s[-1] = max(TERMINAL_FLOW, (1 + float(s[-2])) / 2)  # not 1, and above the one before at any shift
        # Our sigma is s / (1 - s); a variance-preserving model at that sigma has alphas_cumprod = 1 / (1 + sigma^2).
        return cls((1 - s) ** 2 / ((1 - s) ** 2 + s**2), "flow", shift)

    @classmethod
    def edm(
        cls,
        steps: int,
        sigmas: tuple[float, float],
        sigma_data: float,
        prediction: str = "edm",
        rho: float | None = 7.0,
    ) -> Schedule:
        """A model of Karras et al. 2022: `steps` levels between `sigmas`, by their eq. 5 with `rho`; None: evenly in
        ln(sigma). `prediction`: "edm", or "v_prediction", the same with the other sign.
        """
        low, high = sigmas
        ramp = np.linspace(0.0, 1.0, steps)
        if rho is None:
            levels = np.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))
        else:
            levels = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
        return cls(1 / (1 + levels**2), prediction, sigma_data=sigma_data)

    @classmethod
    def _edm(cls, config: Mapping[str, Any], steps: int, prediction: object) -> Schedule:
        if prediction not in ("epsilon", "v_prediction"):
            raise CheckpointError(
                f"the scheduler's prediction_type {prediction!r} is not one of epsilon, v_prediction, which EDM's are"
            )
        kind = config.get("sigma_schedule") or "karras"
        if kind not in ("karras", "exponential"):
            raise CheckpointError(f"the scheduler's sigma_schedule {kind!r} is not karras or exponential")
        low = number(config, "sigma_min", 0.002)
        high = number(config, "sigma_max", 80.0)
        if low >= high:
            raise CheckpointError(f"the scheduler's sigma_min {low:g} is not below its sigma_max {high:g}")
        # diffusers' EDM classes call F "epsilon".
        answers = "edm" if prediction == "epsilon" else "v_prediction"
        rho = None if kind == "exponential" else number(config, "rho", 7.0)
        return cls.edm(steps, (low, high), number(config, "sigma_data", 0.5), answers, rho)

    @overload
    def told(self, t: float) -> float: ...
    @overload
    def told(self, t: Tensor) -> Tensor: ...
    def told(self, t: float | Tensor) -> float | Tensor:
        """What the network is told at a timestep, c_noise: the timestep itself, or an EDM model 0.25 ln(sigma)."""
        if self.sigma_data is None:
            return t
        if isinstance(t, Tensor):
            return self._t_to_sigma_tensor(t).log() / 4
        return math.log(self.t_to_sigma(t)) / 4

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self._host)

    @property
    def sigma_min(self) -> float:
        """The smallest training noise level, above 0 (about 0.029 for Stable Diffusion)."""
        return float(self._host[0])

    @property
    def sigma_max(self) -> float:
        """The largest training noise level (about 14.6 for Stable Diffusion, 4096 with zero terminal SNR)."""
        return float(self._host[-1])

    @overload
    def t_to_sigma(self, t: float) -> float: ...
    @overload
    def t_to_sigma(self, t: Tensor) -> Tensor: ...
    def t_to_sigma(self, t: float | Tensor) -> float | Tensor:
        """The noise level of a timestep, log-linear between whole ones, clamped to the training range.

        A float gives a float; a tensor of any shape and dtype gives a float32 tensor there. Exact at whole timesteps.
        """
        if isinstance(t, Tensor):
            return self._t_to_sigma_tensor(t)
        if math.isnan(t):
            raise ValueError("timestep is not a number")
        if self.prediction_type == "flow":
            s = min(max(t / self.steps, 0.0), 1.0)
            return self.sigma_max if s == 1 else min(max(s / (1 - s), self.sigma_min), self.sigma_max)
        t = min(max(t, 0.0), self.steps - 1.0)
        low = min(int(t), self.steps - 2)
        a, b, w = self._host[low], self._host[low + 1], t - low
        return float(a if w == 0 else b if w == 1 else a * (b / a) ** w)

    @overload
    def sigma_to_t(self, sigma: float) -> float: ...
    @overload
    def sigma_to_t(self, sigma: Tensor) -> Tensor: ...
    def sigma_to_t(self, sigma: float | Tensor) -> float | Tensor:
        """The (fractional) timestep of a noise level: the inverse of `t_to_sigma`, 0 for sigma 0.

        A float gives a float; a tensor of any shape gives a float32 tensor on its device, without waiting for it.
        Equal to diffusers' `_sigma_to_t`; exact at training sigmas.
        """
        if isinstance(sigma, Tensor):
            return self._sigma_to_t_tensor(sigma)
        if math.isnan(sigma):
            raise ValueError("noise level sigma is not a number")
        sigma = min(max(sigma, self.sigma_min), self.sigma_max)
        if self.prediction_type == "flow":
            return self.steps * sigma / (1 + sigma)
        low = min(bisect_right(self._host, sigma) - 1, self.steps - 2)
        a, b = self._host[low], self._host[low + 1]
        return float(low + math.log(sigma / a) / math.log(b / a))

    def _table(self, device: torch.device) -> Tensor:
        """The training sigmas on a device; in float64 where it has it, so that whole timesteps come back exactly."""
        if device not in self._tables:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._tables[device] = torch.from_numpy(self.training_sigmas).to(device=device, dtype=dtype)
        return self._tables[device]

    def _t_to_sigma_tensor(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        t = t.to(table.dtype)
        if self.prediction_type == "flow":
            s = (t / self.steps).clamp(0.0, 1.0)  # s = 1 gives infinity, and the clamp below sigma_max
            return (s / (1 - s)).clamp(self.sigma_min, self.sigma_max).float()
        t = t.clamp(0, self.steps - 1)
        low = t.long().clamp_max(self.steps - 2)
        a, b, w = table[low], table[low + 1], t - low
        return torch.where(w == 1, b, a * (b / a) ** w).float()

    def _sigma_to_t_tensor(self, sigma: Tensor) -> Tensor:
        table = self._table(sigma.device)
        sigma = sigma.to(table.dtype).clamp(self.sigma_min, self.sigma_max)
        if self.prediction_type == "flow":
            return (self.steps * sigma / (1 + sigma)).float()
        low = (torch.searchsorted(table, sigma, right=True) - 1).clamp(0, self.steps - 2)
        a, b = table[low], table[low + 1]
        return (low + (sigma / a).log() / (b / a).log()).float()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # tables on devices are made again where it wakes up

    def __repr__(self) -> str:
        return (
            f"Schedule({self.steps} timesteps, {self.prediction_type}, "
            f"sigma {self.sigma_min:.4g} to {self.sigma_max:.4g})"
        )


def _check_class(name: str, config: Mapping[str, Any]) -> None:
    """CheckpointError for a class or a flag that makes other noise levels or timesteps than betas or flow do."""
    known = name.removeprefix("Flax") in BETA_CLASSES or name.startswith("FlowMatch")
    # A class of somebody's own is taken by its betas, if it says that it has some.
    if name and not known and "beta_schedule" not in config and config.get("trained_betas") is None:
        raise CheckpointError(f"the scheduler {name!r} is not supported: its noise levels are not made from betas")
    if name.startswith(_OTHER_TIMES):
        raise CheckpointError(f"the scheduler {name!r} is not supported: it tells its network other noise levels")
    for flag in _OTHER_LEVELS:
        if config.get(flag):
            raise CheckpointError(f"the scheduler's {flag} {config[flag]!r} is not supported: other noise levels")


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas [T] whose last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1).

    sqrt(alphas_cumprod) is shifted so that its last value is 0 and scaled so that its first stays.
    """
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    cumprod = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([cumprod[:1], cumprod[1:] / cumprod[:-1]])
    return 1 - alphas


def _clamp_terminal(cumprod: Tensor) -> Tensor:
    """alphas_cumprod [T] with the last one lifted from 0 to TERMINAL_ALPHA, as diffusers does.

    With some betas (the linear ones to 0.02, for one) the timesteps just before lie below that already; diffusers'
    noise levels then fall again at the last. Here those few are put between their neighbours, so that levels rise.
    """
    last = len(cumprod) - 1
    good = max(int((cumprod[:-1] > TERMINAL_ALPHA).sum()) - 1, 0)
    low, high = math.log(cumprod[good]), math.log(TERMINAL_ALPHA)
    between = [math.exp(low + (high - low) * (i - good) / (last - good)) for i in range(good + 1, last)]
    return torch.cat([cumprod[: good + 1], cumprod.new_tensor([*between, TERMINAL_ALPHA])])


def _betas(config: Mapping[str, Any], steps: int, defaults: tuple[float, float, str]) -> Tensor:
    """float32 [T], in the very operations of diffusers, so that every later digit agrees."""
    trained = config.get("trained_betas")
    if trained is not None:
        try:
            betas = torch.tensor(np.asarray(trained, dtype=np.float64), dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise CheckpointError("the scheduler's trained_betas are not a list of numbers") from error
        if betas.ndim != 1 or not 2 <= len(betas) <= 100_000 or not bool(((betas > 0) & (betas < 1)).all()):
            raise CheckpointError(
                f"the scheduler's trained_betas must be a list of at least two numbers between 0 and 1; "
                f"there are {betas.numel()}, from {betas.min() if betas.numel() else 0:g} "
                f"to {betas.max() if betas.numel() else 0:g}"
            )
        return betas
    kind = config.get("beta_schedule") or defaults[2]
    start = number(config, "beta_start", defaults[0])
    end = number(config, "beta_end", defaults[1])
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        return _cosine_betas(steps)
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start
    raise CheckpointError(f"the scheduler's beta_schedule {kind!r} is not one of {', '.join(BETA_SCHEDULES)}")


def _cosine_betas(steps: int) -> Tensor:
    """The cosine schedule of Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17), betas capped at 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor(
        [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)], dtype=torch.float32
    )
