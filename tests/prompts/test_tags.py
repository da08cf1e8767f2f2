"""<lora:name:weight>: what is taken out of a prompt."""

from __future__ import annotations

import pytest

from darkroom.errors import RequestError
from darkroom.prompts.grammar import Tag, take_tags


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a fox", "a fox", ()),
        ("a <lora:ink>fox", "a fox", (Tag("ink"),)),
        ("<lora:ink:0.5>a<lora:b-2_c d:-1>", "a", (Tag("ink", 0.5, 0.5), Tag("b-2_c d", -1.0, -1.0))),
        ("<lora:ink:0.8:0.5>", "", (Tag("ink", 0.5, 0.8),)),  # A1111's order: text encoder, U-Net
        ("<lora:ink:unet=0.5:te=.25>", "", (Tag("ink", 0.5, 0.25),)),
        ("<lora:ink:0.7:unet=2>", "", (Tag("ink", 2.0, 0.7),)),
        ("[<lora:ink:1>a:b:0.5] AND <lora: x :1>c", "[a:b:0.5] AND c", (Tag("ink"), Tag("x"))),
        ("<lora:> <Lora:a:1> <lora:a <b>", "<lora:> <Lora:a:1> <lora:a <b>", ()),
    ],
)
def test_tags(text: str, rest: str, tags: tuple[Tag, ...]) -> None:
    assert take_tags(text) == (rest, tags)


def test_other_grammars_have_none() -> None:
    for style in ("comfy", "plain"):
        assert take_tags("<lora:a:1>", style) == ("<lora:a:1>", ())


@pytest.mark.parametrize("text", ["<lora:a:x>", "<lora:a:nan>", "<lora:a:1:inf>", "<lora:a:te=>", "<lora:a:101>"])
def test_weights_that_are_no_numbers(text: str) -> None:
    with pytest.raises(RequestError, match="is no number from -100 to 100"):
        take_tags(text)
    with pytest.raises(RequestError, match="asks for 101 LoRAs"):
        take_tags("<lora:a:1>" * 101)


def test_hostile_prompts_take_linear_time() -> None:
    assert take_tags("<lora:" * 5000)[1] == ()
    assert take_tags("<lora:" + "a" * 30_000)[1] == ()
