"""What varies in a grid, from a text such as "steps=10,20,30", checked value by value. No torch.

    NAME=VALUE,VALUE,...      a field of `Request` or its option's name: steps, sampler, guidance, size, negative, ...
    steps=10..30:10           numbers from..to:step; the step may be left out (1) and may lead downwards
    guidance=1..7[4]          four numbers, evenly from 1 to 7
    prompt=fox,owl,"a, b"     the first words are sought in the prompts and replaced by each; quotes keep commas

A1111's own spellings of ranges are read too: 1-5, 10-30 (+10), 1-7 [4].
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ..elsewhere import DRAWING, plain
from ..errors import RequestError, nearest
from ..request import MAX_IMAGES, Request
from ..request import SIZE as SIZE_OF_A_REQUEST
from ..samplers import canonical
from ..settings import SettingError, joined, settings

Given = str | tuple[str, Sequence[Any]] | Mapping[str, Sequence[Any]]  # an axis as a user gives it
LETTERS = "xyz"
MAX_CELLS = MAX_IMAGES
MAX_AXIS = 100_000  # characters of an axis in words
PROMPT, SIZE = "prompt", "size"  # axes that are no plain field: words to replace, and both sides at once
_NUMBER = r"[+-]?\d{0,20}\.?\d{1,20}"
_RANGE = re.compile(
    rf"({_NUMBER})\s*(?:\.\.|-)\s*({_NUMBER})\s*"
    rf"(?::\s*(?P<step>{_NUMBER})|\(\s*(?P<a1111>{_NUMBER})\s*\)|\[\s*(?P<count>\d{{1,9}})\s*\])?",
    re.ASCII,
)


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
    key = plain(text)
    aliases = _aliases()
    name = aliases.get(key, key)
    known = sweepable()
    if name not in known:
        raise RequestError(
            f"axis {letter} is {text.strip()[:60]!r}, which can't be varied{nearest(key, [*known, *aliases])}; "
            f"there are {', '.join(known)}"
        )
    return name


def sweepable(owner: type = Request) -> list[str]:
    """The names an axis may have: "size", and each field of a request that a user sets."""
    return [SIZE, *(name for name, declared in settings(owner).items() if declared.axis)]


@functools.cache
def _aliases() -> dict[str, str]:
    """Other names of fields: the command line's options, A1111's keys, and what else other programs say."""
    found: dict[str, str] = {}
    for name, _, declared in joined(Request):
        if declared.axis:
            told = ((declared.option or "").lstrip("-"), declared.key or "", *DRAWING.of(name))
            found |= {plain(other): name for other in told if other}
    return found


# Values in words -----------------------------------------------------------------------------------------------------


def _values(letter: str, name: str, text: str) -> Iterator[Any]:
    kind = (SIZE_OF_A_REQUEST.told if name == SIZE else settings(Request)[name]).kind
    for part, quoted in _parts(letter, text):
        numbers = kind.count == 1 and kind.of in (int, float) and not quoted
        span = _RANGE.fullmatch(part) if numbers else None
        try:
            if span is not None:
                yield from _span(span, whole=kind.of is int)
            else:
                yield kind.read(name, part)
        except SettingError as error:
            raise RequestError(f"axis {letter}, {name}={part[:60]}: {error.clause}") from None


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
            raise SettingError("a range's step must not be 0")
        count = int((last - first) / step) + 1
    if not 1 <= count <= MAX_CELLS:
        raise SettingError(f"that range has {count:,} values; a grid has at most {MAX_CELLS:,} cells")
    for number in (first + i * step for i in range(count)):
        if whole and match["count"] is None and number != int(number):
            raise SettingError(f"{number} is not a whole number")
        yield round(number) if whole else float(number)


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
