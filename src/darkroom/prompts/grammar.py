"""A prompt, parsed. `Prompt.parse` is the only place where a text is read; what it gives travels to the conditions.

Four things are in A1111's grammar, and are read in this order:

    tags         <lora:name:weight>, taken out of the text before anything else reads it
    composition  a cat AND a dog :1.2: several prompts, each with a weight, drawn into one picture
    schedules    [from:to:when], [a|b]: the text changes from step to step, and becomes several plain ones
    weights      (x:1.3), BREAK: a plain text becomes spans with weights

ComfyUI's grammar has weights only, the plain one nothing. Each of the four has its own section below.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import RequestError

STYLES = ("a1111", "comfy", "plain")
MAX_CHARACTERS = 32_000  # of a prompt; above it, it is refused
MAX_BREAKS = 500  # each costs a chunk, however little is in it
MAX_WEIGHT = 1_000.0  # a weight is between -MAX_WEIGHT and MAX_WEIGHT
_EMPHASIS = 1.1  # of a bracket without a number


# --- weights: a plain text to spans
#
#     a1111   (x) times 1.1, [x] divided by 1.1, (x:1.3) times 1.3; nesting multiplies; BREAK starts a new chunk
#     comfy   (x) times 1.1, (x:1.3) exactly 1.3; square brackets are text
#     plain   everything is text
#
# In the first two a backslash makes a bracket an ordinary character. No prompt is ungrammatical: a bracket that doesn't
# fit is text, one that isn't closed in a1111 reaches to the end (in comfy it is text, and so is all that follows).
# All three take time linear in the text, but for a factor in a1111 of a nanosecond a character and bracket.


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
    import numpy as np  # not needed to read tags, which a help page does

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


# --- composition
#
# The word AND in capitals, not as a part of a longer word, stands between the parts; a backslash before it makes it a
# word of the prompt. A part may end in a colon and its weight, which is 1 otherwise. A prompt without AND is one part,
# whatever it ends in (A1111 takes "at 10:30" for the weight 30). As in A1111 the parts are told first, so that AND
# splits inside brackets too. How the parts' pictures are combined: `diffusion.guidance.Composed`.


MAX_PARTS = 16  # each is a row of every U-Net call
MAX_SHARE = 100.0

_AND = re.compile(r"(?<!\\)(?P<escapes>(?:\\\\)*)\bAND\b")
_WEIGHT = re.compile(r":\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))$")


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts that are composed."""

    text: str
    weight: float = 1.0


def parts(text: str) -> tuple[Part, ...]:
    """The parts of a prompt, at least one. Raises RequestError for more than 16, or a weight beyond +-100."""
    cuts = list(_AND.finditer(text))
    if not cuts:
        return (Part(text),)
    if len(cuts) >= MAX_PARTS:
        raise RequestError(f"the prompt has {len(cuts) + 1:,} parts joined by AND; use {MAX_PARTS} or fewer")
    starts = [0, *(cut.end() for cut in cuts)]
    ends = [*(cut.end("escapes") for cut in cuts), len(text)]
    return tuple(_part(text[start:end].strip()) for start, end in zip(starts, ends, strict=True))


def _part(text: str) -> Part:
    match = _WEIGHT.search(text)
    if match is None:
        return Part(text)
    weight = float(match[1])
    if not abs(weight) <= MAX_SHARE:
        shown = match[1] if len(match[1]) <= 20 else match[1][:17] + "..."
        raise RequestError(
            f"a part of the prompt has the weight {shown}; choose one between {-MAX_SHARE:.0f} and {MAX_SHARE:.0f}"
        )
    return Part(text[: match.start()].rstrip(), weight)


# --- schedules
#
#     [from:to:when]   `from` for the first steps, then `to`
#     [to:when]        nothing, then `to`
#     [from::when]     `from`, then nothing
#     [a|b|c]          a in the first step, b in the second, c in the third, a in the fourth, ...
#
# `when` is the number of steps before the change: with a dot in it a fraction of all steps, cut to a whole number (0.25
# of 10 steps: 2), without one a number of steps. At 0 or below it is `to` from the beginning; at the number of steps or
# beyond, `from` to the end.
#
# Constructs nest. A pair of square brackets is one if all brackets inside are paired and it has, outside of brackets
# within it, one or two colons with a number after the last and no bar, or else bars and no colon; every other bracket,
# colon and bar is left for the weights. A backslash makes the character after it an ordinary one. What stays of the
# text is left as it was written, white space included. Time is linear in the text, for each of its distinct steps.


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
    fields, options = _fields(inside, ":"), _fields(inside, "|")
    if len(fields) > 1 and len(options) > 1:  # text in A1111's grammar, too
        return None
    when = "".join(node for node in fields[-1] if isinstance(node, str))
    pure = all(isinstance(node, str) for node in fields[-1])
    if len(fields) in (2, 3) and pure and (number := _NUMBER.fullmatch(when)):
        return _Edit(fields[0] if len(fields) == 3 else (), fields[-2], number[1])
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


# --- tags
#
# `<lora:name>` is at weight 1, `<lora:name:0.8>` on all networks, `<lora:name:0.8:0.5>` 0.8 on the text encoder and 0.5
# on the U-Net (A1111's order), which `<lora:name:te=0.8:unet=0.5>` says in words.


MAX_TAGS = 100
_TAG = re.compile(r"<lora:([^<>]+)>")


@dataclass(frozen=True, slots=True)
class Tag:
    """A LoRA that a prompt asks for by name."""

    name: str
    scale: float = 1.0  # on the U-Net
    text_scale: float = 1.0


def take_tags(text: str, style: str = "a1111") -> tuple[str, tuple[Tag, ...]]:
    """The text without its tags, and the tags in order; a grammar other than a1111's has none.

    Raises RequestError for a tag whose weights are no numbers, or more than 100 tags.
    """
    if style != "a1111" or "<lora:" not in text:
        return text, ()
    found = _TAG.findall(text)
    if len(found) > MAX_TAGS:
        raise RequestError(f"the prompt asks for {len(found):,} LoRAs; use {MAX_TAGS} or fewer")
    return _TAG.sub("", text), tuple(_tag(inside) for inside in found)


def _tag(inside: str) -> Tag:
    name, *arguments = (part.strip() for part in inside.split(":"))
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    placed = [argument for argument in arguments if "=" not in argument]
    text_scale = _number(named.get("te", placed[0] if placed else "1"), inside)
    scale = _number(named["unet"], inside) if "unet" in named else text_scale
    if "unet" not in named and len(placed) > 1:
        scale = _number(placed[1], inside)
    return Tag(name, scale, text_scale)


def _number(written: str, inside: str) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not abs(value) <= 100:
        raise RequestError(
            f"the prompt has <lora:{inside[:60]}>, whose weight {written[:20]!r} is no number from -100 to 100"
        )
    return value


# --- all of it


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is read.

    Attributes:
        text: what is left of it without tags.
        style: its grammar.
        parts: the prompts that AND joins; one where nothing is joined.
        loras: what its tags ask for, in order.
    """

    text: str
    style: str
    parts: tuple[Part, ...]
    loras: tuple[Tag, ...] = ()

    @classmethod
    def parse(cls, text: str, style: str = "a1111", negative: bool = False) -> Prompt:
        """Read a prompt; in a negative one tags and AND are words like others. Raises RequestError."""
        check_prompt(text, style)
        if style != "a1111" or negative:
            return cls(text, style, (Part(text),))
        bare, tags = take_tags(text)
        return cls(bare, style, parts(bare), tags)

    def stages(self, part: Part, steps: int) -> tuple[Stage, ...]:
        """The plain texts of one of its parts over `steps` steps. Raises RequestError as `stages` does."""
        return stages(part.text, steps) if self.style == "a1111" else (Stage(steps, part.text),)
