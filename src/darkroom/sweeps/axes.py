"""What varies in a grid, from a text such as "steps=10,20,30", checked value by value. No torch.

    NAME=VALUE,VALUE,...      a field of `Request` or its option's name: steps, sampler, guidance, size, negative, ...
    steps=10..30:10           numbers from..to:step; the step may be left out (1) and may lead downwards
    guidance=1..7[4]          four numbers, evenly from 1 to 7
    prompt=fox,owl,"a, b"     the first words are sought in the prompts and replaced by each; quotes keep commas

A1111's own spellings of ranges are read too: 1-5, 10-30 (+10), 1-7 [4].
"""

from __future__ import annotations

import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

from ..errors import RequestError, nearest
from ..request import MAX_IMAGES, Request
from ..samplers import canonical

Given = str | tuple[str, Sequence[Any]] | Mapping[str, Sequence[Any]]  # an axis as a user gives it
LETTERS = "xyz"
MAX_CELLS = MAX_IMAGES
MAX_AXIS = 100_000  # characters of an axis in words
PROMPT, SIZE = "prompt", "size"  # axes that are no plain field: words to replace, and both sides at once
# Other names of fields: of the command line's options, of A1111 and of ComfyUI.
ALIASES = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "denoise": "strength",
    "denoising": "strength",
    "denoising_strength": "strength",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "prompt_s/r": PROMPT,
    "sampler_name": "sampler",
    "schedule_type": "schedule",
    "scheduler": "schedule",
}
_TYPES = typing.get_type_hints(Request)
_NUMBER = r"[+-]?\d{0,20}\.?\d{1,20}"
_RANGE = re.compile(
    rf"({_NUMBER})\s*(?:\.\.|-)\s*({_NUMBER})\s*"
    rf"(?::\s*(?P<step>{_NUMBER})|\(\s*(?P<a1111>{_NUMBER})\s*\)|\[\s*(?P<count>\d{{1,9}})\s*\])?",
    re.ASCII,
)
_SIZE = re.compile(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", re.ASCII)
_LEVELS = re.compile(r"\s*([^:]+):([^:]+)\s*")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a grid.

    Attributes:
        name: a field of Request, "prompt" (its first value is the words to replace) or "size" (width, height).
        values: what it is set to in turn; pairs of whole numbers for "size".
    """

    name: str
    values: tuple[Any, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of Request that it changes."""
        return {PROMPT: (PROMPT, "negative_prompt"), SIZE: ("width", "height")}.get(self.name, (self.name,))

    def shown(self, i: int) -> str:
        """The i-th value in words."""
        return _shown(self.values[i])

    def label(self, i: int) -> str:
        """What the sheet says of the i-th value."""
        return self.shown(i) if self.name == PROMPT else f"{self.name.replace('_', ' ')}: {self.shown(i)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a grid: which value of each axis (0 where there is no such axis), and the request they make."""

    place: tuple[int, int, int]  # x, y, z
    values: Mapping[str, Any]  # axis name -> value; a second axis of that name is "prompt (y)"
    request: Request

    @property
    def words(self) -> str:
        """The cell in a sentence: "steps=10, sampler=lms"."""
        return _words(self.values)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value):.60}" for name, value in values.items())


def parse_axis(letter: str, given: Given) -> Axis:
    """An axis from words ("steps=10..30:10"), or from a name and plain values: ("steps", [10]) or {"steps": [10]}.

    `letter` ("x", "y", "z") is how an error names it. Raises RequestError for a name that is no field, for values that
    can't be read and for none. Whether a request can hold a value is for `cells` to say.
    """
    if isinstance(given, Mapping) and len(given) == 1:
        given = next(iter(given.items()))
    if isinstance(given, str):
        name, equals, text = given[:MAX_AXIS].partition("=")
        if not equals or len(given) > MAX_AXIS:
            raise RequestError(f"axis {letter} is {given[:60]!r}; give a name and values, such as steps=10,20,30")
        name = _name(letter, name)
        values: list[Any] = list(_values(letter, name, text))
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and _is_list(given[1]):
        name = _name(letter, given[0])
        values = [tuple(value) if _is_list(value) else value for value in given[1]]
    else:
        raise RequestError(f'axis {letter} is {given!r:.60}; give "steps=10,20,30" or ("steps", [10, 20, 30])')
    if not values:
        raise RequestError(f"axis {letter} ({name}) has no values; give some, such as {name}=A,B")
    if name == PROMPT and len(values) < 2:
        raise RequestError(
            f"axis {letter} replaces words of the prompt and has nothing to replace {values[0]!r:.60} by; "
            f"give both, such as prompt=fox,owl"
        )
    return Axis(name, tuple(values))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _name(letter: str, text: str) -> str:
    """The field that a name means."""
    key = re.sub(r"[\s\-]+", "_", text.strip().lstrip("-").lower())
    name = ALIASES.get(key, key)
    known = sweepable()
    if name not in known:
        raise RequestError(
            f"axis {letter} is {text.strip()[:60]!r}, which can't be varied{nearest(key, [*known, *ALIASES])}; "
            f"there are {', '.join(known)}"
        )
    return name


def sweepable() -> list[str]:
    """The names an axis may have: "size", and each field of Request that a user sets."""
    return [SIZE, *(f.name for f in fields(Request) if f.name not in _RECORDED)]


# Fields that a finished recipe tells and nobody asks for.
_RECORDED = (
    "loras", "controls", "embeddings", "image", "mask", "depth", "latents",
    "model", "model_hash", "vae", "vae_hash", "version",
)  # fmt: skip


# Values in words -----------------------------------------------------------------------------------------------------


def _values(letter: str, name: str, text: str) -> Iterator[Any]:
    read = _reader(name)
    for part, quoted in _parts(letter, text):
        span = None if quoted or read not in (_whole, _real) else _RANGE.fullmatch(part)
        try:
            if span is not None:
                yield from _span(span, whole=read is _whole)
            else:
                yield part if quoted and read is _text else read(part)
        except ValueError as error:
            raise RequestError(f"axis {letter}, {name}={part[:60]}: {error}") from None


def _parts(letter: str, text: str) -> Iterator[tuple[str, bool]]:
    """Split at commas; a part in double quotes keeps its commas, and "" in it is one quote. (part, was it quoted)"""
    at = 0
    while at <= len(text):
        start = at + len(text[at:]) - len(text[at:].lstrip())
        if text.startswith('"', start):
            match = re.compile(r'"((?:[^"]|"")*+)"\s*(?:,|$)').match(text, start)
            if match is None:
                raise RequestError(
                    f"axis {letter} holds a quote that doesn't end before a comma: {text[start : start + 40]!r}; "
                    'write "a, b","c", and a quote in it twice'
                )
            yield match[1].replace('""', '"'), True
            if match.end() == len(text) and not match[0].rstrip().endswith(","):
                return
            at = match.end()
        else:
            stop = text.find(",", at)
            stop = len(text) if stop < 0 else stop
            yield text[at:stop].strip(), False
            at = stop + 1


def _span(match: re.Match[str], whole: bool) -> Iterator[int | float]:
    """The numbers of a range, exact in decimals."""
    first, last = Decimal(match[1]), Decimal(match[2])
    if match["count"] is not None:
        count = int(match["count"])
        step = (last - first) / (count - 1) if count > 1 else Decimal(0)
    else:
        step = Decimal(match["step"] or match["a1111"] or 1)
        step = abs(step) if last >= first else -abs(step)
        if not step:
            raise ValueError("a range's step must not be 0")
        count = int((last - first) / step) + 1
    if not 1 <= count <= MAX_CELLS:
        raise ValueError(f"that range has {count:,} values; a grid has at most {MAX_CELLS:,} cells")
    for number in (first + i * step for i in range(count)):
        if whole and match["count"] is None and number != int(number):
            raise ValueError(f"{number} is not a whole number")
        yield round(number) if whole else float(number)


def _reader(name: str) -> Callable[[str], Any]:
    """How a field's value is read, by the field's type."""
    if name == SIZE:
        return _size
    kinds = set(typing.get_args(_TYPES[name])) or {_TYPES[name]}
    if isinstance(_TYPES[name], types.UnionType):
        kinds -= {type(None)}
    else:
        kinds = {_TYPES[name]}
    for kind, read in ((bool, _bool), (float, _real), (int, _whole), (str, _text), (tuple[float, float], _pair)):
        if kind in kinds:
            return read
    return _no_words


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a whole number") from None


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None


def _text(text: str) -> str:
    return text


def _bool(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(f"{text[:40]!r} is neither yes nor no")
    return _BOOLEANS[text.lower()]


def _size(text: str) -> tuple[int, int]:
    if not (match := _SIZE.fullmatch(text)):
        raise ValueError(f"{text[:40]!r} is no size; give width and height in pixels, such as 512x512")
    return int(match[1]), int(match[2])


def _pair(text: str) -> tuple[float, float]:
    if not (match := _LEVELS.fullmatch(text)):
        raise ValueError(f"{text[:40]!r} is not two numbers; write them as 0.3:5")
    return _real(match[1]), _real(match[2])


def _no_words(text: str) -> Any:
    raise ValueError("such values can't be written as words; give them from Python")


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return f"{value[0]}x{value[1]}"
    if isinstance(value, tuple):
        return ":".join(_shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# Cells ---------------------------------------------------------------------------------------------------------------


def cells(base: Request, axes: Sequence[Axis]) -> list[Cell]:
    """Every combination, x fastest. Raises RequestError, naming axis and value, before anything is drawn.

    All cells have the seed of `base` where the seed is no axis; it must have one.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        sizes = " x ".join(str(len(axis.values)) for axis in axes)
        raise RequestError(f"a grid of {sizes} has {count:,} cells; ask for {MAX_CELLS:,} or fewer")
    _check_together(base, axes)
    for letter, axis in zip(LETTERS, axes, strict=False):
        for i in range(len(axis.values)):
            try:
                _request(base, [axis], [i])
            except RequestError as error:
                raise RequestError(f"axis {letter}, {axis.name}={axis.shown(i):.60}: {error}") from error
    names = [axis.name for axis in axes]
    names = [name if name not in names[:i] else f"{name} ({LETTERS[i]})" for i, name in enumerate(names)]
    made = []
    for place in itertools.product(*(range(len(axis.values)) for axis in reversed(axes))):
        chosen = place[::-1]
        values = {name: axis.values[i] for name, axis, i in zip(names, axes, chosen, strict=True)}
        x, y, z = (*chosen, 0, 0, 0)[:3]
        try:
            made.append(Cell((x, y, z), values, _request(base, axes, chosen)))
        except RequestError as error:
            raise RequestError(f"the cell {_words(values)} can't be drawn: {error}") from error
    return made


def _check_together(base: Request, axes: Sequence[Axis]) -> None:
    """Raise RequestError where two axes change the same thing, or words to replace are not there."""
    sought: list[str] = []
    changed: dict[str, str] = {}
    for letter, axis in zip(LETTERS, axes, strict=False):
        if axis.name == PROMPT:
            for value in axis.values:
                if not isinstance(value, str):
                    raise RequestError(f"axis {letter} replaces words of the prompt, and {value!r:.60} is no text")
            words = axis.values[0]
            if not words or (words not in base.prompt and words not in base.negative_prompt):
                raise RequestError(
                    f"axis {letter} replaces {words!r:.60}, which the prompt doesn't hold; "
                    f"its first value must be words of the prompt"
                )
            for other in sought:
                if words in other or other in words:
                    raise RequestError(
                        f"axis {letter} replaces {words!r:.60} and another axis {other!r:.60}; let them not overlap"
                    )
            sought.append(words)
            continue
        for name in axis.fields:
            if name in changed:
                raise RequestError(f"the axes {changed[name]} and {letter} both vary {name}; give it one axis")
            changed[name] = letter


def _request(base: Request, axes: Sequence[Axis], chosen: Sequence[int]) -> Request:
    """The request of one cell. Words of several axes are replaced at once: none sees what another put in."""
    changes: dict[str, Any] = {}
    words: dict[str, str] = {}
    for axis, i in zip(axes, chosen, strict=True):
        value = axis.values[i]
        if axis.name == PROMPT:
            words[axis.values[0]] = value
        elif axis.name == SIZE:
            if not (isinstance(value, tuple) and len(value) == 2):
                raise RequestError(f"size is {value!r:.60}; it must be a width and a height")
            changes["width"], changes["height"] = value
        else:
            changes[axis.name] = value
    if isinstance(changes.get("sampler"), str):
        canonical(changes["sampler"])
    if words:
        pattern = re.compile("|".join(map(re.escape, words)))
        for name in (PROMPT, "negative_prompt"):
            text = changes.get(name, getattr(base, name))
            changes[name] = pattern.sub(lambda match: words[match[0]], text)
    return replace(base, **changes)
