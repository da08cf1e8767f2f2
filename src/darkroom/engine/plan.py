"""Which sampler visits which noise levels: a checkpoint's configuration and a user's wishes become a Plan.

- No wish: exactly what diffusers does with the checkpoint's scheduler_config.json.
- A sampler by name, no schedule: the checkpoint's spacing flags stay, as with diffusers' `X.from_config(pipe.scheduler
  .config)`; what a sampler's name says (DPM++ 2M: midpoint, second order) wins over the flags. An old name with a
  schedule in it ("DPM++ 2M Karras") asks for that schedule.
- A schedule "linspace", "leading" or "trailing": diffusers' `timestep_spacing`, in place of the checkpoint's.
- A flow model's and an EDM model's levels are their own, whatever the sampler, unless a schedule is asked for.
- Any other schedule: those levels as A1111 and ComfyUI make them, with fractional timesteps; DPM2, DPM2 a and
  DPM++ 3M SDE leave out the last level but one, as there.
- No number of steps: 30, or 4 for LCM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..diffusion import AUTOMATIC, spacing_name
from ..diffusion.schedule import Schedule
from ..errors import CheckpointError, RequestError
from ..formats.scheduler_config import (
    CLASSES,
    Layout,
    as_stable_diffusion,
    class_layout,
    known_class,
    make_sampler,
    spaced_layout,
)
from ..samplers import canonical, entries, entry
from ..samplers.multistep import LMS, PNDM
from ..samplers.state import Sampler

DIFFUSERS_SPACINGS = ("linspace", "leading", "trailing")
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Plan:
    """A sampler and where it goes.

    Attributes:
        sigmas: steps + 1 noise levels, descending; the last is 0 unless the scheduler ends above zero noise.
        init_scale: the starting x is this times unit-variance noise.
        final_scale: the final x times this is the latent.
        timesteps: the timestep of a level, where it is known; elsewhere schedule.sigma_to_t.
            Keys are the very floats of `sigmas`. diffusers rounds some timesteps, so its picture needs this.
        sampler_name, schedule_name: names that give this plan again with the same configuration.
        start: the interval a picture begins in; later than 0 for one that begins as another picture with noise.
        stop: the interval it doesn't enter any more, and comes out with noise in it; None: it is finished.
    """

    sampler: Sampler
    sigmas: tuple[float, ...]
    init_scale: float
    final_scale: float = 1.0
    timesteps: Mapping[float, float] = field(default_factory=dict)
    sampler_name: str = ""
    schedule_name: str = AUTOMATIC
    start: int = 0
    stop: int | None = None

    @property
    def steps(self) -> int:
        """Intervals between levels; some samplers ask the network twice in each."""
        return len(self.sigmas) - 1

    @property
    def start_sigma(self) -> float:
        """The noise level a picture begins at."""
        if isinstance(self.sampler, PNDM) and 0 < self.start < self.steps:
            return self.sigmas[self.sampler.questions(self.start)[0]]
        return self.sigmas[self.start]

    def between(self, start: float | None, stop: float | None, schedule: Schedule) -> Plan:
        """This plan from and up to fractions (0 to 1) of the noise's way, in training time: what two models share.

        As diffusers' `denoising_start` and `denoising_end`: the steps that start at a timestep of
        `steps - fraction * steps` or above are before the fraction. Raises RequestError where no step is left.
        """
        timesteps = [self.timesteps.get(sigma, schedule.sigma_to_t(sigma)) for sigma in self.sigmas[:-1]]

        def before(fraction: float) -> int:
            cut = round(schedule.steps - fraction * schedule.steps)
            return sum(timestep >= cut for timestep in timesteps)

        first = 0 if start is None else before(start)
        last = self.steps if stop is None else before(stop)
        if first >= last:
            raise RequestError(
                f"no step of {self.steps} lies between start {0 if start is None else start} and stop "
                f"{1 if stop is None else stop}; ask for more steps, or for more between them"
            )
        if stop is None:
            return replace(self, start=first)
        return replace(self, start=first, stop=last, final_scale=1.0)

    def from_interval(self, start: int, *, sliced: bool = False) -> Plan:
        """This plan for a picture that begins in interval `start` (0 to steps) with an empty history.

        sliced: as diffusers' pipelines cut their schedulers' lists. It differs for LMS and PLMS only, whose first steps
        then are not what their authors meant, and only on the schedules that diffusers has.
        """
        sampler = self.sampler
        differs = isinstance(sampler, LMS) or (isinstance(sampler, PNDM) and not sampler.warm_up)
        if sliced and differs and self.schedule_name in (AUTOMATIC, *DIFFUSERS_SPACINGS):
            sampler = replace(sampler, sliced=True)  # type: ignore[type-var]  # of these two classes
        return replace(self, start=start, sampler=sampler)


def plan(
    schedule: Schedule,
    scheduler_config: Mapping[str, Any],
    steps: int | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    *,
    literal: bool = False,
    drop_penultimate: bool | None = None,
) -> Plan:
    """The plan for a picture.

    Args:
        schedule: the model's noise levels.
        scheduler_config: diffusers' fields; without `_class_name` PNDMScheduler is assumed, Stable Diffusion's first.
        steps: None for the usual number.
        sampler: any name of `darkroom.samplers`, or None for the configuration's.
        spacing: any name of `diffusion.spacings`, or None (or "automatic") for the configuration's.
        literal: take steps_offset and clip_sample as they are. Otherwise they are 1 and False, which is what diffusers'
            Stable Diffusion pipelines make of them.
        drop_penultimate: for schedules that aren't diffusers': whether the last level but one is left out; None: as
            A1111 does for the sampler.

    Raises RequestError for wishes that can't be met and CheckpointError for a configuration that can't be read.
    """
    config = dict(scheduler_config) if literal else as_stable_diffusion(scheduler_config)
    kind, name, implied = _sampler(sampler, config, schedule)
    config |= {} if name in CLASSES else entry(name).flags
    count = _count(steps, kind)
    wish = _wish(spacing) or implied
    if schedule.prediction_type == "flow":
        wish = wish or "trailing"
    elif wish is None or (wish in DIFFUSERS_SPACINGS and schedule.sigma_data is None and entry(kind).takes_spacing):
        if wish is not None:
            config |= {"timestep_spacing": wish, "use_lu_lambdas": False}
            config |= {f"use_{flag}_sigmas": False for flag in ("karras", "exponential", "beta")}
        return _plan(class_layout(kind, config, schedule, count), name, wish)
    made = make_sampler(kind, config | {"final_sigmas_type": "sigma_min"}, schedule)
    drop = entry(name).drops_penultimate if drop_penultimate is None else drop_penultimate
    return _plan(spaced_layout(kind, made, schedule, count, wish, drop), name, wish)


def _plan(layout: Layout, name: str, wish: str | None) -> Plan:
    return Plan(
        layout.sampler,
        layout.sigmas,
        layout.init_scale,
        layout.final_scale,
        timesteps=layout.timesteps,
        sampler_name=name,
        schedule_name=wish or AUTOMATIC,
    )


def _sampler(sampler: str | None, config: Mapping[str, Any], schedule: Schedule) -> tuple[str, str, str | None]:
    """(the class to read the flags as, the sampler's name, the schedule that name implies or None)."""
    if sampler is None:
        kind = known_class(config)
        if kind is None:
            raise CheckpointError(
                f"the checkpoint's scheduler {str(config.get('_class_name'))[:60]!r} is not one of "
                f"{', '.join(CLASSES)}; name a sampler, such as 'dpmpp_2m'"
            )
        return kind, _name(kind, config, schedule), None
    identity, implied = canonical(sampler)
    written = sampler.strip().casefold()
    for kind in CLASSES:
        if written == kind.casefold():
            return kind, _name(kind, config, schedule), None
    return entry(identity).scheduler, identity, implied


def _name(kind: str, config: Mapping[str, Any], schedule: Schedule) -> str:
    """The id whose sampler is what class `kind` is with these flags; the class's name where no id is."""
    made = make_sampler(kind, config, schedule)
    for row in entries():
        if row.scheduler == kind and make_sampler(kind, {**config, **row.flags}, schedule) == made:
            return row.id
    return kind


def _count(steps: int | None, kind: str) -> int:
    if steps is None:
        return entry(kind).steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise RequestError(f"the number of steps is {steps!r}; it must be a whole number from 1 to {MAX_STEPS}")
    return steps


def _wish(spacing: str | None) -> str | None:
    if spacing is None or (isinstance(spacing, str) and spacing.strip().casefold() in (AUTOMATIC, "")):
        return None
    if not isinstance(spacing, str):
        raise RequestError(f"a schedule's name is a string, not {spacing!r}")
    return spacing_name(spacing)
