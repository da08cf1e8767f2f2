"""Axes in words: every spelling, every refusal."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.errors import RequestError
from darkroom.request import Request
from darkroom.settings import settings as declared_of
from darkroom.sweeps.axes import MAX_CELLS, cells, parse_axis, sweepable

BASE = Request(prompt="a red fox on a (yellow:1.2) hill", negative_prompt="blurry fox", seed=5)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=10,20,30", "steps", (10, 20, 30)),
        (" --steps = 10 , 20", "steps", (10, 20)),
        ("steps=1..4", "steps", (1, 2, 3, 4)),
        ("steps=10..30:10", "steps", (10, 20, 30)),
        ("steps=10-30:10,50", "steps", (10, 20, 30, 50)),
        ("steps=1-5", "steps", (1, 2, 3, 4, 5)),
        ("steps=10-20 (+5)", "steps", (10, 15, 20)),
        ("steps=20..10:-5", "steps", (20, 15, 10)),
        ("steps=3..1", "steps", (3, 2, 1)),
        ("steps=1-10 [4]", "steps", (1, 4, 7, 10)),
        ("steps=1..2[3]", "steps", (1, 2, 2)),
        ("steps=7[1]..9", None, ()),
        ("guidance=1..2:0.25", "guidance_scale", (1.0, 1.25, 1.5, 1.75, 2.0)),
        ("guidance_rescale=0..0.3:0.1", "guidance_rescale", (0.0, 0.1, 0.2, 0.3)),
        ("CFG Scale=1..7[3]", "guidance_scale", (1.0, 4.0, 7.0)),
        ("cfg=7, 1e1", "guidance_scale", (7.0, 10.0)),
        ("guidance-rescale=.5", "guidance_rescale", (0.5,)),
        ("seed=-1,0,18446744073709551615", "seed", (-1, 0, 2**64 - 1)),
        ("size=512x512,768 X 512", "size", ((512, 512), (768, 512))),
        ("sampler=lms,DPM++ 2M Karras", "sampler", ("lms", "DPM++ 2M Karras")),
        ("schedule type=karras", "schedule", ("karras",)),
        ("guidance_interval=0.3:5,0:inf", "guidance_interval", ((0.3, 5.0), (0.0, float("inf")))),
        ('negative="a, b",c,', "negative_prompt", ("a, b", "c", "")),
        ('negative="say ""hi"""', "negative_prompt", ('say "hi"',)),
        ('prompt=fox, owl ,"a, b" ', "prompt", ("fox", "owl", "a, b")),
        ("prompt=1..3,2", "prompt", ("1..3", "2")),
        ("prompt=fox,狐,\ud800", "prompt", ("fox", "狐", "\ud800")),
        ("prompt=a=b,c", "prompt", ("a=b", "c")),
        (("steps", [1, 2]), "steps", (1, 2)),
        ({"size": [(8, 8), [16, 8]]}, "size", ((8, 8), (16, 8))),
        (("guidance", range(1, 3)), "guidance_scale", (1, 2)),
    ],
)
def test_an_axis_is_read(text: Any, name: str | None, values: tuple[Any, ...]) -> None:
    if name is None:
        with pytest.raises(RequestError):
            parse_axis("x", text)
        return
    axis = parse_axis("x", text)
    assert (axis.name, axis.values) == (name, values)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "axis x is ''; give a name and values"),
        ("steps", "axis x is 'steps'; give a name and values"),
        ("=1,2", "axis x is '', which can't be varied"),
        ("stepz=1", "did you mean 'steps'?"),
        ("model=a,b", "axis x is 'model', which can't be varied"),
        ("latents=a", "which can't be varied"),
        ("steps=", "axis x, steps=: '' is not a whole number"),
        ("steps=1,,2", "'' is not a whole number"),
        ("steps=1.5", "'1.5' is not a whole number"),
        ("steps=1..2:0.5", "1.5 is not a whole number"),
        ("steps=1..9:0", "a range's step must not be 0"),
        ("steps=1..9[0]", "that range has 0 values"),
        ("steps=1..99999", "that range has 99,999 values; a grid has at most 1,000 cells"),
        ("steps=1..99999999999999999999", "that range has"),
        ("steps=1..2[999999999]", "that range has 999,999,999 values"),
        ("steps=" + "9" * 5000, "is not a whole number"),
        ("steps=1-2-3", "'1-2-3' is not a whole number"),
        ("guidance=much", "'much' is not a number"),
        ("size=512", "'512' is no size"),
        ("guidance_interval=3", "'3' is not two numbers"),
        ('negative="a, b', "a quote that doesn't end before a comma"),
        ('negative="a"b', "a quote that doesn't end before a comma"),
        ("prompt=fox", "has nothing to replace 'fox' by"),
        (("steps", []), "has no values"),
        (("steps", 3), "axis x is ('steps', 3)"),
        ({"a": [1], "b": [2]}, "axis x is {"),
        (7, "axis x is 7"),
        ("x" * 200_000, "give a name and values"),
        ("negative=" + '"' * 99_991, "a quote that doesn't end"),
    ],
)
def test_what_is_no_axis_is_refused_in_one_sentence(given: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_axis("x", given)
    assert said in str(error.value)
    assert len(str(error.value)) < 800


def test_a_value_is_read_by_the_type_of_its_field() -> None:
    """Every field that can be varied has a reader, or says that words won't do."""
    known = {f.name for f in fields(Request)}
    assert set(sweepable()) - {"size"} < known
    assert not {"model", "model_hash", "version", "latents"} & set(sweepable())
    for name in sweepable():
        if name != "prompt":
            try:
                parse_axis("x", f"{name}=1")
            except RequestError as error:
                told = ("is no size", "two numbers", "from Python", "yes nor no", "give sides")
                assert any(word in str(error) for word in told)  # noqa: PT017


# Cells ---------------------------------------------------------------------------------------------------------------


def test_all_combinations_x_fastest() -> None:
    made = cells(
        BASE, [parse_axis("x", "steps=1,2"), parse_axis("y", "sampler=lms,euler"), parse_axis("z", "seed=7,8")]
    )
    assert [cell.place for cell in made] == [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    assert made[5].values == {"steps": 2, "sampler": "lms", "seed": 8}
    assert (made[5].request.steps, made[5].request.sampler, made[5].request.seed) == (2, "lms", 8)
    assert made[5].request.prompt == BASE.prompt
    assert {cell.request.seed for cell in cells(BASE, [parse_axis("x", "steps=1,2")])} == {5}


def test_words_are_replaced_wherever_they_are_and_all_at_once() -> None:
    made = cells(BASE, [parse_axis("x", "prompt=fox,owl,yellow"), parse_axis("y", "prompt=yellow,(blue)")])
    texts = {cell.place[:2]: (cell.request.prompt, cell.request.negative_prompt) for cell in made}
    assert texts[0, 0] == (BASE.prompt, BASE.negative_prompt)
    assert texts[1, 1] == ("a red owl on a ((blue):1.2) hill", "blurry owl")
    assert texts[2, 1] == ("a red yellow on a ((blue):1.2) hill", "blurry yellow")  # not replaced once more
    assert made[-1].values == {"prompt": "yellow", "prompt (y)": "(blue)"}
    (_, second) = cells(BASE, [parse_axis("x", "prompt=(yellow:1.2),\\1 .*")])
    assert second.request.prompt == "a red fox on a \\1 .* hill"


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["steps=5,0"], "axis x, steps=0: steps is 0; it must be from 1 to 1000"),
        (["steps=5", "guidance=nan"], "axis y, guidance_scale=nan: guidance_scale is nan"),
        (["sampler=lms,lmz"], "axis x, sampler=lmz: there is no sampler 'lmz'; did you mean 'lms'?"),
        (["size=8x8,4x8"], "axis x, size=4x8: width is 4"),
        (["prompt_style=comfy,x"], "axis x, prompt_style=x: prompt_style is 'x'"),
        (["seed=-2"], "axis x, seed=-2: seed is -2"),
        (["negative=" + "x" * 40_000], "negative_prompt has 40,000 characters"),
        (["width=8192", "height=8,8192"], "the cell width=8192, height=8192 can't be drawn: 8192x8192 is"),
        (["steps=1", "steps=2"], "the axes x and y both vary steps"),
        (["size=8x8", "width=8"], "the axes x and y both vary width"),
        (["prompt=owl,fox"], "axis x replaces 'owl', which the prompt doesn't hold"),
        (["prompt=,fox"], "axis x replaces '', which the prompt doesn't hold"),
        (["prompt=fox,a", "prompt=red fox,b"], "axis y replaces 'red fox' and another axis 'fox'"),
        (["prompt=fox," + "x" * 32_000], "prompt has 32,"),
        (["steps=1..100", "seed=1..100"], "a grid of 100 x 100 has 10,000 cells; ask for 1,000 or fewer"),
    ],
)
def test_every_value_is_checked_before_anything_is_drawn(axes: list[str], said: str) -> None:
    with pytest.raises(RequestError) as error:
        cells(BASE, [parse_axis(letter, axis) for letter, axis in zip("xyz", axes, strict=False)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["10", None, 2.5, True, [1], {}])
def test_values_from_python_are_checked_like_any_request(value: Any) -> None:
    axis = parse_axis("x", ("steps", [value]))
    if value is None:
        assert cells(BASE, [axis])[0].request.steps is None
        return
    with pytest.raises(RequestError, match="axis x, steps="):
        cells(BASE, [axis])


@pytest.mark.parametrize("given", [("prompt", ["fox", 3]), ("size", [3]), ("size", ["8x8"]), ("sampler", [3])])
def test_values_of_a_wrong_type_from_python(given: Any) -> None:
    with pytest.raises(RequestError, match="axis x"):
        cells(BASE, [parse_axis("x", given)])


@given(st.text(alphabet=st.characters() | st.sampled_from('steps=prompt,"..:-1[]()'), max_size=60))
@settings(max_examples=200)
def test_any_text_is_an_axis_or_a_sentence(text: str) -> None:
    for words in (text, f"steps={text}", f"prompt={text}", f"guidance={text}", f"size={text}"):
        try:
            axis = parse_axis("z", words)
        except RequestError:
            continue
        assert axis.values
        assert all(axis.label(i) is not None for i in range(len(axis.values)))
        if len(axis.values) <= MAX_CELLS:
            try:
                cells(BASE, [axis])
            except RequestError as error:
                assert str(error)  # noqa: PT017


def test_what_only_a_finished_recipe_tells_can_not_be_varied() -> None:
    """A field that `generate` doesn't take, or takes as a picture or a file, is one that nobody asks for in words."""
    import inspect

    from darkroom.engine import Inputs
    from darkroom.pipeline import Pipeline

    grouped = {name for name, declared in declared_of(Request).items() if declared.group}
    taken = {*inspect.signature(Pipeline.generate).parameters, *grouped}
    brought = {field.name for field in fields(Inputs)}
    recorded = {field.name for field in fields(Request) if field.name in brought or field.name not in taken}
    assert set(sweepable()) == {"size", *(field.name for field in fields(Request))} - recorded
    for name in recorded:
        with pytest.raises(RequestError, match="can't be varied"):
            parse_axis("x", (name, ["a", "b"]))
