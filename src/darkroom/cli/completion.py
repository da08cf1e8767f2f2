"""`darkroom completion`: let a shell complete commands, options and their values; and what it may offer.

What is offered is quick: no torch, no model opened, and the hub isn't asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from ..errors import Error
from ..request import choice
from .command import App, Argument

app = App()
SHELLS = ("bash", "zsh", "fish")
_ENDINGS = (".safetensors", ".ckpt", ".gguf")
_MOST = 200  # of what a folder holds


@app.command()
def completion(
    shell: Annotated[str, Argument("SHELL", f"Which: {', '.join(SHELLS)}.", lambda begun: SHELLS)],
) -> None:
    """Print what a shell needs to complete darkroom's commands, options, samplers, schedules and models.

    \b
    bash:  echo 'eval "$(darkroom completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(darkroom completion zsh)"' >> ~/.zshrc
    fish:  darkroom completion fish > ~/.config/fish/completions/darkroom.fish
    """
    choice("SHELL", shell, SHELLS)
    from click.shell_completion import get_completion_class

    from . import ASKING, command_line

    found = get_completion_class(shell)
    assert found is not None
    print(found(command_line(), {}, "darkroom", ASKING).source())


def samplers(begun: str) -> list[str]:
    """The samplers' ids."""
    from ..samplers import names

    return list(names())


def schedules(begun: str) -> list[str]:
    """The schedules' ids."""
    from ..diffusion import AUTOMATIC, SPACINGS

    return [*SPACINGS, AUTOMATIC]


def models(begun: str) -> list[str]:
    """Models of the folder that darkroom.toml names, those that the hub's cache holds, and what is in reach by path."""
    folder = _configured("models")
    found = [str(place) for place in _within(Path(folder))] if folder else []
    return [*found, *_cached(), *_paths(begun)]


def loras(begun: str) -> list[str]:
    """LoRA files: of the folder that darkroom.toml names, the embedded model's own, and by path."""
    from ..embedded import HOME

    folder = _configured("lora_dir")
    found = [str(place) for place in _within(Path(folder))] if folder else []
    own = [f"embedded:{place.stem}" for place in _within(HOME / "lora")]
    return [*found, *own, *_paths(begun)]


def controls(begun: str) -> list[str]:
    """After "NET=": the hints, with "@" for a picture."""
    from ..hints import HINTS

    net, equals, rest = begun.rpartition("=")
    if equals and "@" not in rest:
        return [f"{net}={name}@" for name in HINTS]
    return ["embedded:edges="] if not equals else []


def trainings(begun: str) -> list[str]:
    """What can be trained."""
    from ..training.kinds import KINDS

    return list(KINDS)


def hints(begun: str) -> list[str]:
    """The hints for ControlNets."""
    from ..hints import HINTS

    return list(HINTS)


def _configured(key: str) -> str | None:
    from .config import defaults

    try:
        found = defaults().get(key)
    except Error:  # a shell is no place to tell of it
        return None
    return None if found is None else str(found.value)


def _within(folder: Path) -> Iterator[Path]:
    """The models of a folder: files, and folders in diffusers' layout."""
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name)[:_MOST]:
                if entry.name.endswith(_ENDINGS) or os.path.exists(os.path.join(entry.path, "model_index.json")):
                    yield Path(entry.path)
    except OSError:
        return


def _paths(begun: str) -> list[str]:
    """What the path that was begun may go on to: models, and the folders on the way."""
    folder, _, _ = begun.rpartition("/")
    try:
        with os.scandir(folder or ("/" if begun.startswith("/") else ".")) as entries:
            names = sorted((each.name, each.is_dir()) for each in entries)[: 10 * _MOST]
    except OSError:
        return []
    front = f"{folder}/" if folder or begun.startswith("/") else ""
    return [
        f"{front}{name}" + ("/" if folder_ else "")
        for name, folder_ in names
        if not name.startswith(".") and (folder_ or name.endswith(_ENDINGS))
    ]


def _cached() -> Sequence[str]:
    """Models of the hub that have been fetched."""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    try:
        names = sorted(os.listdir(home))[:_MOST]
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names if name.startswith("models--")]
