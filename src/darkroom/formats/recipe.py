"""A picture's complete recipe as JSON: plain ASCII, and every text exactly as it was, lone surrogates included."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ImageError

SCHEMA = 1  # a change of meaning raises it; a reader takes every schema, and what it doesn't know it passes on


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON in plain ASCII. Raises `ImageError` for values JSON has no form for."""
    try:
        return json.dumps({"schema": SCHEMA, **_pack(recipe)}, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"the recipe can't be written as JSON: {error}") from error


def load_recipe(text: str) -> dict[str, Any]:
    """The recipe in our JSON; an empty dict if the text is anything else. Never raises."""
    recipe = load_json(text)
    try:
        return _unpack(recipe) if isinstance(recipe, dict) and isinstance(recipe.get("schema"), int) else {}
    except RecursionError:
        return {}


# JSON merges a high and a low surrogate that stand side by side, and has no infinity: such values are wrapped.
_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")


def _pack(value: Any) -> Any:
    if isinstance(value, str) and _PAIR.search(value):
        return {"$parts": _PAIR.split(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {str(key): _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if isinstance(value, dict):
        parts = value.get("$parts")
        if len(value) == 1 and isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return "".join(parts)
        if len(value) == 1 and value.get("$float") in ("inf", "-inf", "nan"):
            return float(value["$float"])
        return {key: _unpack(item) for key, item in value.items()}
    return value


def load_json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
