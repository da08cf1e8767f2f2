"""The arguments of `Pipeline`'s calls, as users give them, brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from .adapters import Lora
from .engine.job import Control
from .errors import RequestError
from .images import Picture


def texts(prompt: str | Sequence[str], negative: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts as lists of one length; what is in them a Request checks."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise RequestError("the list of prompts is empty; give one prompt or more")
    negatives = list(negative) if isinstance(negative, (list, tuple)) else [negative] * len(prompts)
    if len(negatives) != len(prompts):
        raise RequestError(
            f"there are {len(negatives)} negative prompts for {len(prompts)} prompts; give one, or as many"
        )
    return prompts, negatives  # type: ignore[return-value]


def pictures(
    given: Picture | Sequence[Picture] | None, name: str, opened: Callable[..., Image.Image], count: int
) -> list[Image.Image | None]:
    """Each prompt's picture, opened, or None. Raises RequestError and ImageError."""
    if given is None:
        return [None] * count
    if not isinstance(given, (list, tuple)):
        return [opened(given, name)] * count
    if len(given) != count:
        raise RequestError(f"there are {len(given)} pictures as {name} for {count} prompts; give one, or as many")
    return [opened(picture, name) for picture in given]


def steering(given: object) -> tuple[Control, ...]:
    given = [given] if isinstance(given, Control) else given
    if not isinstance(given, list | tuple) or not all(isinstance(control, Control) for control in given):
        raise RequestError(f"controls is {str(given)[:60]!r}; it must be a list of darkroom.Control(net, image)")
    return tuple(given)


def listed(loras: object) -> Sequence[Lora | str | Path]:
    """The LoRAs of a call; one alone is no list."""
    if isinstance(loras, Lora | str | Path):
        return [loras]
    if not isinstance(loras, list | tuple) or not all(isinstance(lora, Lora | str | Path) for lora in loras):
        raise RequestError(f"loras is {str(loras)[:60]!r}; it must be a list of darkroom.Lora(path, scale) or of paths")
    return loras


def starting_noises(latents: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Each picture's given noise [C, h, w], or None."""
    if latents is None:
        return [None] * count
    if not isinstance(latents, Tensor) or latents.ndim != 4:
        raise RequestError("latents must be a tensor [N, C, h, w], one starting noise for each picture")
    if len(latents) != count:
        raise RequestError(f"latents hold {len(latents)} starting noises for {count} pictures; give as many")
    return list(latents)
