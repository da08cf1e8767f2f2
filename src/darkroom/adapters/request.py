"""What a user asks for: a LoRA's file and strength. Nothing is read here, and torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..request import MAX_LORA_SCALE, real


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, and how strongly it acts: 1 as it was trained, 0 not at all, below 0 the opposite.

    Args:
        path: kohya's, diffusers', PEFT's or LyCORIS' file, or "embedded:NAME" for one of the embedded model's.
        scale: -100 to 100, on all networks.
        text_scale: on the text encoders, where that differs.
        allow_unmatched: leave out what fits no layer of the model, instead of refusing the file.
    """

    path: str | Path
    scale: float = 1.0
    text_scale: float | None = None
    allow_unmatched: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path) or not str(self.path) or "\0" in str(self.path):
            raise RequestError(f"a LoRA's path is {str(self.path)[:60]!r}; give the name of a file")
        limit = MAX_LORA_SCALE
        object.__setattr__(self, "scale", real("a LoRA's scale", self.scale, -limit, limit))
        if self.text_scale is not None:
            object.__setattr__(self, "text_scale", real("a LoRA's text_scale", self.text_scale, -limit, limit))
