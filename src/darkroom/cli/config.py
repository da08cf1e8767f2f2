"""Defaults of one's own: in `darkroom.toml`, and in the environment.

What is said on the command line goes before the environment (DARKROOM_MODEL, ...), that before `darkroom.toml` in the
folder where the command runs, that before the one in the user's own folder of configurations, and that before what is
built in. `darkroom info --config` shows what is taken, and from where. `darkroom.load()` reads none of it.
"""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from .. import settings
from ..errors import RequestError, nearest, shown
from ..settings import SettingError, check, setting

NAME = "darkroom.toml"
_MAX_FILE = 1 << 20  # bytes
_TEXT = settings.text(4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What may be written down. A path in a file is taken from that file's folder, and "~" is one's home."""

    model: str | None = setting(None, _TEXT, "The model: a folder, a file, or ORG/NAME.", path="if it is there")
    models: str | None = setting(None, _TEXT, "A folder of models, which the shell completes.", path="always")
    lora_dir: str | None = setting(None, _TEXT, "Where <lora:NAME:WEIGHT> is looked up.", path="always")
    embedding_dir: str | None = setting(None, _TEXT, "A folder of textual-inversion files.", path="always")
    output: str | None = setting(None, _TEXT, "Where pictures go: a folder.", path="always")
    device: str | None = setting(None, _TEXT, "auto, cpu, cuda, cuda:1, mps.")
    dtype: str | None = setting(None, _TEXT, "auto, float32, bfloat16, float16.")
    backend: str | None = setting(None, _TEXT, "auto, native, openvino.")
    threads: int | None = setting(None, settings.whole(1, 4096), "CPU threads.")
    preview: bool | None = setting(None, settings.flag(), "Show pictures in the terminal, as --preview does.")

    def __post_init__(self) -> None:
        check(self, RequestError)


@dataclass(frozen=True, slots=True)
class Default:
    """A value, and who says so: a file, or a variable of the environment."""

    value: Any
    source: str


def places() -> tuple[Path, ...]:
    """The files that are read, the one that goes before first."""
    return Path(NAME), Path(click.get_app_dir("darkroom")) / NAME


@functools.cache
def defaults() -> Mapping[str, Default]:
    """All that is written down, by key. Raises RequestError."""
    found: dict[str, Default] = {}
    for place in reversed(places()):
        found |= {key: Default(value, str(place)) for key, value in _read(place).items()}
    for key, declared in settings.settings(Defaults).items():
        variable = f"DARKROOM_{key.upper()}"
        if text := os.environ.get(variable):
            try:
                value = declared.kind.check(variable, declared.kind.read(variable, text))
            except SettingError as wrong:
                raise RequestError(str(wrong)) from None
            found[key] = Default(os.path.expanduser(value) if "path" in declared.extra else value, variable)
    return found


def _read(place: Path) -> dict[str, Any]:
    """What a file says; nothing, where there is none. Raises RequestError."""
    try:
        if place.stat().st_size > _MAX_FILE:
            raise RequestError(f"{str(place)!r} is larger than {_MAX_FILE >> 20} MB, which no configuration is")
        values = tomllib.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise RequestError(f"{str(place)!r} can't be read: {str(error.strerror).lower()}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{str(place)!r} is not UTF-8 text: save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestError(f"{str(place)!r} is not TOML: {str(error)[:200]}") from None
    known = [f.name for f in fields(Defaults)]
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise RequestError(
                f"{str(place)!r} has a key {shown(key)}{nearest(key, known)}; there are {', '.join(known)}"
            )
    try:
        Defaults(**values)
    except RequestError as error:
        raise RequestError(f"in {str(place)!r} {error}") from None
    return {key: _placed(place, key, value) for key, value in values.items()}


def _placed(place: Path, key: str, value: Any) -> Any:
    """A path of a file, as it is from here."""
    how = settings.settings(Defaults)[key].extra.get("path")
    if how is None:
        return value
    path = place.parent / os.path.expanduser(value)
    return str(path) if how == "always" or os.path.lexists(path) else value


def table() -> list[dict[str, Any]]:
    """Every key, its value and where it comes from, for `darkroom info --config`."""
    found = defaults()
    return [
        {
            "key": key,
            "value": found[key].value if key in found else None,
            "source": found[key].source if key in found else None,
            "help": declared.help,
        }
        for key, declared in settings.settings(Defaults).items()
    ]
