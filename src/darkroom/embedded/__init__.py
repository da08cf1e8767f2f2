"""The model that comes with the package, and the small things that were trained for it."""

from __future__ import annotations

from pathlib import Path

from darkroom.errors import CheckpointError

ROOM = Path(__file__).parent
MODEL = ROOM / "model"  # an ordinary diffusers folder
PREFIX = "embedded:"
EXTRAS = {
    "sepia": ROOM / "sepia.safetensors",  # a LoRA: everything in brown
    "sunnyowl": ROOM / "sunnyowl.safetensors",  # a learned word: a large owl on a yellow background
}


def placed(source: str | Path) -> Path:
    """Where a file is that a user names: "embedded:sepia" is one of ours, anything else a path.

    Raises CheckpointError for a name after "embedded:" that is none of ours.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return Path(source)
    name = text.removeprefix(PREFIX)
    if name not in EXTRAS:
        raise CheckpointError(f"there is no {text[:60]!r}; there are {', '.join(PREFIX + known for known in EXTRAS)}")
    return EXTRAS[name]
