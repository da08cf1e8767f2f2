"""Samplers by name: ComfyUI's ids, A1111's names and aliases, diffusers' class names.

    get("lms"), get("DPM++ 2M Karras"), get("k_euler_a"), get("DDIMScheduler", eta=0.5)

How to add one: write a frozen dataclass with `step` (see `state.Sampler`) and give it a row in `_TABLE`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ..errors import RequestError, nearest, shown
from ..names import SamplerId

if TYPE_CHECKING:
    from .state import Sampler

__all__ = ["Entry", "canonical", "entries", "entry", "get", "names"]

STEPS = 30  # where nothing is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """All that is known of one sampler besides its mathematics.

    Attributes:
        id: ComfyUI's, where there is one.
        label: A1111's name, what infotext says.
        make: "module.Class" in this package, imported when asked for: names alone cost no torch.
        options: of that class.
        aliases: its other names.
        diffusers: the class whose name means this sampler.
        shares: the class that it is with `flags`, where that class's name means another sampler.
        flags: of the diffusers class in `scheduler_config.json`: what makes it this sampler.
        levels: how its class lays out noise levels. "sigma": on x0 + sigma noise at fractional timesteps; "solver":
            variance-preserving, with room for a last timestep below its lowest; "whole": variance-preserving, between
            whole timesteps of training.
        takes_sigmas: its class knows `use_karras_sigmas` and the like.
        takes_spacing: its class knows `timestep_spacing`.
        drops_penultimate: with a spacing asked for, n + 1 levels are made and the last but one removed.
        schedule: A1111's own for it, where none is asked for ("Automatic"); None: the class's.
        draws: how k-diffusion draws noise on the way: "ancestral": independently; "brownian": along a path; "": none.
        eta: the share of noise that it draws on the way, where another may be asked for; None: there is none to ask.
        steps: the number of steps where nothing is said.
    """

    id: SamplerId
    label: str
    make: str
    options: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    diffusers: str | None = None
    shares: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    levels: Literal["sigma", "solver", "whole"] = "sigma"
    takes_sigmas: bool = True
    takes_spacing: bool = True
    drops_penultimate: bool = False
    schedule: str | None = "normal"
    draws: Literal["", "ancestral", "brownian"] = ""
    eta: float | None = None
    steps: int = STEPS

    @property
    def scheduler(self) -> str:
        """The diffusers class whose levels it has; its own id where diffusers has none."""
        return self.diffusers or self.shares or self.id


_DPM = "DPMSolverMultistepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_TABLE = (
    Entry(id="euler", label="Euler", make="single.Euler", aliases=("k_euler",), diffusers="EulerDiscreteScheduler"),
    Entry(
        id="euler_ancestral",
        label="Euler a",
        make="single.EulerAncestral",
        aliases=("k_euler_a", "euler_a"),
        diffusers="EulerAncestralDiscreteScheduler",
        takes_sigmas=False,
        draws="ancestral",
        eta=1.0,
    ),
    Entry(id="heun", label="Heun", make="two_stage.Heun", aliases=("k_heun",), diffusers="HeunDiscreteScheduler"),
    Entry(
        id="dpm_2",
        label="DPM2",
        make="two_stage.DPM2",
        aliases=("k_dpm_2", "dpm2"),
        diffusers="KDPM2DiscreteScheduler",
        drops_penultimate=True,
        schedule="karras",
    ),
    Entry(
        id="dpm_2_ancestral",
        label="DPM2 a",
        make="two_stage.DPM2Ancestral",
        aliases=("k_dpm_2_a", "dpm2_a", "dpm_2_a"),
        diffusers="KDPM2AncestralDiscreteScheduler",
        drops_penultimate=True,
        schedule="karras",
        draws="ancestral",
        eta=1.0,
    ),
    Entry(id="lms", label="LMS", make="multistep.LMS", aliases=("k_lms",), diffusers="LMSDiscreteScheduler"),
    Entry(
        id="dpmpp_2s_ancestral",
        label="DPM++ 2S a",
        make="two_stage.DPMpp2SAncestral",
        aliases=("k_dpmpp_2s_a", "dpmpp_2s_a"),
        takes_sigmas=False,
        schedule="karras",
        draws="ancestral",
        eta=1.0,
    ),
    Entry(
        id="dpmpp_2m",
        label="DPM++ 2M",
        make="dpm.DPMMultistep",
        aliases=("k_dpmpp_2m",),
        diffusers=_DPM,
        flags=_SDE | {"algorithm_type": "dpmsolver++"},
        levels="solver",
        schedule="karras",
    ),
    Entry(
        id="dpmpp_2s",
        label="DPM++ 2S",
        make="dpm.DPMSinglestep",
        diffusers="DPMSolverSinglestepScheduler",
        flags=_SDE | {"algorithm_type": "dpmsolver++"},
        levels="solver",
        takes_spacing=False,
        schedule=None,
    ),
    Entry(
        id="dpmpp_sde",
        label="DPM++ SDE",
        make="two_stage.DPMppSDE",
        aliases=("k_dpmpp_sde",),
        diffusers="DPMSolverSDEScheduler",
        schedule="karras",
        draws="brownian",
        eta=1.0,
    ),
    Entry(
        id="dpmpp_2m_sde",
        label="DPM++ 2M SDE",
        make="dpm.DPMMultistep",
        options={"algorithm": "sde-dpmsolver++"},
        aliases=("k_dpmpp_2m_sde",),
        shares=_DPM,
        flags=_SDE,
        levels="solver",
        schedule="exponential",
        draws="brownian",
        eta=1.0,
    ),
    Entry(
        id="dpmpp_2m_sde_heun",
        label="DPM++ 2M SDE Heun",
        make="dpm.DPMMultistep",
        options={"algorithm": "sde-dpmsolver++", "solver": "heun"},
        aliases=("k_dpmpp_2m_sde_heun",),
        shares=_DPM,
        flags=_SDE | {"solver_type": "heun"},
        levels="solver",
        schedule="exponential",
        draws="brownian",
        eta=1.0,
    ),
    Entry(
        id="dpmpp_3m_sde",
        label="DPM++ 3M SDE",
        make="dpm.DPMMultistep",
        options={"algorithm": "sde-dpmsolver++", "order": 3, "solver": "heun", "lower_order_final": False},
        aliases=("k_dpmpp_3m_sde",),
        shares=_DPM,
        flags=_SDE | {"solver_order": 3, "solver_type": "heun", "lower_order_final": False},
        levels="solver",
        drops_penultimate=True,
        schedule="exponential",
        draws="brownian",
        eta=1.0,
    ),
    Entry(
        id="ddim",
        label="DDIM",
        make="single.DDIM",
        diffusers="DDIMScheduler",
        levels="whole",
        schedule="leading",
        eta=0.0,
    ),
    Entry(id="ddpm", label="DDPM", make="single.DDPM", diffusers="DDPMScheduler", levels="whole", draws="ancestral"),
    Entry(
        id="plms",
        label="PLMS",
        make="multistep.PNDM",
        diffusers="PNDMScheduler",
        flags={"skip_prk_steps": True},
        levels="whole",
        schedule="leading",
    ),
    Entry(
        id="pndm",
        label="PNDM",
        make="multistep.PNDM",
        options={"warm_up": True},
        shares="PNDMScheduler",
        flags={"skip_prk_steps": False},
        levels="whole",
    ),
    Entry(
        id="uni_pc",
        label="UniPC",
        make="unipc.UniPC",
        options={"solver": "bh1"},
        aliases=("unipc",),
        shares="UniPCMultistepScheduler",
        flags={"solver_type": "bh1"},
        levels="solver",
        schedule="leading",
    ),
    Entry(
        id="uni_pc_bh2",
        label="UniPC bh2",
        make="unipc.UniPC",
        aliases=("unipc_bh2",),
        diffusers="UniPCMultistepScheduler",
        flags={"solver_type": "bh2"},
        levels="solver",
    ),
    Entry(id="deis", label="DEIS", make="multistep.DEIS", diffusers="DEISMultistepScheduler", levels="solver"),
    Entry(
        id="sa_solver",
        label="SA Solver",
        make="sa_solver.SASolver",
        diffusers="SASolverScheduler",
        levels="solver",
        schedule=None,
        draws="ancestral",
        eta=1.0,
    ),
    # diffusers' IPNDMScheduler has noise levels of its own, of audio models; here it runs on the checkpoint's.
    Entry(id="ipndm", label="iPNDM", make="multistep.IPNDM", diffusers="IPNDMScheduler", takes_sigmas=False),
    Entry(
        id="tcd",
        label="TCD",
        make="single.TCD",
        diffusers="TCDScheduler",
        levels="whole",
        steps=4,
        schedule=None,
        draws="ancestral",
    ),
    Entry(
        id="lcm",
        label="LCM",
        make="single.LCM",
        diffusers="LCMScheduler",
        levels="whole",
        steps=4,
        schedule=None,
        draws="ancestral",
    ),
)
_BY_ID = {row.id: row for row in _TABLE}
_BY_NAME = {
    name.casefold(): row
    for row in _TABLE
    for name in (row.id, row.label, *row.aliases, *([row.diffusers] if row.diffusers else []))
}
# Endings that older pictures and scripts use for a sampler with a schedule: "DPM++ 2M Karras", "k_dpmpp_2m_ka".
_SCHEDULES: Mapping[str, Literal["karras", "exponential"]] = {
    "karras": "karras",
    "ka": "karras",
    "exponential": "exponential",
    "exp": "exponential",
}


def names() -> list[SamplerId]:
    """The samplers' ids, in the order they are offered."""
    return [row.id for row in _TABLE]


def entries() -> tuple[Entry, ...]:
    """All that is known of the samplers, in the order they are offered."""
    return _TABLE


def canonical(name: object) -> tuple[SamplerId, Literal["karras", "exponential"] | None]:
    """A sampler's id, and the schedule that its name implies ("karras", "exponential") or None.

    Accepts ids, A1111's names and aliases, diffusers' class names, in any case. Raises RequestError for anything else.
    """
    if not isinstance(name, str):
        raise RequestError(f"a sampler's name is a text, not {shown(name, 80)}; there are {', '.join(names())}")
    key = " ".join(name.casefold().split()).removesuffix("_gpu")  # ComfyUI's, where the noise is made on the GPU
    if key in _BY_NAME:
        return _BY_NAME[key].id, None
    stem, _, ending = key.replace("_", " ").rpartition(" ")
    stem = key[: len(stem)]
    if ending in _SCHEDULES and stem in _BY_NAME:
        return _BY_NAME[stem].id, _SCHEDULES[ending]
    with_schedules = (f"{row.label} {ending.capitalize()}" for row in _TABLE for ending in _SCHEDULES)
    told = nearest(name[:80], [*names(), *(row.label for row in _TABLE), *with_schedules, *_BY_NAME])
    raise RequestError(f"there is no sampler {shown(name, 80)}{told or '; there are ' + ', '.join(names())}")


def entry(name: object) -> Entry:
    """What is known of a sampler, by any of its names. Raises RequestError as `canonical` does."""
    return _BY_ID[canonical(name)[0]]


def get(name: object, /, **options: Any) -> Sampler:
    """A sampler by any of its names, with options of its dataclass (eta, s_noise, order, ...).

    Raises RequestError for a name or an option that doesn't exist.
    """
    row = entry(name)
    module, _, kind = row.make.partition(".")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    known = [f.name for f in dataclasses.fields(make)]
    wrong = [option for option in options if option not in known]
    if wrong:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise RequestError(f"the sampler {row.id} has no option {shown(wrong[0], 80)}; {takes}")
    sampler: Sampler = make(**{**row.options, **options})
    return sampler


class _Names(ModuleType):
    """`darkroom.samplers()` gives the names; `darkroom.samplers.get` stays this module's."""

    def __call__(self) -> list[SamplerId]:
        return names()


sys.modules[__name__].__class__ = _Names
