"""`darkroom objects`: the words that the embedded model knows."""

from __future__ import annotations

import json
import textwrap

from . import options
from .command import App

app = App()


@app.command()
def objects(as_json: options.Json = False) -> None:
    """List what the embedded model draws: objects, sizes, counts, where one stands to another, backgrounds."""
    from ..toy.objects import BACKGROUNDS, COUNTS, OBJECTS, RELATIONS, SIZES

    words = {
        "objects": sorted(OBJECTS),
        "sizes": list(SIZES),
        "counts": list(COUNTS),
        "relations": list(RELATIONS),
        "backgrounds": list(BACKGROUNDS),
    }
    if as_json:
        print(json.dumps(words, indent=2))
        return
    for name, listed in words.items():
        print(f"{name}:")
        print(textwrap.fill(", ".join(listed), 78, initial_indent="  ", subsequent_indent="  "))
