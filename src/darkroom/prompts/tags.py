"""`<lora:name:weight>` in a prompt: taken out of the text before anything else reads it, as A1111 does.

`<lora:name>` is at weight 1, `<lora:name:0.8>` on all networks, `<lora:name:0.8:0.5>` 0.8 on the text encoder and 0.5
on the U-Net (A1111's order), which `<lora:name:te=0.8:unet=0.5>` says in words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import RequestError

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
