"""A1111's "infotext": how a picture was made, as three lines of text that a dozen other tools can read.

    {prompt}
    Negative prompt: {negative prompt}
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: v1-5

The format has no escapes: a prompt with a line that starts with "Negative prompt:" can't be told from a negative
prompt. Darkroom therefore keeps the exact recipe in a second place (see `picture.py`), and this one for everybody else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# A1111's name of a sampler and of a schedule, by our id (ComfyUI's).
SAMPLER_NAMES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_adaptive": "DPM adaptive",
    "dpm_fast": "DPM fast",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "ipndm": "iPNDM",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "pndm": "PNDM",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC bh2",
}
SCHEDULE_NAMES = {
    "align_your_steps": "Align Your Steps",
    "automatic": "Automatic",
    "beta": "Beta",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "normal": "Uniform",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
}
_SAMPLER_IDS = {name.lower(): id for id, name in SAMPLER_NAMES.items()}
_SCHEDULE_IDS = {name.lower(): id for id, name in SCHEDULE_NAMES.items()} | {"polyexponential": "exponential"}

# Before version 1.9, A1111 wrote the schedule as the last word of the sampler's name.
_OLD_SUFFIXES = ("karras", "exponential", "polyexponential")

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]+\Z")
_KEY_START = re.compile(r"[\w \-/]")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"')  # possessive: no second try, hence linear time
_MAX_KEY = 200
_MAX_PAIRS = 1000
_WHOLE = re.compile(r"[+-]?\d{1,20}\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,40})?|\.\d{1,40})(?:e[+-]?\d{1,3})?\Z", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})\Z", re.ASCII | re.IGNORECASE)


# Writing -------------------------------------------------------------------------------------------------------------


def to_infotext(recipe: Mapping[str, Any]) -> str:
    """Write a recipe as A1111 infotext.

    Reads the keys `prompt`, `negative_prompt`, `steps`, `sampler`, `schedule`, `guidance_scale`, `seed`, `width`,
    `height`, `model_hash`, `model`, `clip_skip`, `prompt_style`, `guidance_rescale`, `guidance_interval`, `version` and
    an optional mapping `extra` of further "Key: value" pairs. What is missing or None is left out.
    """
    prompt, negative = str(recipe.get("prompt") or ""), str(recipe.get("negative_prompt") or "")
    lines = [prompt] if prompt else []
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _pairs(recipe).items()))
    return "\n".join(lines)


def _pairs(recipe: Mapping[str, Any]) -> dict[str, str]:
    width, height = recipe.get("width"), recipe.get("height")
    sampler, schedule = recipe.get("sampler"), recipe.get("schedule")
    clip_skip, style = recipe.get("clip_skip"), recipe.get("prompt_style")
    interval = recipe.get("guidance_interval")
    pairs: dict[str, Any] = {
        "Steps": recipe.get("steps"),
        "Sampler": SAMPLER_NAMES.get(sampler, sampler) if isinstance(sampler, str) else None,
        "Schedule type": SCHEDULE_NAMES.get(schedule, schedule) if isinstance(schedule, str) else None,
        "CFG scale": recipe.get("guidance_scale"),
        "Seed": recipe.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model hash": str(recipe["model_hash"])[:10] if recipe.get("model_hash") else None,
        "Model": recipe.get("model"),
        "Clip skip": clip_skip if isinstance(clip_skip, int) and clip_skip > 1 else None,
        "RNG": "CPU" if recipe.get("seed") is not None else None,
        "CFG rescale": recipe.get("guidance_rescale") or None,
        "CFG interval": ", ".join("inf" if end is None else _plain(end) for end in interval)
        if isinstance(interval, list | tuple)
        else None,
        "Prompt style": style if style not in (None, "a1111") else None,
    }
    extra = recipe.get("extra")
    if isinstance(extra, Mapping):
        pairs.update((str(key), value) for key, value in extra.items() if str(key) not in pairs)
    if (hashes := _lora_hashes(recipe.get("loras"))) is not None:
        pairs["Lora hashes"] = hashes
    version = recipe.get("version")
    pairs["Version"] = f"darkroom {version}" if version else None
    return {key: _plain(value) for key, value in pairs.items() if value is not None}


def _lora_hashes(loras: object) -> str | None:
    """A1111's "name: 12 digits, name: 12 digits"."""
    used = [lora for lora in loras if isinstance(lora, Mapping)] if isinstance(loras, list | tuple) else []
    return ", ".join(f"{lora.get('name')}: {str(lora.get('hash'))[:12]}" for lora in used) or None


def _plain(value: object) -> str:
    """A number as A1111 writes it: 7, not 7.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _quote(value: str) -> str:
    """Quote what the reader could not tell from the line's own commas, colons and spaces."""
    if value and value == value.strip() and value[0] not in "[{" and not set(value) & set('",:\n\r\\'):
        return value
    return json.dumps(value, ensure_ascii=False) if value else value


# Reading -------------------------------------------------------------------------------------------------------------


def parse_infotext(text: str) -> dict[str, Any]:
    """Read A1111 infotext; the opposite of `to_infotext`.

    Returns `prompt`, `negative_prompt` and, as far as they are there and make sense, `steps`, `seed`, `clip_skip`,
    `width`, `height` (int), `guidance_scale`, `guidance_rescale` (float), `guidance_interval` (two numbers), `sampler`,
    `schedule` (our ids; a name we don't know stays as it is), `model`, `model_hash`, `prompt_style`; every other pair
    is in `extra`, a dict of strings. Never raises: text that is no infotext is a prompt. Takes time linear in the
    length of the text.
    """
    *lines, last = text.rstrip().split("\n")
    pairs = _read_pairs(last)
    if len(pairs) < 3:  # A1111's own test of whether there is a line of parameters
        lines, pairs = text.split("\n"), {}
    prompt, negative = lines, None
    for number, line in enumerate(lines):
        if line.startswith(_NEGATIVE):
            prompt, negative = lines[:number], "\n".join(lines[number:])[len(_NEGATIVE) :].removeprefix(" ")
            break
    return {"prompt": "\n".join(prompt), "negative_prompt": negative or ""} | _recipe(pairs)


def _read_pairs(line: str) -> dict[str, str]:
    """Split `Key: value, Key: "quoted, value", ...`. Every character is looked at a bounded number of times."""
    pairs: dict[str, str] = {}
    decoder = json.JSONDecoder()
    start, end, tries = 0, len(line), 0
    while start < end and len(pairs) < _MAX_PAIRS:
        colon = line.find(":", start)
        if colon < 0:
            break
        # The key is the longest run of key characters before the colon.
        first = colon
        while first > start and colon - first < _MAX_KEY and _KEY_START.match(line, first - 1):
            first -= 1
        key = line[first:colon].strip(" -/")
        start = colon + 1
        if not _KEY.match(key):
            continue
        while start < end and line[start].isspace():
            start += 1
        stop = -1
        if start < end and line[start] == '"' and (match := _QUOTED.match(line, start)):
            stop = match.end()
        elif start < end and line[start] in "[{" and tries < 20:  # the JSON that some web sites add, unquoted
            tries += 1
            try:
                stop = decoder.raw_decode(line, start)[1]
            except (ValueError, RecursionError):
                stop = -1
        if stop < 0 or (stop < end and line[stop] != ","):
            stop = line.find(",", start)
            stop = end if stop < 0 else stop
        pairs[key] = _unquote(line[start:stop].strip())
        start = stop + 1
    return pairs


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        decoded = json.loads(value, strict=False)
    except ValueError:
        return value
    return decoded if isinstance(decoded, str) else value


def _recipe(pairs: Mapping[str, str]) -> dict[str, Any]:
    recipe: dict[str, Any] = {}
    extra = dict(pairs)

    def take(key: str, name: str, convert: Any) -> None:
        if key in extra and (value := convert(extra[key])) is not None:
            recipe[name] = value
            del extra[key]

    take("Steps", "steps", whole)
    take("CFG scale", "guidance_scale", number)
    take("Seed", "seed", whole)
    take("Clip skip", "clip_skip", whole)
    take("CFG rescale", "guidance_rescale", number)
    take("CFG interval", "guidance_interval", _interval)
    take("Model", "model", str)
    take("Model hash", "model_hash", str)
    take("Prompt style", "prompt_style", str)
    if match := _SIZE.match(extra.get("Size", "")):
        recipe["width"], recipe["height"] = int(match[1]), int(match[2])
        del extra["Size"]
    if "Sampler" in extra:
        sampler, schedule = sampler_and_schedule(extra.pop("Sampler"), extra.pop("Schedule type", None))
        recipe["sampler"] = sampler
        if schedule is not None:
            recipe["schedule"] = schedule
    return recipe | ({"extra": extra} if extra else {})


def sampler_and_schedule(sampler: str, schedule: str | None = None) -> tuple[str, str | None]:
    """Our ids for A1111's names, in the new form ("DPM++ 2M", "Karras") and the old one ("DPM++ 2M Karras").

    A name we don't know comes back unchanged.
    """
    if schedule is None:
        front, _, suffix = sampler.rpartition(" ")
        if front and suffix.lower() in _OLD_SUFFIXES:
            sampler, schedule = front, suffix
    if schedule is not None:
        schedule = _SCHEDULE_IDS.get(schedule.lower(), schedule)
    return _SAMPLER_IDS.get(sampler.lower(), sampler), schedule


def whole(value: object) -> int | None:
    """An integer of at most 20 digits, from a number or its digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**63 else None
    if isinstance(value, int):
        return value if abs(value) < 10**20 else None
    return int(value) if isinstance(value, str) and _WHOLE.match(value) else None


def number(value: object) -> float | None:
    """A finite float, from a number or its digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = float(value) if _NUMBER.match(value) else None
    if isinstance(value, int):
        value = float(value) if abs(value) < 10**20 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _interval(value: str) -> list[float | None] | None:
    """Two noise levels; the second is None if it is infinite, as in the JSON recipe."""
    low, _, high = (part.strip() for part in value.partition(","))
    ends = [number(low), number(high)]
    return ends if ends[0] is not None and (ends[1] is not None or high == "inf") else None
