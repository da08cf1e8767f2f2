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
from typing import TYPE_CHECKING, Any

from ..errors import RequestError, closest, shown

if TYPE_CHECKING:
    from .state import Sampler

__all__ = ["Entry", "canonical", "entry", "get", "names"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One sampler: its id (ComfyUI's where there is one), A1111's name, its other names, and how it is made."""

    id: str
    label: str  # A1111's name, what infotext says
    make: str  # "module.Class" in this package, imported when asked for: names alone cost no torch
    options: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    diffusers: str | None = None  # the class that means this sampler, and whose level layout it takes by default
    drops_penultimate: bool = False  # with a spacing asked for, n + 1 levels are made and the last but one removed


_SDE = {"algorithm": "sde-dpmsolver++"}
_TABLE = (
    Entry("euler", "Euler", "single.Euler", aliases=("k_euler",), diffusers="EulerDiscreteScheduler"),
    Entry(
        "euler_ancestral",
        "Euler a",
        "single.EulerAncestral",
        aliases=("k_euler_a", "euler_a"),
        diffusers="EulerAncestralDiscreteScheduler",
    ),
    Entry("heun", "Heun", "two_stage.Heun", aliases=("k_heun",), diffusers="HeunDiscreteScheduler"),
    Entry("dpm_2", "DPM2", "two_stage.DPM2", {}, ("k_dpm_2", "dpm2"), "KDPM2DiscreteScheduler", True),
    Entry(
        "dpm_2_ancestral",
        "DPM2 a",
        "two_stage.DPM2Ancestral",
        {},
        ("k_dpm_2_a", "dpm2_a", "dpm_2_a"),
        "KDPM2AncestralDiscreteScheduler",
        True,
    ),
    Entry("lms", "LMS", "multistep.LMS", aliases=("k_lms",), diffusers="LMSDiscreteScheduler"),
    Entry("dpmpp_2s_ancestral", "DPM++ 2S a", "two_stage.DPMpp2SAncestral", aliases=("k_dpmpp_2s_a", "dpmpp_2s_a")),
    Entry("dpmpp_2m", "DPM++ 2M", "dpm.DPMMultistep", {}, ("k_dpmpp_2m",), "DPMSolverMultistepScheduler"),
    Entry("dpmpp_sde", "DPM++ SDE", "two_stage.DPMppSDE", {}, ("k_dpmpp_sde",), "DPMSolverSDEScheduler"),
    Entry("dpmpp_2m_sde", "DPM++ 2M SDE", "dpm.DPMMultistep", _SDE, ("k_dpmpp_2m_sde",)),
    Entry(
        "dpmpp_2m_sde_heun",
        "DPM++ 2M SDE Heun",
        "dpm.DPMMultistep",
        {**_SDE, "solver": "heun"},
        ("k_dpmpp_2m_sde_heun",),
    ),
    Entry(
        "dpmpp_3m_sde",
        "DPM++ 3M SDE",
        "dpm.DPMMultistep",
        _SDE | {"order": 3, "solver": "heun", "lower_order_final": False},
        ("k_dpmpp_3m_sde",),
        None,
        True,
    ),
    Entry("ddim", "DDIM", "single.DDIM", diffusers="DDIMScheduler"),
    Entry("ddpm", "DDPM", "single.DDPM", diffusers="DDPMScheduler"),
    Entry("plms", "PLMS", "multistep.PNDM", diffusers="PNDMScheduler"),
    Entry("pndm", "PNDM", "multistep.PNDM", {"warm_up": True}),
    Entry("uni_pc", "UniPC", "unipc.UniPC", {"solver": "bh1"}, ("unipc",)),
    Entry("uni_pc_bh2", "UniPC bh2", "unipc.UniPC", {}, ("unipc_bh2",), "UniPCMultistepScheduler"),
    Entry("deis", "DEIS", "multistep.DEIS", {}, (), "DEISMultistepScheduler"),
    Entry("ipndm", "iPNDM", "multistep.IPNDM", {}, (), "IPNDMScheduler"),
    Entry("lcm", "LCM", "single.LCM", {}, (), "LCMScheduler"),
)
_BY_ID = {row.id: row for row in _TABLE}
_BY_NAME = {
    name.casefold(): row
    for row in _TABLE
    for name in (row.id, row.label, *row.aliases, *([row.diffusers] if row.diffusers else []))
}
# Endings that older pictures and scripts use for a sampler with a schedule: "DPM++ 2M Karras", "k_dpmpp_2m_ka".
_SCHEDULES = {"karras": "karras", "ka": "karras", "exponential": "exponential", "exp": "exponential"}


def names() -> list[str]:
    """The samplers' ids, in the order they are offered."""
    return [row.id for row in _TABLE]


def canonical(name: object) -> tuple[str, str | None]:
    """A sampler's id, and the schedule that its name implies ("karras", "exponential") or None.

    Accepts ids, A1111's names and aliases, diffusers' class names, in any case. Raises RequestError for anything else.
    """
    if not isinstance(name, str):
        raise RequestError(f"A sampler's name is a string, not {shown(name, 80)}; there are {', '.join(names())}.")
    key = " ".join(name.casefold().split())
    if key in _BY_NAME:
        return _BY_NAME[key].id, None
    stem, _, ending = key.replace("_", " ").rpartition(" ")
    stem = key[: len(stem)]
    if ending in _SCHEDULES and stem in _BY_NAME:
        return _BY_NAME[stem].id, _SCHEDULES[ending]
    near = closest(key[:80], _BY_NAME, cutoff=0.4)
    hint = f" did you mean {_BY_NAME[near].id!r}?" if near else ""
    raise RequestError(f"There is no sampler {shown(name, 80)};{hint} There are {', '.join(names())}.")


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
        raise RequestError(f"The sampler {row.id} has no option {shown(wrong[0], 80)}; {takes}.")
    sampler: Sampler = make(**{**row.options, **options})
    return sampler


class _Names(ModuleType):
    """`darkroom.samplers()` gives the names; `darkroom.samplers.get` stays this module's."""

    def __call__(self) -> list[str]:
        return names()


sys.modules[__name__].__class__ = _Names
