"""`darkroom keys`: who may use a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .command import App, Argument, Option

app = App("Make, list and remove a server's API keys.")
_File = Annotated[Path, Option("--file", help="The file that `darkroom serve --api-key-file` reads.")]
_FILE = Path("darkroom-keys")


@app.command()
def add(
    name: Annotated[str, Argument("NAME", "Whose key it is: letters, digits, dots, dashes, underscores.")],
    file: _File = _FILE,
    requests_per_minute: Annotated[float | None, Option(min=0.01, help="How often it may ask.")] = None,
    cost: Annotated[float | None, Option(min=0.001, help="Of its unfinished jobs: rows x megapixels x steps.")] = None,
    queue: Annotated[int | None, Option(min=1, help="Its unfinished jobs.")] = None,
    admin: Annotated[bool, Option("--admin", help="It sees everybody's jobs.")] = False,
) -> None:
    """Make a key and print it, once: the file keeps its hash alone. A running server takes it up by itself."""
    from ..serve.keys import add_key

    limits = {"requests-per-minute": requests_per_minute, "cost": cost, "queue": queue}
    print(add_key(file, name, {k: v for k, v in limits.items() if v is not None}, admin))


@app.command("list")
def list_keys(file: _File = _FILE) -> None:
    """List names and limits."""
    from ..serve.keys import read_keys

    for owner in read_keys(file).values():
        limits = [
            f"{k}={v:g}" for k in ("requests_per_minute", "cost", "queue") if (v := getattr(owner, k)) is not None
        ]
        print(" ".join([owner.name, *limits, *(["admin"] if owner.admin else [])]))


@app.command()
def remove(name: Annotated[str, Argument("NAME", "Whose key it is.")], file: _File = _FILE) -> None:
    """Take a key out; a running server refuses it from then on. Its jobs and pictures stay."""
    from ..serve.keys import remove_key

    remove_key(file, name)
