"""The model that comes with the package, and what comes with it, by name: "embedded:NAME".

    model/                   the model, "embedded:model" where it must be named
    controlnet-NAME/         a ControlNet for it
    lora/NAME.safetensors    a LoRA
    word/NAME.safetensors    a learned word (textual inversion)
    upscaler.safetensors     a network that makes its pictures four times as large

All but the learned word's file are ordinary folders and files that other tools open too.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

HOME = Path(__file__).parent
MODEL = HOME / "model"  # an ordinary diffusers folder
START = "embedded:"
EXAMPLES = ("a large fox on a yellow background", "a small owl", "a red apple on a blue background")  # prompts


def extras() -> dict[str, Path]:
    """Name -> place of the embedded model and what comes with it."""
    nets = {path.name.removeprefix("controlnet-"): path for path in sorted(HOME.glob("controlnet-*"))}
    files = {path.stem: path for kind in ("lora", "word", ".") for path in sorted((HOME / kind).glob("*.safetensors"))}
    return nets | files | {"model": HOME / "model"}


def place_of(source: str | Path) -> str | Path:
    """What "embedded:NAME" names; anything else as it is. Raises CheckpointError, with the names there are."""
    text = str(source)
    if not text.startswith(START):
        return source
    found = extras()
    name = text.removeprefix(START)
    if name not in found:
        raise CheckpointError(f"the embedded model has no {name[:60]!r}: it has {', '.join(found)}")
    return found[name]
