"""Other tools' names of samplers and schedules, read as ours.

The same sampler is "DPM++ 2M SDE" in A1111, "k_dpmpp_2m_sde" in its API, "dpmpp_2m_sde_gpu" in ComfyUI (where the noise
is made on the GPU), "dpm++2m_sde" in stable-diffusion.cpp and "sample_dpmpp_2m_sde" in k-diffusion. Letters and digits
decide; prefixes and endings that say something else are taken off: the library ("k_", "sample_"), the device ("_gpu")
and the schedule ("DPM++ 2M Karras", "dpmpp_2m_k", "euler discrete").
"""

from __future__ import annotations

import re
from functools import cache

from ..diffusion import TABLE, has_torchsde
from ..samplers import Entry, entries

__all__ = [
    "OWN_WAY",
    "SAMPLER_NAMES",
    "SCHEDULE_NAMES",
    "draws_of",
    "eta_of",
    "has_torchsde",
    "own_schedule",
    "read_sampler",
    "read_schedule",
]

# Samplers that we don't have, under ComfyUI's ids: a recipe names them all the same.
_OTHERS = {
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "heunpp2": "Heun++ 2",
    "res_multistep": "Res Multistep",
}
# Names that no table of ours has. InvokeAI says kdpm_2, and dpmpp_2s without the ancestral that it is.
_MORE = {
    "kdpm2": "dpm_2",
    "kdpm2a": "dpm_2_ancestral",
    "dpmpp2s": "dpmpp_2s_ancestral",
    "eulerancestral": "euler_ancestral",
}
# Samplers whose name means different solvers in different tools; ours are diffusers'.
OWN_WAY = ("deis", "uni_pc", "uni_pc_bh2")
# A1111's name of a sampler and of a schedule, by our id.
SAMPLER_NAMES = {row.id: row.label for row in entries()} | _OTHERS
SCHEDULE_NAMES = {"automatic": "Automatic"} | {row.id: row.label for row in TABLE if row.label is not None}
# The last words of a sampler's name that are a schedule's; the longest first.
_ENDINGS = {
    "align your steps": "align_your_steps",
    "sgm uniform": "sgm_uniform",
    "kl optimal": "kl_optimal",
    "polyexponential": "exponential",
    "exponential": "exponential",
    "trailing": "trailing",  # Draw Things
    "discrete": "normal",
    "uniform": "normal",
    "normal": "normal",
    "simple": "simple",
    "karras": "karras",
    "ays": "align_your_steps",
    "exp": "exponential",
    "ka": "karras",
    "k": "karras",
}
_ALWAYS = ("karras", "exponential", "polyexponential")  # endings of samplers that we don't know, too


def read_sampler(sampler: str, schedule: str | None = None) -> tuple[str, str | None]:
    """Our ids of a sampler and of its schedule: the one given, else the one that the name ends in, else None.

    A name that we don't know comes back unchanged, but for a schedule at its end.
    """
    found, ending = _split(sampler)
    return found, ending if schedule is None else read_schedule(schedule)


def read_schedule(name: str) -> str:
    """Our id of a schedule; a name that we don't know comes back unchanged."""
    return _schedules().get(_key(name), name)


def own_schedule(sampler: str) -> str | None:
    """The schedule that A1111 takes for a sampler where none is asked for; None: the sampler's own.

    Of one that we don't have, too, whose levels are evenly spaced timesteps there.
    """
    return _entries()[sampler].schedule if sampler in _entries() else "normal"


def draws_of(sampler: str) -> str:
    """How a sampler draws noise on the way: "ancestral", "brownian", or "" (`samplers.Entry.draws`)."""
    return _entries()[sampler].draws if sampler in _entries() else ""


def eta_of(sampler: str) -> float | None:
    """The share of noise that a sampler draws on the way; None: it draws none, or all (`samplers.Entry.eta`)."""
    return _entries()[sampler].eta if sampler in _entries() else None


@cache
def _entries() -> dict[str, Entry]:
    return {row.id: row for row in entries()}


def _split(sampler: str) -> tuple[str, str | None]:
    if known := _known(sampler):
        return known, None
    words = re.sub(r"[\s_]+", " ", sampler[:200]).strip()
    for ending, schedule in _ENDINGS.items():
        front = words[: -len(ending)].rstrip() if words.casefold().endswith(f" {ending}") else ""
        if front and (known := _known(front)):
            return known, schedule
        if front and ending in _ALWAYS:
            return sampler.strip()[: len(front)], schedule
    return sampler, None


def _known(name: str) -> str | None:
    key = _key(name.strip()[:200])
    for prefix in ("", "k", "sample"):
        if key.startswith(prefix) and (found := _ids().get(key.removeprefix(prefix).removesuffix("gpu"))):
            return found
    return None


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold().replace("++", "pp"))


@cache
def _ids() -> dict[str, str]:
    """Letters and digits of every name of a sampler -> its id."""
    ids = {_key(name): id for id, label in _OTHERS.items() for name in (id, label)} | _MORE
    for row in entries():
        ids |= {_key(name): row.id for name in (row.id, row.label, *row.aliases, row.diffusers or row.id)}
    return ids


@cache
def _schedules() -> dict[str, str]:
    """Letters and digits of every name of a schedule -> its id."""
    ids = {_key(name): row.id for row in TABLE for name in (row.id, row.label or row.id, *row.aliases)}
    return ids | {"automatic": "automatic", "discrete": "normal", "native": "normal"}  # stable-diffusion.cpp, NovelAI
