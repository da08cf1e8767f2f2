"""The documentation's reference, from the code itself: nothing of it is written twice.

The API's pages name objects, whose signatures, types and docstrings mkdocstrings reads from the sources; commands are
what their `--help` says; settings are what their fields declare. `make site` puts these pages beside those of docs/.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The API's pages: title, what it is about, public names.
API = {
    "api-drawing": (
        "Drawing",
        "Load a model and draw. Every argument of `generate` but the prompt may be left out.",
        ["load", "Pipeline", "Result"],
    ),
    "api-arguments": (
        "Arguments in groups",
        "What few people set, in the groups that `Pipeline.generate` takes.",
        ["Guidance", "Hires", "Inpaint", "Noise", "SizeConditioning", "Speed", "Tiling"],
    ),
    "api-files": (
        "LoRA, embeddings, controls, hints, recipes",
        "What is drawn with beside a model, and what a picture tells of itself.",
        ["Lora", "Embedding", "Control", "hints", "Recipe", "read_recipe", "samplers"],
    ),
    "api-engine": (
        "The engine",
        "Many pictures at once, driven by a program of your own.",
        ["Engine", "Request", "Inputs", "Progress", "Finished", "Failed"],
    ),
    "api-training": (
        "Training and measuring",
        "What `darkroom train` and `darkroom evaluate` do, as calls.",
        [],  # every public name that is on no other page
    ),
    "api-errors": (
        "Errors",
        "All that a user can cause ends in one sentence: a subclass of `darkroom.Error`.",
        ["Error", "RequestError", "CheckpointError", "ImageError", "TrainingError"],
    ),
}


def pages() -> dict[str, str]:
    """The pages of the reference, Markdown by name."""
    made = {f"{name}.md": api(title, about, names) for name, title, about, names in api_pages()}
    return made | {"commands.md": commands(), "settings.md": drawing_settings(), "training-settings.md": recipes()}


# --- the API


def api_pages() -> Iterator[tuple[str, str, str, list[str]]]:
    """(name, title, what it is about, public names) of the API's pages: every public name is on one."""
    import darkroom

    told = {name for _, _, names in API.values() for name in names}
    rest = sorted(set(darkroom.__all__) - told - {"__version__"}, key=lambda name: (name[0].isupper(), name))
    for name, (title, about, names) in API.items():
        yield name, title, about, names or rest


def api(title: str, about: str, names: list[str]) -> str:
    """A page that names objects; mkdocstrings fills it."""
    told = [f"# {title}", about, *(f"::: darkroom.{name}" for name in names)]
    return "\n\n".join(told) + "\n"


# --- commands


@dataclass(frozen=True, slots=True)
class Help:
    """What a command's `--help` says: usage, text, and sections of (what is given, what it means)."""

    usage: str
    text: str
    sections: dict[str, list[tuple[str, str]]]


def help_of(*command: str) -> Help:
    """Ask the command line itself."""
    from darkroom.cli import run

    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            run([*command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return parsed(told.getvalue())


def parsed(told: str) -> Help:
    """The parts of a help's text."""
    head, *rest = re.split(r"^(\w[\w ]*):\n", told, flags=re.M)
    usage, _, text = head.partition("\n\n")
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        rows = sections.setdefault(name, [])
        for line in body.splitlines():
            if re.match(r"  \S", line):
                left, _, right = line.strip().partition("  ")
                rows.append((left, right.strip()))
            elif line.strip() and rows:
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
    usage = re.sub(r"\s+", " ", usage.removeprefix("Usage: "))
    return Help(usage, re.sub(r"^  ", "", text, flags=re.M).strip(), sections)


def commands() -> str:
    """Every command, its arguments and options."""
    told = ["# Commands", "What `darkroom COMMAND --help` says, of every command."]
    for name, _ in help_of().sections["Commands"]:
        told += [f"## darkroom {name}", *_command(name)]
    return "\n\n".join(told) + "\n"


def _command(*command: str) -> Iterator[str]:
    said = help_of(*command)
    for part in said.text.split("\n\n"):
        yield f"```sh\n{part}\n```" if part.startswith("darkroom ") else cell(" ".join(part.split()))
    yield f"```text\n{said.usage}\n```"
    for heading, rows in said.sections.items():
        if heading == "Commands":
            for name, _ in rows:
                yield f"### darkroom {' '.join(command)} {name}"
                yield from _command(*command, name)
            continue
        rows = [row for row in rows if "--help" not in row[0]]
        if rows:
            yield table((heading, "meaning"), [(f"`{left}`", cell(right)) for left, right in rows])


# --- settings


def drawing_settings() -> str:
    """What a request says, by the fields of `darkroom.Request`."""
    from darkroom.request import Request
    from darkroom.settings import default, joined

    groups: dict[str, list[tuple[str, ...]]] = {}
    for name, names, declared in joined(Request):
        argument = declared.group or name
        option = f"<br>`{declared.option}`" if declared.option else ""
        key = cell(declared.key) if declared.key else ""
        groups.setdefault(argument.partition(".")[0] if "." in argument else "", []).append(
            (f"`{argument}`{option}", value(default(Request, names[0])), _what(declared), key)
        )
    told = [
        "# Settings of a picture",
        "Every setting: its name in Python and the option of `darkroom generate`, what it does and may be, its "
        "default, and its key in A1111's line of parameters. Without a default, the model or the sampler decides.",
    ]
    for group, rows in groups.items():
        if group:
            told += [
                f"## {group}",
                f"Told as `{group}=`, an argument of its own (see [the classes](api-arguments.md)).",
            ]
        else:
            told += ["## Everyday"]
        told.append(table(("setting, option", "default", "what it does", "key"), rows))
    return "\n\n".join(told) + "\n"


def _what(declared: Any) -> str:
    """What a setting does, and what it may be."""
    wanted = f"*{cell(declared.kind.wanted)}*" if declared.kind.wanted else ""
    return "<br>".join(filter(None, (cell(declared.help), wanted)))


def recipes() -> str:
    """What each kind of training can be told: what all share, then what is a kind's own or differs."""
    from darkroom.settings import settings
    from darkroom.training.kinds import KINDS
    from darkroom.training.recipe import LoopConfig

    kinds = {name: list(flat(kind.recipe_of())) for name, kind in KINDS.items()}
    shared = settings(LoopConfig)
    values: dict[str, list[str]] = {name: [] for name in shared}
    for path, usual, _ in (row for rows in kinds.values() for row in rows):
        if (leaf := path.rpartition(".")[2]) in shared:
            values[leaf].append(value(usual))
    most = {name: max(found, key=found.count, default="") for name, found in values.items()}
    header = ("setting", "default", "what it does")
    told = [
        "# Settings of a training",
        "What `darkroom train KIND --set NAME=VALUE` takes, with the defaults of the preset `cpu`. "
        "`darkroom train KIND -o runs/x --show-recipe` prints a whole recipe as JSON.",
        "## Every training",
        table(header, [_row(name, most[name], declared) for name, declared in shared.items()]),
    ]
    for name, kind in KINDS.items():
        told += [f"## {name}", cell(kind.about[:1].upper() + kind.about[1:] + ".")]
        told.append(table(header, [
            _row(path, value(usual), declared) for path, usual, declared in kinds[name]
            if (leaf := path.rpartition(".")[2]) not in shared or value(usual) != most[leaf]
        ]))  # fmt: skip
    return "\n\n".join(told) + "\n"


def _row(name: str, usual: str, declared: Any) -> tuple[str, ...]:
    return f"`{name}`", usual, _what(declared)


def flat(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, setting) of all that a recipe declares, parts of it included."""
    from darkroom.settings import settings

    declared = settings(recipe)
    for each in fields(recipe):
        held = getattr(recipe, each.name)
        if is_dataclass(held):
            yield from flat(held, f"{prefix}{each.name}.")
        elif each.name in declared:
            yield f"{prefix}{each.name}", held, declared[each.name]


# --- Markdown


def cell(text: str) -> str:
    """A text as a table takes it: nothing in it is markup, but `code`."""
    parts = text.replace("\n", " ").split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\\\[\]<>|#])", r"\\\1", parts[i])
    for i in range(1, len(parts), 2):
        parts[i] = parts[i].replace("|", "\\|")
    return "`".join(parts)


def value(usual: Any) -> str:
    """A default."""
    from dataclasses import MISSING

    if usual is MISSING:
        return "*must be given*"
    if usual is None or usual == ():
        return ""
    shown = f"{usual:g}" if isinstance(usual, float) else str(usual) if not isinstance(usual, str) else repr(usual)
    return f"`{shown}`".replace("|", "\\|")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
