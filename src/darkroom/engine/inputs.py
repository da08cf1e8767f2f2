"""What a request brings along that no recipe can hold: tensors and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from darkroom.adapters import Scaled
from darkroom.prompts.embeddings import LearnedWord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """One picture's inputs beside its Request; which of them are there decides the task (`prepare`).

    A finished recipe holds their fingerprints and names only, so a picture can be drawn again when the same inputs
    are given again.
    """

    latents: Tensor | None = None  # [C, h, w], unit-variance noise to start from instead of the seed's
    embeddings: tuple[LearnedWord, ...] = ()  # learned words that the prompts may use (textual inversion)
    image: Image.Image | None = None  # what is to be changed: any size, any mode (`images.open_picture`)
    mask: Image.Image | None = None  # the aspect of `image`, any mode (`images.open_mask`): white is repainted
    loras: tuple[Scaled, ...] = ()  # attached to U-Net and text encoders (`Pipeline.lora` reads them)
