"""An extension of griffe, which reads docstrings for the site: "a, b: text" documents a, and b as well."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes):$")
_NAMES = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+):(?P<text>.*)$")


class OneNameALine(griffe.Extension):
    """Gives every name of a docstring's lists a line of its own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that is read."""
        if obj.docstring is not None:
            obj.docstring.value = split(obj.docstring.value)


def split(text: str) -> str:
    """A docstring in whose lists every name has a line of its own, with the text that they share."""
    lines: list[str] = []
    inside, names, indent, shared = False, [""], "", [""]

    def flush() -> None:
        for name in names[1:]:
            lines.extend([f"{indent}{name}:{shared[0]}", *shared[1:]])

    for line in text.splitlines():
        if names[1:] and line.startswith(indent + " "):
            shared.append(line)
            continue
        flush()
        names = [""]
        inside = bool(_SECTION.match(line)) or (inside and (not line or line.startswith(" ")))
        if inside and (several := _NAMES.match(line)):
            names, indent, shared = ["", *several["names"].split(", ")], several["indent"], [several["text"]]
        else:
            lines.append(line)
    flush()
    return "\n".join(lines)
