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

import functools
import math
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from .errors import nearest, shown

T = TypeVar("T")


class SettingError(Exception):
    """One sentence: a setting's name, the value that it can't have, and what it must be.

    `clause` says it without the name, where a text can't be read: "'x' is not a whole number".
    """

    def __init__(self, sentence: str, clause: str = "") -> None:
        super().__init__(sentence)
        self.clause = clause or sentence


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting's values may be.

    Attributes:
        check: (name, value) -> the value as it is kept: plain ints, floats, strings, tuples. Raises SettingError.
        read: (name, text) -> a value to be checked, from a text. Raises SettingError.
        metavar: what stands for the value in a command's help, such as "N".
        wanted: the values in words, such as "a whole number from 1 to 1000".
        choices: all values, where they have names.
        of: int, float, bool or str; of a tuple, its parts' type; a dataclass whose fields are settings themselves.
        count: 1: a value is one of `of`; 2, 4: a tuple of so many of them; 0: of any number.
    """

    check: Callable[[str, Any], Any]
    read: Callable[[str, str], Any]
    metavar: str = "VALUE"
    wanted: str = ""
    choices: tuple[str, ...] = ()
    of: type = str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared of a field beside its name, type and default.

    Attributes:
        kind: its values.
        help: a line for people: what it does, its unit and range, what is taken where nothing is said.
        option: the command line's name, such as "--guidance"; "": the field's, with dashes; None: no option.
        key: A1111's name in the line of parameters ("infotext"), such as "CFG scale"; "": the field's, in words; None:
            none.
        axis: whether a sweep may vary it.
        metavar: what stands for the value in a command's help, if not the kind's.
        called: what sentences call it, if not its name: "hires scale".
        group: the argument of `Pipeline.generate` that holds it, and its name there where that is another:
            "guidance.rescale"; None: it is an argument itself.
        joint: what it is a part of where people say it: a width is said in a size.
        extra: what else a room declares of its own fields, by name.
    """

    kind: Kind
    help: str = ""
    option: str | None = None
    key: str | None = None
    axis: bool = True
    metavar: str | None = None
    called: str | None = None
    group: str | None = None
    joint: Joint | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def of_group(self, name: str) -> bool:
        """Whether the argument `name` of `Pipeline.generate` holds it."""
        return self.group is not None and self.group.partition(".")[0] == name


@dataclass(frozen=True, slots=True)
class Joint:
    """Several fields that people say at once: "512x768" is a width and a height. `told` is declared for all of them;
    its kind has tuples of their values."""

    name: str
    fields: tuple[str, ...]
    told: Setting


def setting(
    default: Any = MISSING,
    kind: Kind | None = None,
    help: str = "",
    *,
    option: str | None = None,
    key: str | None = None,
    axis: bool = True,
    metavar: str | None = None,
    called: str | None = None,
    group: str | None = None,
    joint: Joint | None = None,
    **extra: Any,
) -> Any:
    """A dataclass field that is a setting; the arguments are `Setting`'s. Without a default the field must be given."""
    assert kind is not None
    declared = Setting(kind, help, option, key, axis, metavar, called, group, joint, extra)
    return field(default=default, metadata={"setting": declared})


def settings(owner: Any) -> dict[str, Setting]:
    """The settings of a dataclass or of one of its instances, by name, in the order of declaration."""
    return _settings(owner if isinstance(owner, type) else type(owner))


@functools.cache
def _settings(owner: type) -> dict[str, Setting]:
    return {f.name: _named(f.name, f.metadata["setting"]) for f in fields(owner) if "setting" in f.metadata}


def _named(name: str, declared: Setting) -> Setting:
    option = "--" + name.replace("_", "-") if declared.option == "" else declared.option
    key = name.replace("_", " ").capitalize() if declared.key == "" else declared.key
    group = f"{declared.group}.{name}" if declared.group and "." not in declared.group else declared.group
    return replace(declared, option=option, key=key, group=group)


def joined(owner: Any) -> Iterator[tuple[str, tuple[str, ...], Setting]]:
    """(name, fields, setting) as people say them: what is joint comes once, in the first of its fields' place."""
    for name, declared in settings(owner).items():
        if declared.joint is None:
            yield name, (name,), declared
        elif declared.joint.fields[0] == name:
            yield declared.joint.name, declared.joint.fields, declared.joint.told


def default(owner: Any, name: str) -> Any:
    """A field's default; `dataclasses.MISSING` if it must be given."""
    return next(_default(f) for f in fields(owner) if f.name == name)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default is not MISSING or f.default_factory is MISSING else f.default_factory()


def check(instance: Any, error: Callable[[str], Exception]) -> None:
    """Check all settings of a frozen dataclass and keep their plain values; to be called in `__post_init__`.

    A value that is the default itself passes unseen. Raises `error` with the sentence.
    """
    values, checks = _checks(type(instance))  # type: ignore[arg-type]  # a class can be a key
    for value, (usual, name, called, kind_check) in zip(values(instance), checks, strict=True):
        if value is usual:
            continue
        try:
            plain = kind_check(called, value)
        except SettingError as wrong:
            raise error(str(wrong)) from None
        if plain is not value:
            object.__setattr__(instance, name, plain)


@functools.cache
def _checks(owner: Any) -> tuple[Callable[[Any], tuple[Any, ...]], tuple[tuple[Any, str, str, Any], ...]]:
    """All settings' values of an instance at once, and of each (default, name, name in sentences, check)."""
    usual = {f.name: f.default for f in fields(owner)}
    found = tuple((usual[name], name, s.called or name, s.kind.check) for name, s in settings(owner).items())
    names = [name for _, name, _, _ in found]
    if len(names) > 1:
        return operator.attrgetter(*names), found
    return lambda instance: tuple(getattr(instance, name) for name in names), found


def changed(instance: Any) -> dict[str, Any]:
    """The values that are not the field's default, by name."""
    return {f.name: value for f in fields(instance) if (value := getattr(instance, f.name)) != _default(f)}


class Brief:
    """A dataclass (with repr=False) that shows what was given to it: what has its default goes without saying."""

    __slots__ = ()

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in changed(self).items())
        return f"{type(self).__name__}({told})"


def documented(owner: Any) -> str:
    """A dataclass's settings as its docstring lists them: of each its values and the line that says what it is."""
    names = {told.option: name for name, _, told in joined(owner) if told.option}
    lines = []
    for name, declared in settings(owner).items():
        usual = default(owner, name)
        told = declared.help or (declared.joint.told.help.removeprefix("In pixels. ") if declared.joint else "")
        told = re.sub(r"--[a-z-]+", lambda option: names.get(option[0], option[0][2:].replace("-", "_")), told)
        told = re.sub(r"^[0-9.]+ to [0-9.]+[:,] ", "", told)  # the values say that
        values = declared.kind.wanted or "what a finished recipe holds"
        line = f"{name}: {values}. {told[:1].upper()}{told[1:]}".rstrip()
        unsaid = usual in (MISSING, None, "", ()) or "[default" in line
        lines.append(line if unsaid else f"{line} [default: {usual!r}]")
    return "Attributes:\n" + "".join(f"    {line}\n" for line in lines)


@functools.cache
def _fields(owner: Any) -> tuple[Field[Any], ...]:
    return fields(owner)


def to_plain(instance: Any) -> dict[str, Any]:
    """The values as a JSON object: tuples as lists, infinity as null. Where nothing is said (None, ()), no key is."""
    found = {}
    for f in _fields(type(instance)):  # type: ignore[arg-type]  # a class can be a key
        value = getattr(instance, f.name)
        if (value is None or value == ()) and value == f.default:
            continue
        found[f.name] = value if type(value) in (str, int, bool) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    return None if isinstance(value, float) and math.isinf(value) else value


def from_plain(owner: type[T], values: Any, what: str, error: Callable[[str], Exception]) -> T:
    """The inverse of `to_plain`. Raises `error` for what is no object, and for a key that is no field, with the
    nearest; the sentences begin with `what`, such as "a request". The key `schema` is passed over.
    """
    if not isinstance(values, Mapping):
        raise error(f"{what} is {shown(values)}; it must be an object of names and values")
    known = [f.name for f in fields(owner)]  # type: ignore[arg-type]  # a dataclass
    for key in values:
        if key not in known and key != "schema":
            raise error(f"{what} has no field {shown(key)}{nearest(str(key), known)}")
    for name, declared in settings(owner).items():
        if name not in values and default(owner, name) is MISSING:
            raise error(f"{what} needs a {name}, and this one has none; give it {declared.kind.wanted}")
    return owner(**{key: value for key, value in values.items() if key != "schema"})


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

    return Kind(check, read_whole, "N", f"a whole number from {low} to {high}{unit}", of=int)


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

    return Kind(check, read_real, "X", f"a number from {low:g} to {high:g}{unit}", of=float)


def text(longest: int) -> Kind:
    """Strings of at most `longest` characters."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise SettingError(f"{name} is {shown(value)}; it must be a text")
        if len(value) > longest:
            raise SettingError(f"{name} has {len(value):,} characters; shorten it to {longest:,} or fewer")
        return value

    return Kind(check, read_text, "TEXT", f"a text of at most {longest:,} characters")


def one_of(names: Iterable[str]) -> Kind:
    """One of some names."""
    known = tuple(names)

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            near = nearest(str(value), known)
            raise SettingError(f"{name} is {shown(value)}; it must be one of {', '.join(known)}{near}")
        return value

    return Kind(check, read_text, "NAME", f"one of {', '.join(known)}", known)


def flag() -> Kind:
    """True or False."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise SettingError(f"{name} is {shown(value)}; it must be True or False")
        return value

    return Kind(check, read_flag, "", "true or false", of=bool)


def or_none(kind: Kind) -> Kind:
    """Another kind's values, or None, in a field that must be given all the same."""
    return replace(kind, check=lambda name, value: None if value is None else kind.check(name, value))


def pixels(low: int, what: str, read: Callable[[str, str], Any], metavar: str) -> Kind:
    """Two numbers of pixels: (width, height), or of a crop (left, top)."""

    def check(name: str, value: Any) -> tuple[int, int]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise SettingError(f"{name} is {shown(value)}; it must be two numbers of pixels, {what}")
        side = whole(low, 2**16, f"; {name} is {what}")
        return side.check(name, value[0]), side.check(name, value[1])

    return Kind(check, read, metavar, f"two numbers of pixels, {what}", of=int, count=2)


# --- values from texts

_SIZE = re.compile(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", re.ASCII)
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_whole(name: str, text: str) -> int:
    """A whole number; Python itself refuses one of more than 4,300 digits."""
    try:
        return int(text)
    except ValueError:
        raise _unread(name, text, "a whole number") from None


def read_real(name: str, text: str) -> float:
    """A number; what is not finite is left to the check."""
    try:
        return float(text)
    except ValueError:
        raise _unread(name, text, "a number") from None


def read_size(name: str, text: str) -> tuple[int, int]:
    """Width and height from "512x768"."""
    if not (match := _SIZE.fullmatch(text)):
        give = "give width and height in pixels, such as 512x512"
        raise SettingError(f"{name} is {text[:40]!r}; {give}", f"{text[:40]!r} is no size; {give}")
    return int(match[1]), int(match[2])


def read_two(what: str, example: str) -> Callable[[str, str], tuple[float, float]]:
    """A reader of two numbers with "," between them, or ":" where commas are taken; whole ones become ints."""

    def read(name: str, text: str) -> tuple[float, float]:
        parts = text.split("," if "," in text else ":")
        try:
            first, second = (int(part) if part.strip().isdecimal() else float(part) for part in parts)
        except ValueError:
            raise SettingError(
                f"{name} is {text[:40]!r}; give two {what}, such as {example}",
                f"{text[:40]!r} is not two numbers; write them as {example.replace(',', ':')}",
            ) from None
        return first, second

    return read


def read_flag(name: str, text: str) -> bool:
    """True or False, also as yes, on, 1 and no, off, 0."""
    if text.lower() not in _FLAGS:
        raise SettingError(f"{name} is {shown(text)}; it must be true or false", f"{text[:40]!r} is neither yes nor no")
    return _FLAGS[text.lower()]


def read_text(name: str, text: str) -> str:
    """The text itself."""
    return text


def read_nothing(name: str, text: str) -> Any:
    """Of values that nobody writes as words."""
    raise SettingError(
        f"{name} is {shown(text)}; such a value can't be written as words",
        "such values can't be written as words; give them from Python",
    )


def _unread(name: str, text: str, wanted: str) -> SettingError:
    return SettingError(f"{name} is {shown(text)}; it must be {wanted}", f"{text[:40]!r} is not {wanted}")
