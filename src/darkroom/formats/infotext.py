"""A1111's "infotext": how a picture was made, as three lines of text that a dozen other tools can read.

    {prompt}
    Negative prompt: {negative prompt}
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: v1-5

The format has no escapes: a prompt with a line that starts with "Negative prompt:" can't be told from a negative
prompt. Darkroom therefore keeps the exact recipe in a second place (see `picture.py`), and this one for everybody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .infokeys import ROWS, loras_of, plain

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]+\Z")
_KEY_START = re.compile(r"[\w \-/]")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"')  # possessive: no second try, hence linear time
_MAX_KEY = 200
_MAX_PAIRS = 1000


# Writing -------------------------------------------------------------------------------------------------------------


def to_infotext(recipe: Mapping[str, Any]) -> str:
    """Write a recipe as A1111 infotext.

    Reads the prompts, the fields of `infokeys.ROWS`, and an optional mapping `extra` of further "Key: value" pairs.
    What is missing or None is left out. LoRAs given as files are named in the prompt, where A1111 looks for them.
    """
    prompt, negative = str(recipe.get("prompt") or ""), str(recipe.get("negative_prompt") or "")
    if recipe.get("prompt_style") in (None, "a1111"):
        prompt += "".join(_tag(lora) for lora in loras_of(recipe) if not _named_in(prompt, str(lora["name"])))
    lines = [prompt] if prompt else []
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _pairs(recipe).items()))
    return "\n".join(lines)


def _named_in(prompt: str, name: str) -> bool:
    """Whether a prompt names a LoRA, or has no way to."""
    return bool(set(name) & set("<>:")) or f"<lora:{name}:" in prompt or f"<lora:{name}>" in prompt


def _tag(lora: Mapping[str, Any]) -> str:
    scale, text_scale = lora["scale"], lora["text_scale"]
    return f" <lora:{lora['name']}:{plain(text_scale)}{'' if scale == text_scale else f':{plain(scale)}'}>"


def _pairs(recipe: Mapping[str, Any]) -> dict[str, str]:
    pairs = {row.key: row.write(recipe) for row in ROWS}
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


def parse_infotext(text: str) -> dict[str, Any]:
    """Read A1111 infotext; the opposite of `to_infotext`.

    Returns `prompt`, `negative_prompt` and, as far as they are there and make sense, the fields of `infokeys.ROWS` as
    plain values; samplers and schedules by our ids (a name we don't know stays as it is). Every other pair
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
    text = "\n".join(prompt)
    return {"prompt": text, "negative_prompt": negative or ""} | _recipe(pairs, text)


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


def _recipe(pairs: Mapping[str, str], prompt: str) -> dict[str, Any]:
    recipe: dict[str, Any] = {}
    extra = dict(pairs)
    for row in ROWS:
        if row.key in pairs and (found := row.read(pairs[row.key], pairs, prompt)) is not None:
            recipe |= found
            del extra[row.key]
    return recipe | ({"extra": extra} if extra else {})
