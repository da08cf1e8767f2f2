"""Composition: "a cat AND a dog :1.2" is several prompts, each with a weight, drawn into one picture.

The word AND in capitals, not as a part of a longer word, stands between the parts; a backslash before it makes it a
word of the prompt. A part may end in a colon and its weight, which is 1 otherwise. A prompt without AND is one part,
whatever it ends in (A1111 takes "at 10:30" for the weight 30). As in A1111 the parts are told first, so that AND
splits inside brackets too. How the parts' pictures are combined: `diffusion.guidance.Composed`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError

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
