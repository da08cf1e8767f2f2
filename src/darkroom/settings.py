"""Settings: declared once, on the field of a dataclass; checks, options, help, recipes and overrides are derived.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Example:
        steps: int = setting(30, whole(1, 1000), "Denoising steps.", option="--steps", key="Steps")
        style: str | None = setting(None, one_of(("plain", "bold")), "How it looks.")

        def __post_init__(self) -> None:
            check(self, RequestError)

A `Kind` says what values there may be: it checks one that was given, and reads one from a text (of the command line, of
`--set`, of an axis of a sweep). A field whose default is None may be None: nobody has said anything. No torch.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from .errors import nearest, shown


class SettingError(Exception):
    """One sentence: a setting's name, the value that it can't have, and what it must be."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting's values may be.

    Attributes:
        check: (name, value) -> the value as it is kept: plain ints, floats, strings, tuples. Raises SettingError.
        read: (name, text) -> a value to be checked, from a text. Raises SettingError.
        metavar: what stands for the value in a command's help, such as "N".
        wanted: the values in words, such as "a whole number from 1 to 1000".
        choices: all values, where they have names.
    """

    check: Callable[[str, Any], Any]
    read: Callable[[str, str], Any]
    metavar: str = "VALUE"
    wanted: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared of a field beside its name, type and default.

    Attributes:
        kind: its values.
        help: a line for people: what it does, its unit and range, what is taken where nothing is said.
        option: the command line's name, such as "--guidance"; None: no option.
        key: A1111's name in the line of parameters ("infotext"), such as "CFG scale"; None: none.
        axis: whether a sweep may vary it.
        extra: what else a room declares of its own fields, by name.
    """

    kind: Kind
    help: str = ""
    option: str | None = None
    key: str | None = None
    axis: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def setting(
    default: Any = MISSING,
    kind: Kind | None = None,
    help: str = "",
    *,
    option: str | None = None,
    key: str | None = None,
    axis: bool = True,
    **extra: Any,
) -> Any:
    """A dataclass field that is a setting; the arguments are `Setting`'s. Without a default the field must be given."""
    assert kind is not None
    return field(default=default, metadata={"setting": Setting(kind, help, option, key, axis, extra)})


def settings(owner: Any) -> dict[str, Setting]:
    """The settings of a dataclass or of one of its instances, by name, in the order of declaration."""
    return {f.name: f.metadata["setting"] for f in fields(owner) if "setting" in f.metadata}


def check(instance: Any, error: Callable[[str], Exception]) -> None:
    """Check all settings of a frozen dataclass and keep their plain values; to be called in `__post_init__`.

    Raises `error` with the sentence.
    """
    for f in fields(instance):
        declared: Setting | None = f.metadata.get("setting")
        value = getattr(instance, f.name)
        if declared is None or (value is None and f.default is None):
            continue
        try:
            plain = declared.kind.check(f.name, value)
        except SettingError as wrong:
            raise error(str(wrong)) from None
        if plain is not value:
            object.__setattr__(instance, f.name, plain)


def changed(instance: Any) -> dict[str, Any]:
    """The values that are not the field's default, by name."""
    return {f.name: value for f in fields(instance) if (value := getattr(instance, f.name)) != _default(f)}


def _default(f: Field[Any]) -> Any:
    return f.default if f.default is not MISSING or f.default_factory is MISSING else f.default_factory()


# --- kinds


def whole(low: int, high: int, unit: str = "") -> Kind:
    """Whole numbers in low..high (numpy's too; no bools, no floats, no strings), as ints."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise SettingError(f"{name} is {shown(value)}; it must be a whole number from {low} to {high}{unit}")
        number = operator.index(value)
        if not low <= number <= high:
            raise SettingError(f"{name} is {shown(number)}; it must be from {low} to {high}{unit}")
        return number

    return Kind(check, _read_whole, "N", f"a whole number from {low} to {high}{unit}")


def real(low: float, high: float, unit: str = "") -> Kind:
    """Finite numbers in low..high, as floats."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise SettingError(f"{name} is {shown(value)}; it must be a number from {low:g} to {high:g}{unit}")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond any float
            number = math.inf
        if not low <= number <= high:  # NaN is refused here too
            raise SettingError(f"{name} is {shown(value)}; it must be from {low:g} to {high:g}{unit}")
        return number

    return Kind(check, _read_real, "X", f"a number from {low:g} to {high:g}{unit}")


def text(longest: int) -> Kind:
    """Strings of at most `longest` characters."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise SettingError(f"{name} is {shown(value)}; it must be a text")
        if len(value) > longest:
            raise SettingError(f"{name} has {len(value):,} characters; shorten it to {longest:,} or fewer")
        return value

    return Kind(check, _as_it_is, "TEXT", f"a text of at most {longest:,} characters")


def one_of(names: Iterable[str]) -> Kind:
    """One of some names."""
    known = tuple(names)

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            near = nearest(str(value), known)
            raise SettingError(f"{name} is {shown(value)}; it must be one of {', '.join(known)}{near}")
        return value

    return Kind(check, _as_it_is, "NAME", f"one of {', '.join(known)}", known)


def flag() -> Kind:
    """True or False."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise SettingError(f"{name} is {shown(value)}; it must be True or False")
        return value

    return Kind(check, _read_flag, "", "true or false")


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{name} is {shown(text)}; it must be a whole number") from None


def _read_real(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{name} is {shown(text)}; it must be a number") from None


def _read_flag(name: str, text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise SettingError(f"{name} is {shown(text)}; it must be true or false")
    return _FLAGS[text.lower()]


def _as_it_is(name: str, text: str) -> str:
    return text
