"""`darkroom samplers`: the samplers' names, ours and everybody else's."""

from __future__ import annotations

import json

from . import options
from .command import App

app = App()


@app.command()
def samplers(
    as_json: options.Json = False,
) -> None:
    """List the samplers: our name (ComfyUI's), A1111's name, and the diffusers class. Each is accepted by --sampler."""
    from ..samplers import entry, names

    rows = [(id, entry(id).label, entry(id).diffusers or "") for id in names()]
    if as_json:
        print(json.dumps([{"id": id, "label": label, "diffusers": kind or None} for id, label, kind in rows], indent=2))
        return
    for id, label, kind in rows:
        print(f"{id:20} {label:20} {kind}".rstrip())
