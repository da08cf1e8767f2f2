"""Settings: what is declared on a field is checked, read and written without another word."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from darkroom.errors import RequestError
from darkroom.settings import (
    Joint,
    Setting,
    SettingError,
    changed,
    check,
    default,
    flag,
    from_plain,
    joined,
    one_of,
    or_none,
    read_nothing,
    real,
    setting,
    settings,
    text,
    to_plain,
    whole,
)

SIDE = whole(8, 64, " pixels")
SIZE = Joint("size", ("width", "height"), Setting(SIDE, "Both sides.", option="--size", key="Size"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    scale: float = setting(2.0, real(1, 16), called="inner scale")

    def __post_init__(self) -> None:
        check(self, RequestError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    name: str = setting(kind=text(10), help="Whose.")
    steps: int = setting(30, whole(1, 1000), "Denoising steps.", option="--steps", key="Steps")
    style: str | None = setting(None, one_of(("plain", "bold")), "How it looks.", option="", key="")
    width: int = setting(8, SIDE, joint=SIZE)
    height: int = setting(8, SIDE, joint=SIZE)
    strict: bool = setting(False, flag(), group="rules")
    end: float = setting(math.inf, real(0, math.inf))
    hash: str | None = setting(kind=or_none(text(10)), axis=False)
    parts: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        check(self, RequestError)


def made(**values: Any) -> Example:
    return Example(**{"name": "a", "hash": None, **values})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be from 1 to 1000"),
        ({"steps": True}, "steps is True; it must be a whole number from 1 to 1000"),
        ({"style": "bald"}, "style is 'bald'; it must be one of plain, bold; did you mean 'bold'?"),
        ({"width": 4}, "width is 4; it must be from 8 to 64 pixels"),
        ({"strict": 1}, "strict is 1; it must be True or False"),
        ({"name": "x" * 11}, "name has 11 characters; shorten it to 10 or fewer"),
        ({"name": None}, "name is None; it must be a text"),
        ({"steps": None}, "steps is None; it must be a whole number from 1 to 1000"),
        ({"end": math.nan}, "end is nan; it must be from 0 to inf"),
    ],
)
def test_a_value_is_checked_by_its_declaration(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        made(**values)
    assert str(caught.value) == sentence
    with pytest.raises(RequestError, match=r"inner scale is 0\.5"):
        Inner(scale=0.5)


def test_numbers_become_plain_and_what_is_not_said_stays_open() -> None:
    assert type(made(end=3).end) is float
    assert made().style is None
    assert made().hash is None
    assert made(hash="0" * 10).hash == "0" * 10


def test_what_is_said_at_once_comes_once() -> None:
    told = {name: (names, declared.option) for name, names, declared in joined(Example)}
    assert list(told) == ["name", "steps", "style", "size", "strict", "end", "hash"]
    assert told["size"] == (("width", "height"), "--size")
    assert settings(Example)["strict"].group == "rules.strict"
    assert settings(Example)["strict"].of_group("rules")
    assert settings(Example)["style"].option == "--style"
    assert settings(Example)["style"].key == "Style"
    assert default(Example, "steps") == 30


def test_a_plain_object_and_back() -> None:
    one = made(style="bold", parts=(Inner(), Inner(scale=3)), hash=None)
    plain = to_plain(one)
    assert plain == {
        "name": "a", "steps": 30, "style": "bold", "width": 8, "height": 8, "strict": False, "end": None, "hash": None,
        "parts": [{"scale": 2.0}, {"scale": 3.0}],
    }  # fmt: skip
    assert "parts" not in to_plain(made())
    assert "style" not in to_plain(made())
    assert from_plain(Example, {"name": "a", "hash": None, "steps": 5, "schema": 1}, "it", RequestError).steps == 5
    with pytest.raises(RequestError, match="it has no field 'stepz'; did you mean 'steps'"):
        from_plain(Example, {"stepz": 5}, "it", RequestError)
    with pytest.raises(RequestError, match="must be an object"):
        from_plain(Example, [1], "it", RequestError)


def test_what_is_changed() -> None:
    assert changed(made(steps=5)).keys() == {"name", "steps", "hash"}
    assert changed(replace(made(), strict=True))["strict"] is True


def test_a_subclass_adds_a_setting() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class More(Example):
        grain: float = setting(0.0, real(0, 1), "Film grain.", option="--grain")

    assert More(name="a", hash=None, grain=1).grain == 1.0
    with pytest.raises(RequestError, match="grain is 2; it must be from 0 to 1"):
        More(name="a", hash=None, grain=2)
    assert to_plain(More(name="a", hash=None))["grain"] == 0.0


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(whole(1, 9), "5", 5), (real(0, 9), "1e0", 1.0), (flag(), "Yes", True), (one_of("ab"), "a", "a")],
)
def test_a_text_is_read(kind: Any, text: str, value: object) -> None:
    assert kind.read("it", text) == value


@pytest.mark.parametrize(
    ("read", "sentence", "clause"),
    [
        (whole(1, 9).read, "it is 'x'; it must be a whole number", "'x' is not a whole number"),
        (real(1, 9).read, "it is 'x'; it must be a number", "'x' is not a number"),
        (flag().read, "it is 'x'; it must be true or false", "'x' is neither yes nor no"),
        (read_nothing, "it is 'x'; such a value", "such values can't be written as words; give them from Python"),
    ],
)
def test_a_text_that_can_not_be_read(read: Any, sentence: str, clause: str) -> None:
    with pytest.raises(SettingError) as caught:
        read("it", "x")
    assert str(caught.value).startswith(sentence)
    assert caught.value.clause == clause
