"""Prompt grammars: a text to spans with weights.

    a1111   (x) times 1.1, [x] divided by 1.1, (x:1.3) times 1.3; nesting multiplies; BREAK starts a new chunk
    comfy   (x) times 1.1, (x:1.3) exactly 1.3; square brackets are text
    plain   everything is text

In the first two a backslash makes a bracket an ordinary character. No prompt is ungrammatical: a bracket that doesn't
fit is text, one that isn't closed in a1111 reaches to the end (in comfy it is text, and so is all that follows).
All three take time linear in the text, but for a factor in a1111 of a nanosecond a character and bracket.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from ..errors import RequestError

STYLES = ("a1111", "comfy", "plain")
MAX_CHARACTERS = 32_000  # of a prompt; above it, it is refused
MAX_BREAKS = 500  # each costs a chunk, however little is in it
MAX_WEIGHT = 1_000.0  # a weight is between -MAX_WEIGHT and MAX_WEIGHT
_EMPHASIS = 1.1  # of a bracket without a number


@dataclass(frozen=True, slots=True)
class Span:
    """Text that is tokenised in one piece and has one weight."""

    text: str
    weight: float = 1.0
    new_chunk: bool = False  # it begins a new chunk (BREAK stood before it)


def check_prompt(text: str, style: str = "a1111") -> None:
    """Raise RequestError where a prompt is no text or too long, or the style is unknown."""
    if not isinstance(text, str):
        raise RequestError(f"a prompt must be a text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the prompt has {len(text):,} characters; shorten it to {MAX_CHARACTERS:,} or fewer")
    if style not in STYLES:
        raise RequestError(f"prompt style {style!r} is unknown; choose one of {', '.join(STYLES)}")


def parse(text: str, style: str = "a1111") -> tuple[Span, ...]:
    """The spans of a prompt, in order; at least one, which may be empty.

    Brackets that multiply a weight beyond +-1,000 leave it there. Raises RequestError for a prompt of more than 32,000
    characters or 500 BREAKs, a written weight beyond +-1,000 or not finite, or an unknown style.
    """
    check_prompt(text, style)
    if style == "a1111":
        return _parse_a1111(text)
    if style == "comfy":
        return _parse_comfy(text)
    return (Span(text),)


def _checked_weight(number: str) -> float | None:
    """The weight that a number says; None where it is no number."""
    try:
        weight = float(number)
    except ValueError:
        return None
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        short = number.strip()
        short = short if len(short) <= 20 else short[:17] + "..."
        raise RequestError(
            f"the prompt has the weight {short}; choose one between {-MAX_WEIGHT:.0f} and {MAX_WEIGHT:.0f}"
            " (usual are 0.5 to 1.5), or write \\( and \\) if the brackets are meant as text"
        )
    return weight


_A1111_TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [\\()\[\]] )?                     # a backslash before anything else vanishes
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? [\d.]+ ) \s* \)
    | (?P<close> [)\]] )
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


def _parse_a1111(text: str) -> tuple[Span, ...]:
    """Round and square brackets are counted apart: in "([a)b]" the first covers a, the second a and b."""
    pieces: list[Span] = []
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}  # the piece that each one stands before
    factors: list[tuple[int, int, float]] = []  # pieces [start, end) times a factor, in the order of the closing

    def close(bracket: str, factor: float) -> None:
        factors.append((open_brackets[bracket].pop(), len(pieces), factor))

    for token in _A1111_TOKEN.finditer(text):
        kind, value = token.lastgroup, token.group()
        if kind == "open":
            open_brackets[value].append(len(pieces))
        elif kind == "weight" and open_brackets["("]:
            weight = _checked_weight(token["weight"])
            if weight is None:  # "(see: ...)" holds no number
                pieces.append(Span(value[:-1]))
            close("(", _EMPHASIS if weight is None else weight)
        elif value == ")" and open_brackets["("]:
            close("(", _EMPHASIS)
        elif value == "]" and open_brackets["["]:
            close("[", 1 / _EMPHASIS)
        elif kind == "text":
            pieces.extend(_split_at_breaks(value))
        else:
            pieces.append(Span(value.removeprefix("\\")))
    for bracket, factor in (("(", _EMPHASIS), ("[", 1 / _EMPHASIS)):
        factors.extend((start, len(pieces), factor) for start in open_brackets[bracket])
    breaks = sum(piece.new_chunk for piece in pieces)
    if breaks > MAX_BREAKS:
        raise RequestError(f"the prompt has {breaks:,} BREAKs; use {MAX_BREAKS} or fewer")
    return _joined(pieces, _weights(len(pieces), factors))


def _split_at_breaks(text: str) -> list[Span]:
    """BREAK takes the white space around it away. It breaks inside of brackets too (in A1111 it is text there)."""
    parts = _BREAK.split(text)
    last = len(parts) - 1
    for i, part in enumerate(parts):
        # Stripped here and not by the pattern, whose time would grow with the square of the white space.
        part = part.lstrip() if i > 0 else part
        parts[i] = part.rstrip() if i < last else part
    return [Span(part, new_chunk=i > 0) for i, part in enumerate(parts)]


def _weights(count: int, factors: list[tuple[int, int, float]]) -> list[float]:
    """The product of the factors over each piece, multiplied one after another as A1111 does, to the last bit."""
    weights = np.ones(count)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start, end, factor in factors:
            weights[start:end] *= factor
    # inf * 0 is a number here: someone set the weight to 0.
    limited: list[float] = np.clip(np.nan_to_num(weights, nan=0.0), -MAX_WEIGHT, MAX_WEIGHT).tolist()
    return limited


def _joined(pieces: list[Span], weights: list[float]) -> tuple[Span, ...]:
    """Neighbours of the same weight become one span, because a word may continue across an escaped bracket."""
    spans: list[Span] = []
    texts: list[str] = []  # of the last span, until it is complete

    def complete() -> None:
        if spans:
            spans[-1] = replace(spans[-1], text="".join(texts))

    for piece, weight in zip(pieces, weights, strict=True):
        if spans and weight == spans[-1].weight and not piece.new_chunk:
            texts.append(piece.text)
            continue
        complete()
        spans.append(replace(piece, weight=weight))
        texts = [piece.text]
    complete()
    return tuple(spans) or (Span(""),)


_COMFY_BRACKET = re.compile(r"(?<!\\)[()]")


def _parse_comfy(text: str) -> tuple[Span, ...]:
    """Pairs of brackets, outermost first; a pair's number replaces the weight around it.

    As in ComfyUI a ")" too many makes the next "(" text, and an unclosed "(" makes everything after it text; unless
    that ends in ")", which then closes it, and leaves another one inside unclosed.
    """
    at = [m.start() for m in _COMFY_BRACKET.finditer(text)]
    partner: dict[int, int] = {}  # the closing bracket of an opening one, both by their place in `at`
    waiting: list[int] = []
    for n, position in enumerate(at):
        if text[position] == "(":
            waiting.append(n)
        elif waiting:
            partner[waiting.pop()] = n

    spans: list[Span] = []
    # Stretches of text still to be read, the next one last: characters [start, end), brackets [first, stop) in it,
    # weight. A stack and not a recursion, for texts with thousands of brackets in one another.
    work = [(0, len(text), 0, len(at), 1.0)]
    while work:
        start, end, first, stop, weight = work.pop()
        surplus = 0  # closing brackets without an opening one
        n = first
        while n < stop and (text[at[n]] == ")" or surplus):
            surplus += 1 if text[at[n]] == ")" else -1
            n += 1
        here = at[n] if n < stop else end
        if start < here:
            spans.append(Span(_unescaped(text[start:here]), weight))
        if n == stop:
            continue
        close = partner.get(n, stop)
        if close >= stop:
            close = stop - 1
            if at[close] != end - 1 or text[at[close]] != ")":
                spans.append(Span(_unescaped(text[here:end]), weight))
                continue
        work.append((at[close] + 1, end, close + 1, stop, weight))
        inner_end, inner_weight = at[close], _limited(weight * _EMPHASIS)
        # A number is looked for after the last bracket inside, and not right at the beginning.
        colon = text.rfind(":", max(here + 2, at[close - 1] + 1), inner_end)
        number = _checked_weight(text[colon + 1 : inner_end]) if colon >= 0 else None
        if number is not None:
            inner_end, inner_weight = colon, number
        work.append((here + 1, inner_end, n + 1, close, inner_weight))
    return tuple(spans) or (Span(""),)


def _limited(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def _unescaped(text: str) -> str:
    return text.replace("\\(", "(").replace("\\)", ")")
