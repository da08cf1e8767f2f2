"""Prompt scheduling, A1111's: a prompt whose text changes from step to step becomes a list of plain texts.

    [from:to:when]   `from` for the first steps, then `to`
    [to:when]        nothing, then `to`
    [from::when]     `from`, then nothing
    [a|b|c]          a in the first step, b in the second, c in the third, a in the fourth, ...

`when` is the number of steps before the change: with a dot in it a fraction of all steps, cut to a whole number (0.25
of 10 steps: 2), without one a number of steps. At 0 or below it is `to` from the beginning; at the number of steps or
beyond, `from` to the end.

Constructs nest. A pair of square brackets is one if all brackets inside are paired and it has, outside of brackets
within it, one or two colons with a number after the last, or else a bar; every other bracket, colon and bar is left
for the weights' grammar (`grammar`). A backslash makes the character after it an ordinary one. What stays of the text
is left as it was written, white space included. Time is linear in the text, for each of its distinct steps.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from ..errors import RequestError

MAX_TEXTS = 200  # distinct texts of one prompt: each is encoded
MAX_TOTAL = 320_000  # of those texts together


@dataclass(frozen=True, slots=True)
class Stage:
    """`text` holds up to and with step `until`, counted from 1, from where the stage before ended."""

    until: int
    text: str


def stages(text: str, steps: int) -> tuple[Stage, ...]:
    """A prompt's plain texts over `steps` >= 1 steps, neighbours different; the last holds until `steps`.

    Raises RequestError for a prompt of more than 200 distinct texts, or of texts of more than 320,000 characters in
    all.
    """
    root = _parse(text)
    if isinstance(root, str):
        return (Stage(steps, text),)
    changes, period = _changes(root, steps)
    rendered: dict[tuple[int, int], str] = {}
    distinct: dict[str, str] = {}
    characters = 0
    found: list[Stage] = []
    segment = 0
    for step in range(1, steps + 1):
        segment += step in changes
        key = segment, (step - 1) % period
        if key not in rendered:
            now = _render(root, step, steps)
            if now not in distinct:
                distinct[now] = now
                characters += len(now)
            rendered[key] = distinct[now]
            if len(distinct) > MAX_TEXTS or characters > MAX_TOTAL:
                raise RequestError(
                    f"the prompt becomes more than {MAX_TEXTS} different texts, or {MAX_TOTAL:,} characters, over "
                    f"{steps} steps; use fewer or shorter [from:to:when] and [a|b]"
                )
        if found and found[-1].text is rendered[key]:
            found[-1] = Stage(step, rendered[key])
        else:
            found.append(Stage(step, rendered[key]))
    return tuple(found)


def last_step(when: str, steps: int) -> int:
    """The last step, of `steps`, before the change that `when` (a number as it is written) sets; 0: there is none."""
    value = float(when) * (steps if "." in when else 1)
    return int(min(max(value, 0.0), float(steps)))


@dataclass(frozen=True, slots=True, eq=False)
class _Edit:
    before: tuple[_Node, ...]
    after: tuple[_Node, ...]
    when: str


@dataclass(frozen=True, slots=True, eq=False)
class _Alternation:
    options: tuple[tuple[_Node, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Brackets that are no construct, with a construct in them."""

    parts: tuple[_Node, ...]


class _Separator(str):
    """A colon or bar that may part the fields of the brackets around it. Elsewhere it is the text that it is."""


_Node = str | _Edit | _Alternation | _Group
_TOKEN = re.compile(r"(?:\\.|[^\\\[\]():|])+|.", re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_PARTNER = {"]": "[", ")": "("}


def _parse(text: str) -> _Node:
    """The prompt as a tree; a str where nothing in it is a construct. With a stack, for brackets of any depth."""
    root: list[_Node] = []
    open_brackets: list[tuple[str, list[_Node]]] = []  # with what has come in each so far
    for match in _TOKEN.finditer(text):
        token = match.group()
        into = open_brackets[-1][1] if open_brackets else root
        if token in ("[", "("):
            open_brackets.append((token, []))
        elif token in (":", "|"):
            into.append(_Separator(token))
        elif token not in _PARTNER:
            into.append(token)
        elif open_brackets and open_brackets[-1][0] == _PARTNER[token]:
            bracket, inside = open_brackets.pop()
            into = open_brackets[-1][1] if open_brackets else root
            into.append((_construct(inside) if bracket == "[" else None) or _plain(bracket, inside, token))
        else:  # of all brackets open here none can be closed: this one would stand unpaired inside
            _give_up(open_brackets, root)
            root.append(token)
    _give_up(open_brackets, root)
    return "".join(map(str, root)) if all(isinstance(node, str) for node in root) else _Group(tuple(root))


def _give_up(open_brackets: list[tuple[str, list[_Node]]], root: list[_Node]) -> None:
    """Brackets that will never be closed are text, like what is in them."""
    for bracket, inside in open_brackets:
        root += [bracket, *inside]
    open_brackets.clear()


def _plain(left: str, inside: list[_Node], right: str) -> _Node:
    parts = (left, *inside, right)
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else _Group(parts)


def _construct(inside: list[_Node]) -> _Node | None:
    """What square brackets with this between them are, or None."""
    fields = _fields(inside, ":")
    when = "".join(node for node in fields[-1] if isinstance(node, str))
    pure = all(isinstance(node, str) for node in fields[-1])
    if len(fields) in (2, 3) and pure and (number := _NUMBER.fullmatch(when)):
        return _Edit(fields[0] if len(fields) == 3 else (), fields[-2], number[1])
    options = _fields(inside, "|")
    return _Alternation(tuple(options)) if len(options) > 1 else None


def _fields(nodes: list[_Node], separator: str) -> list[tuple[_Node, ...]]:
    at = [i for i, node in enumerate(nodes) if isinstance(node, _Separator) and node == separator]
    return [tuple(nodes[i + 1 : j]) for i, j in pairwise([-1, *at, len(nodes)])]


def _changes(root: _Node, steps: int) -> tuple[set[int], int]:
    """The steps in which an edit may take effect; after how many steps all alternations are where they were."""
    changes: set[int] = set()
    period = 1
    work = [root]
    while work:
        node = work.pop()
        if isinstance(node, _Group):
            work.extend(node.parts)
        elif isinstance(node, _Edit):
            changes.add(last_step(node.when, steps) + 1)
            work.extend((*node.before, *node.after))
        elif isinstance(node, _Alternation):
            period = min(math.lcm(period, len(node.options)), steps)  # beyond the steps it is never seen
            work.extend(part for option in node.options for part in option)
    return changes, period


def _render(root: _Node, step: int, steps: int) -> str:
    """The text in a step, counted from 1."""
    texts: list[str] = []
    work = [root]
    while work:
        node = work.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, _Group):
            work.extend(reversed(node.parts))
        elif isinstance(node, _Edit):
            work.extend(reversed(node.before if step <= last_step(node.when, steps) else node.after))
        else:
            work.extend(reversed(node.options[(step - 1) % len(node.options)]))
    return "".join(texts)
