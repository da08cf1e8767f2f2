"""What a reader of another tool's recipe gives back, and what all those readers need."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..infotext import number, whole
from ..sampler_names import read_sampler, read_schedule

MAX_ITEMS = 50  # of a list, or inputs of a node


@dataclass
class Found:
    """A recipe of another tool.

    Attributes:
        source: the tool.
        recipe: what we follow, under our names (`prompt`, `seed`, ...).
        ignored: what it asks beyond that and changes the picture, under the tool's names.
        warnings: what could not be told for sure, one sentence each.
    """

    source: str
    recipe: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, sentence: str) -> None:
        """Say a thing once, and not endlessly."""
        if sentence not in self.warnings and len(self.warnings) < MAX_ITEMS:
            self.warnings.append(sentence)


Reader = Callable[[Any], Any]  # a value, or None where what is written makes no sense
_NOTHING = ("", "None", "none", "null", "False", "false", "Automatic", "Default (model)")


def is_nothing(value: object) -> bool:
    """Whether a setting is off: none, empty, zero, false or "None"."""
    return (
        value is None or value is False or value in (0, 0.0, [], {}) or (isinstance(value, str) and value in _NOTHING)
    )


def take(
    data: Mapping[Any, Any], rows: Mapping[str, tuple[str, Reader]], neutral: Collection[str], found: Found
) -> None:
    """Read a flat object into `found`: by `rows`, their key -> (our field, reader).

    What is neither in `rows` nor `neutral` and isn't off is ignored, and said to be so. The first of several keys for a
    field wins.
    """
    for key in [*(key for key in rows if key in data), *(key for key in data if key not in rows)]:
        value = data[key]
        if key in rows:
            name, read = rows[key]
            if (ours := read(value)) is not None:
                found.recipe.setdefault(name, ours)
                continue
        if key not in neutral and not is_nothing(value) and len(found.ignored) < MAX_ITEMS:
            found.ignored[str(key)[:100]] = value


def text(value: object) -> str | None:
    """A text; None for anything else."""
    return value if isinstance(value, str) else None


def name(value: object) -> str | None:
    """A text that isn't empty or "None"."""
    return value if isinstance(value, str) and value.strip() and value not in _NOTHING else None


def count(value: object) -> int | None:
    """A positive whole number."""
    found = whole(value)
    return found if found is not None and found > 0 else None


def part(value: object) -> float | None:
    """A number from 0 to 1."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def stem(path: str) -> str:
    """A file's name without its folders and its ending."""
    last = re.split(r"[/\\]", path)[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin|sft|gguf)\Z", "", last, flags=re.IGNORECASE) or last


def sampler(value: object, schedule: object = None) -> dict[str, Any]:
    """The fields for a sampler and a schedule that are told by name."""
    told: dict[str, Any] = {}
    if (named := name(value)) is not None:
        told["sampler"], ending = read_sampler(named)
        if ending is not None:
            told["schedule"] = ending
    if (named := name(schedule)) is not None:
        told["schedule"] = read_schedule(named)
    return told


def used_lora(path: str, scale: float | None, text_scale: float | None = None, digits: str = "") -> dict[str, Any]:
    """A LoRA as a recipe names it; most of these tools tell no hash of the kind that others have."""
    scale = 1.0 if scale is None else scale
    return {
        "name": stem(path),
        "hash": digits,
        "scale": scale,
        "text_scale": scale if text_scale is None else text_scale,
    }


def loads(value: str | None) -> Any:
    """Parsed JSON, or None. NaN and infinity, which some tools write, are None."""
    try:
        return json.loads(value, parse_constant=lambda _: None) if value else None
    except (ValueError, RecursionError):
        return None


def numbers(value: object) -> list[float]:
    """The numbers in "(1024, 768)", "1024x768", [1024, 768] or a single number."""
    if isinstance(value, list | tuple):
        return [found for one in value[:MAX_ITEMS] if (found := number(one)) is not None]
    if isinstance(value, str):
        parts = re.split(r"[\s,x×*()\[\]]+", value[:200])
        return [found for one in parts if one and (found := number(one)) is not None]
    return [] if (found := number(value)) is None else [found]


def size(value: object) -> dict[str, int]:
    """Width and height from "(1024, 768)" or "1024x768"; {} for anything else."""
    sides = [int(side) for side in numbers(value) if side > 0 and side.is_integer()]
    return {"width": sides[0], "height": sides[1]} if len(sides) == 2 else {}
