"""A1111's "infotext": how a picture was made, as three lines of text that a dozen other tools can read.

    {prompt}
    Negative prompt: {negative prompt}
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: v1-5

The format has no escapes: a prompt with a line that starts with "Negative prompt:" can't be told from a negative
prompt. Darkroom therefore keeps the exact recipe in a second place (see `picture.py`), and this one for everybody else.

A field of `Request` declares its key; how its value is written and read follows from its kind. What A1111 writes in a
way of its own, or tells of several fields at once, has its functions here.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from ..prompts.grammar import take_tags
from ..request import MAX_MERGING, Enlarge, Hires, Request
from ..settings import Kind, default, joined
from .sampler_names import SAMPLER_NAMES, SCHEDULE_NAMES, read_sampler

_WHOLE = re.compile(r"[+-]?\d{1,20}\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,40})?|\.\d{1,40})(?:e[+-]?\d{1,3})?\Z", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})\Z", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One pair of the line of parameters.

    Attributes:
        key: A1111's name.
        fields: ours that it tells.
        write: a recipe's value for it; None: no pair.
        read: the fields in a pair's text, given all pairs and the prompt; None: it makes no sense, or isn't ours.
    """

    key: str
    fields: tuple[str, ...]
    write: Callable[[Mapping[str, Any]], object]
    read: Callable[[str, Mapping[str, str], str], Mapping[str, Any] | None]


def _one(key: str, field: str, read: Callable[[str], object], write: Callable[[Any], object]) -> Row:
    """The row of a single field: `read` its text (None: no sense), `write` its value (None: not worth a pair)."""

    def written(recipe: Mapping[str, Any]) -> object:
        value = recipe.get(field)
        return None if value is None else write(value)

    def found(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
        value = read(text)
        return None if value is None else {field: value}

    return Row(key, (field,), written, found)


def plain(value: object) -> str:
    """A number as A1111 writes it: 7, not 7.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


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


def _flag(text: str) -> bool | None:
    return {"True": True, "False": False}.get(text)


def _parts(read: Callable[[str], object], count: int) -> Callable[[str], list[object] | None]:
    """A reader of so many values with commas between them; 0: of one or more."""

    def read_all(text: str) -> list[object] | None:
        values = [read(part.strip()) for part in text.split(",")] if text.strip() else []
        return values if values and None not in values and count in (0, len(values)) else None

    return read_all


def _read_size(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    match = _SIZE.match(text)
    return {"width": int(match[1]), "height": int(match[2])} if match else None


def _write_size(recipe: Mapping[str, Any]) -> object:
    width, height = recipe.get("width"), recipe.get("height")
    return f"{width}x{height}" if width and height else None


# A1111's key, stable-diffusion.cpp's and Fooocus'.
_SCHEDULE_KEYS = ("Schedule type", "Schedule", "Scheduler")


def _read_sampler(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any]:
    told = next((pairs[key] for key in _SCHEDULE_KEYS if pairs.get(key)), None)
    sampler, schedule = read_sampler(text, told)
    return {"sampler": sampler} if schedule is None else {"sampler": sampler, "schedule": schedule}


_UPSCALERS = {"Latent": "latent", "Lanczos": "lanczos"}  # A1111's -> ours
_NO_NETWORKS = re.compile(r"latent\b|lanczos|nearest|none\Z|antialias", re.IGNORECASE)  # other ways of theirs


def _upscaler(name: str) -> str | None:
    """What enlarges, as we call it: networks have their own names; None for ways that we don't have."""
    return _UPSCALERS.get(name) or (None if not name or _NO_NETWORKS.match(name) else name)


def _hires(pairs: Mapping[str, str]) -> dict[str, Any] | None:
    """The second pass that the pairs tell of, if there is one and we can do it; A1111's 0 steps are the first's."""
    scale, strength = number(pairs.get("Hires upscale")), number(pairs.get("Denoising strength"))
    upscaler, steps = _upscaler(pairs.get("Hires upscaler", "")), whole(pairs.get("Hires steps", 0))
    if scale is None or strength is None or upscaler is None or steps is None:
        return None
    return {"scale": scale, "strength": strength, "upscaler": upscaler, **({"steps": steps} if steps else {})}


def _read_hires(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    hires = _hires(pairs)
    return None if hires is None else {"hires": hires}


def _inside(part: str, name: str) -> Callable[[Mapping[str, Any]], object]:
    def written(recipe: Mapping[str, Any]) -> object:
        found = recipe.get(part)
        return found.get(name) if isinstance(found, Mapping) else None

    return written


_of_hires = functools.partial(_inside, "hires")


def _read_enlarge(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    """What A1111's postprocessing did to the picture, where a network did it."""
    scale, upscaler = number(pairs.get("Postprocess upscale by")), _upscaler(pairs.get("Postprocess upscaler", ""))
    if not scale or upscaler is None or upscaler in _UPSCALERS.values() or "Postprocess upscaler 2" in pairs:
        return None
    return {"enlarge": {"scale": scale, "upscaler": upscaler}}


def _write_upscaler(recipe: Mapping[str, Any]) -> object:
    name = _of_hires("upscaler")(recipe)
    return next((theirs for theirs, ours in _UPSCALERS.items() if ours == name), name)


def _write_strength(recipe: Mapping[str, Any]) -> object:
    return recipe.get("strength") if recipe.get("strength") is not None else _of_hires("strength")(recipe)


def _read_strength(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    """Of a picture that was given; beside "Hires ..." it is the second pass's."""
    if any(key.startswith("Hires ") for key in pairs):
        return _read_hires(text, pairs, prompt)
    strength = number(text)
    return None if strength is None else {"strength": strength}


def _control(i: int) -> Row:
    """A ControlNet as sd-webui-controlnet tells of it; what it was shown, a text can't bring back."""

    def written(recipe: Mapping[str, Any]) -> object:
        controls = recipe.get("controls")
        if not isinstance(controls, list | tuple) or i >= len(controls) or not isinstance(controls[i], Mapping):
            return None
        control = controls[i]
        name = f"{control.get('name')} [{control['hash'][:8]}]" if control.get("hash") else control.get("name")
        told = {
            "Module": "none",
            "Model": name,
            "Weight": control.get("scale"),
            "Resize Mode": "Just Resize",
            "Guidance Start": control.get("start"),
            "Guidance End": control.get("stop"),
            "Control Mode": "ControlNet is more important" if control.get("guess") else "Balanced",
        }
        return ", ".join(f"{key}: {value}" for key, value in told.items())

    return Row(f"ControlNet {i}", ("controls",), written, _nothing)


_FILLS = {"original": "original", "fill": "fill", "latent noise": "noise"}  # A1111's -> ours
_FILL_NAMES = {ours: theirs for theirs, ours in _FILLS.items()}


def _write_loras(recipe: Mapping[str, Any]) -> object:
    return ", ".join(f"{lora['name']}: {str(lora['hash'])[:12]}" for lora in loras_of(recipe)) or None


def _read_loras(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    """The LoRAs that both the prompt's tags (with their scales) and the hashes name."""
    hashes = {name.strip(): digits for name, _, digits in (part.rpartition(":") for part in text.split(","))}
    try:
        tags = take_tags(prompt)[1]
    except RequestError:
        return None
    found = [
        {"name": tag.name, "hash": hashes[tag.name].strip(), "scale": tag.scale, "text_scale": tag.text_scale}
        for tag in tags
        if tag.name in hashes
    ]
    return {"loras": found} if len(found) == len(hashes) else None


def loras_of(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The well-formed LoRAs of a recipe: objects of name, hash, scale and text_scale."""
    loras = recipe.get("loras")
    kept = [lora for lora in loras if isinstance(lora, Mapping)] if isinstance(loras, list | tuple) else []
    return [lora for lora in kept if {"name", "hash", "scale", "text_scale"} <= lora.keys()]


def _write_words(recipe: Mapping[str, Any]) -> object:
    words = recipe.get("embeddings")
    told = [str(word).rpartition(":") for word in words] if isinstance(words, list | tuple) else []
    return ", ".join(f"{name}: {digits}" for name, _, digits in told) or None


def _read_words(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    """Ours have 16 digits, of the vectors; A1111's have 12, of the file, and can't be compared with them."""
    words = [part.strip().rpartition(":") for part in text.split(",")]
    if any(not name or len(digits.strip()) != 16 for name, _, digits in words):
        return None
    return {"embeddings": [f"{name}:{digits.strip()}" for name, _, digits in words]}


def _write_interval(value: object) -> object:
    return ", ".join("inf" if end is None else plain(end) for end in value) if isinstance(value, list | tuple) else None


def _share(text: str) -> float | None:
    value = number(text)
    return value if value is not None and 0 <= value <= 1 else None


def _merging(text: str) -> float | None:
    """A1111 goes on to 0.9, where it merges no more than at 0.75."""
    value = number(text)
    return value if value is None else min(value, MAX_MERGING)


def _nothing(text: str, pairs: Mapping[str, str], prompt: str) -> None:
    return None


# A1111's and stable-diffusion.cpp's names -> ours; A1111's "GPU" is what it takes where it says nothing.
_NOISES = {"cpu": "cpu", "nv": "nv", "gpu": "nv", "cuda": "nv"}


def _read_noise(text: str, pairs: Mapping[str, str], prompt: str) -> Mapping[str, Any] | None:
    noise = _NOISES.get(text.casefold())
    return None if noise is None else {"noise": noise}


def _write_noise(recipe: Mapping[str, Any]) -> object:
    return str(recipe.get("noise") or "cpu").upper() if recipe.get("seed") is not None else None


def _pixels(text: str) -> list[int] | None:
    match = _SIZE.match(text)
    return [int(match[1]), int(match[2])] if match and int(match[1]) and int(match[2]) else None


Read = Callable[[str, Mapping[str, str], str], Mapping[str, Any] | None]
# Rows of more than a value that is written as it is: field -> (write, read), as in `Row`.
_ROWS: Mapping[str, tuple[Callable[[Mapping[str, Any]], object], Read]] = {
    "sampler": (lambda r: _named(r.get("sampler"), SAMPLER_NAMES), _read_sampler),
    "schedule": (
        lambda r: _named(r.get("schedule"), SCHEDULE_NAMES),
        lambda text, pairs, prompt: {} if "Sampler" in pairs else None,  # read with the sampler
    ),
    "size": (_write_size, _read_size),
    "noise": (_write_noise, _read_noise),
    "strength": (_write_strength, _read_strength),
    "loras": (_write_loras, _read_loras),
    "embeddings": (_write_words, _read_words),
    "version": (lambda r: f"darkroom {r['version']}" if r.get("version") else None, _nothing),
    "hires.scale": (_of_hires("scale"), _read_hires),
    "hires.steps": (_of_hires("steps"), _read_hires),
    "hires.upscaler": (_write_upscaler, _read_hires),
    "enlarge.scale": (_inside("enlarge", "scale"), _read_enlarge),
    "enlarge.upscaler": (_inside("enlarge", "upscaler"), _read_enlarge),
}
# Single values that A1111 writes in words of its own: field -> write. None: not worth a pair.
_WRITERS: Mapping[str, Callable[[Any], object]] = {
    "clip_skip": lambda value: value if isinstance(value, int) and value > 1 else None,
    "discard_penultimate": str,
    "fill": lambda value: None if value == "original" else _FILL_NAMES.get(value, value),
    "guidance_interval": _write_interval,
    "model_hash": lambda value: str(value)[:10] or None,
    "only_masked": lambda value: "Only masked" if value is True else None,
    "sampler_noise": lambda value: str(value).upper(),
    "seed_resize": lambda value: f"{value[0]}x{value[1]}",
    "vae_hash": lambda value: str(value)[:10] or None,
}
_READERS: Mapping[str, Callable[[str], object]] = {
    "eta": _share,
    "fill": _FILLS.get,
    "guidance_interval": _interval,
    "only_masked": {"Only masked": True, "Whole picture": False}.get,
    "sampler_noise": lambda text: _NOISES.get(text.casefold()),
    "seed_resize": _pixels,
    "token_merging": _merging,
}
# The order of the line: A1111's own keys as it writes them, then ours. One that is not here comes after these.
_ORDER = (
    "Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Size", "Model hash", "Model",
    "VAE hash", "VAE", "Variation seed", "Variation seed strength", "Seed resize from", "Denoising strength",
    "Clip skip", "Eta", "ENSD", "Token merging ratio", "RNG", "Brownian noise", "Mask blur", "Masked content",
    "Inpaint area", "Masked area padding", "Hires upscale", "Hires steps", "Hires upscaler",
    "Postprocess upscale by", "Postprocess upscaler",
    *(f"ControlNet {i}" for i in range(10)), "Lora hashes", "TI hashes",
    "Cache interval", "CFG rescale", "CFG interval", "CFG projection", "PAG scale", "PAG adaptive scale", "PAG levels",
    "Dynamic threshold", "Dynamic threshold mimic", "Prompt style", "Exact steps", "Outpaint", "Tile", "Tile overlap",
    "Noise level", "Original size", "Crop", "Target size", "Aesthetic score", "Negative original size",
    "Negative crop", "Negative target size", "Negative aesthetic score", "Starts at", "Stops at", "Image fingerprint",
    "Mask fingerprint", "Depth fingerprint", "Noise fingerprint",
)  # fmt: skip


def rows_of(owner: type = Request) -> tuple[Row, ...]:
    """The rows that a kind of request declares, in the order of the line."""
    rows = [_control(i) for i in range(10)]
    for name, names, declared in joined(owner):
        if declared.kind.of in (Hires, Enlarge):
            told = [(inner.key, _ROWS[f"{name}.{part}"]) for part, _, inner in joined(declared.kind.of) if inner.key]
            rows += [Row(key, names, *functions) for key, functions in told]
        elif declared.key is not None and name in _ROWS:
            rows.append(Row(declared.key, names, *_ROWS[name]))
        elif declared.key is not None:
            write = _WRITERS.get(name) or _writer(default(owner, name))
            rows.append(_one(declared.key, name, _READERS.get(name) or _reader(declared.kind), write))
    place = {key: i for i, key in enumerate((*_ORDER, *(row.key for row in rows if row.key not in _ORDER)))}
    return tuple(sorted(rows, key=lambda row: (row.key == "Version", place[row.key])))


def _reader(kind: Kind) -> Callable[[str], object]:
    read: Callable[[str], object] = {int: whole, float: number, bool: _flag}.get(kind.of, str)
    return read if kind.count == 1 else _parts(read, kind.count)


def _writer(default: object) -> Callable[[Any], object]:
    """A value as A1111 writes it; what other tools take for granted, and an empty list, is no pair."""

    def write(value: Any) -> object:
        if isinstance(value, list | tuple):
            return ", ".join(map(plain, value)) or None
        return None if value is False or (value == default and default is not None) else value

    return write


def _named(id: object, names: Mapping[str, str]) -> object:
    return names.get(id, id) if isinstance(id, str) else None


ROWS = rows_of()


# --- infotext


_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]+\Z")
_KEY_START = re.compile(r"[\w \-/]")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"', re.DOTALL)  # possessive: no second try, hence linear time
_MAX_KEY = 200
_MAX_PAIRS = 1000
_MAX_TRIES = 20  # lines that are looked at as the settings


# Writing -------------------------------------------------------------------------------------------------------------


def to_infotext(recipe: Mapping[str, Any], rows: Sequence[Row] = ROWS) -> str:
    """Write a recipe as A1111 infotext.

    Reads the prompts, the fields of `infotext.ROWS`, and an optional mapping `extra` of further "Key: value" pairs.
    What is missing or None is left out. LoRAs given as files are named in the prompt, where A1111 looks for them.
    """
    prompt, negative = str(recipe.get("prompt") or ""), str(recipe.get("negative_prompt") or "")
    if recipe.get("prompt_style") in (None, "a1111"):
        prompt += "".join(_tag(lora) for lora in loras_of(recipe) if not _named_in(prompt, str(lora["name"])))
    lines = [prompt] if prompt else []
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _pairs(recipe, rows).items()))
    return "\n".join(lines)


def _named_in(prompt: str, name: str) -> bool:
    """Whether a prompt names a LoRA, or has no way to."""
    return bool(set(name) & set("<>:")) or f"<lora:{name}:" in prompt or f"<lora:{name}>" in prompt


def _tag(lora: Mapping[str, Any]) -> str:
    scale, text_scale = lora["scale"], lora["text_scale"]
    return f" <lora:{lora['name']}:{plain(text_scale)}{'' if scale == text_scale else f':{plain(scale)}'}>"


def _pairs(recipe: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    pairs = {row.key: row.write(recipe) for row in rows}
    extra = recipe.get("extra")
    if isinstance(extra, Mapping):
        pairs |= {str(key): value for key, value in extra.items() if pairs.get(str(key)) is None}
    pairs["Version"] = pairs.pop("Version")  # the last, after all that is extra
    return {key: plain(value) for key, value in pairs.items() if value is not None}


def _quote(value: str) -> str:
    """Quote what the reader could not tell from the line's own commas, colons and spaces."""
    if value and value == value.strip() and value[0] not in "[{" and not set(value) & set('",:\n\r\\'):
        return value
    return json.dumps(value, ensure_ascii=False) if value else value


# Reading -------------------------------------------------------------------------------------------------------------


def parse_infotext(text: str, rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """Read A1111 infotext; the opposite of `to_infotext`.

    Returns `prompt`, `negative_prompt` and, as far as they are there and make sense, the fields of `infotext.ROWS` as
    plain values; samplers and schedules by our ids (a name we don't know stays as it is). Every other pair
    is in `extra`, a dict of strings, and so are the lines that extensions write after the line of settings
    ("Template: ..."). Never raises: text that is no infotext is a prompt. Takes time linear in the length of the text.
    """
    text = text.replace("\r\n", "\n")
    lines = text.rstrip().split("\n")
    at, pairs, rest = _find_settings(lines)
    if not pairs:  # the prompt is all of it
        lines = text.split("\n")
        at = len(lines)
    prompt, negative = lines[:at], None
    for number, line in enumerate(prompt):
        if line.startswith(_NEGATIVE):
            prompt, negative = lines[:number], "\n".join(lines[number:at])[len(_NEGATIVE) :].removeprefix(" ")
            break
    for key, value in _trailing(rest).items():
        pairs.setdefault(key, value)
    text = "\n".join(prompt)
    return {"prompt": text, "negative_prompt": negative or ""} | _recipe(pairs, text, rows)


def holds_settings(text: str) -> bool:
    """Whether a text has the line that makes it an infotext: a picture's comment is any text otherwise."""
    pairs = settings_of(text)[1]
    return len(pairs) >= 3 and "Steps" in pairs and not _STRONG.isdisjoint(pairs)


def settings_of(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the line of settings, and that line's pairs; (all of it, {}) where there is none."""
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    at, pairs, _ = _find_settings(lines)
    return "\n".join(lines[:at]), pairs


_STRONG = frozenset({"Sampler", "CFG scale", "Guidance Scale", "Seed", "Size", "Model", "Model hash"})  # beside Steps


def _find_settings(lines: list[str]) -> tuple[int, dict[str, str], list[str]]:
    """Where the settings begin, their pairs, and the lines after them; (the end, {}, []) if there are none.

    The settings are the last line with Steps and another of A1111's keys in it, or else the last line of all if it has
    three pairs, one of them known: A1111's own test is three pairs of anything, which a prompt such as "(a:1.2), (b:1),
    (c:1)" passes.
    """
    tries = 0
    for at in range(len(lines) - 1, -1, -1):
        if "Steps:" in lines[at]:
            pairs, used = _read_pairs("\n".join(lines[at:]))
            if len(pairs) >= 3 and "Steps" in pairs and not _STRONG.isdisjoint(pairs):
                return at, pairs, lines[at + used :]
            tries += 1
            if tries == _MAX_TRIES:
                break
    pairs, _ = _read_pairs(lines[-1])
    if len(pairs) >= 3 and any(row.key in pairs for row in ROWS):
        return len(lines) - 1, pairs, []
    return len(lines), {}, []


def _trailing(lines: list[str]) -> dict[str, str]:
    """The pairs in lines after the settings: each line is one, with all the text up to the next line's key."""
    pairs: dict[str, str] = {}
    key = "Text"
    for line in lines[:_MAX_PAIRS]:
        name, colon, value = line.partition(":")
        if colon and len(name) <= _MAX_KEY and _KEY.match(name) and name not in pairs:
            key, pairs[name] = name, _unquote(value.strip())
        elif line.strip() or key in pairs:
            pairs[key] = f"{pairs[key]}\n{line}" if key in pairs else line
    return pairs


def _read_pairs(text: str) -> tuple[dict[str, str], int]:
    """Split `Key: value, Key: "quoted, value", ...` up to the end of the line, which a quoted value may pass.

    Returns the pairs and how many lines they take. Every character is looked at a bounded number of times.
    """
    pairs: dict[str, str] = {}
    decoder = json.JSONDecoder()
    start, end, tries = 0, len(text), 0
    line_end = text.find("\n")
    line_end = end if line_end < 0 else line_end
    while start < line_end and len(pairs) < _MAX_PAIRS:
        colon = text.find(":", start, line_end)
        if colon < 0:
            break
        # The key is the longest run of key characters before the colon.
        first = colon
        while first > start and colon - first < _MAX_KEY and _KEY_START.match(text, first - 1):
            first -= 1
        key = text[first:colon].strip(" -/")
        start = colon + 1
        if not _KEY.match(key):
            continue
        while start < line_end and text[start].isspace():
            start += 1
        stop = -1
        if start < line_end and text[start] == '"' and (match := _QUOTED.match(text, start)):
            stop = match.end()
        elif start < line_end and text[start] in "[{" and tries < 20:  # the JSON that some web sites add, unquoted
            tries += 1
            try:
                stop = decoder.raw_decode(text, start)[1]
            except (ValueError, RecursionError):
                stop = -1
        if stop > line_end:  # the value went on in other lines
            line_end = text.find("\n", stop)
            line_end = end if line_end < 0 else line_end
        if stop < 0 or (stop < line_end and text[stop] != ","):
            stop = text.find(",", start, line_end)
            stop = line_end if stop < 0 else stop
        pairs[key] = _unquote(text[start:stop].strip())
        start = stop + 1
    return pairs, text.count("\n", 0, line_end) + 1


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        decoded = json.loads(value, strict=False)
    except ValueError:
        return value
    return decoded if isinstance(decoded, str) else value


# stable-diffusion.cpp writes these where there is nothing to say.
_MAY_BE_EMPTY = ("Model", "Model hash", "VAE", "VAE hash", "Sampler", *_SCHEDULE_KEYS)


def _recipe(pairs: Mapping[str, str], prompt: str, rows: Sequence[Row]) -> dict[str, Any]:
    recipe: dict[str, Any] = {}
    pairs = {key: value for key, value in pairs.items() if value or key not in _MAY_BE_EMPTY}
    extra = dict(pairs)
    for row in rows:
        if row.key in pairs and (found := row.read(pairs[row.key], pairs, prompt)) is not None:
            recipe |= found
            del extra[row.key]
    if "Sampler" in pairs:  # read with it
        extra = {key: value for key, value in extra.items() if key not in _SCHEDULE_KEYS}
    return recipe | ({"extra": extra} if extra else {})
