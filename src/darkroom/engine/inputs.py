"""What a request brings along that no recipe can hold: tensors and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from .. import hints
from ..adapters import Scaled
from ..errors import RequestError
from ..models.controlnet import ControlNet
from ..prompts.embeddings import LearnedWord
from ..request import MAX_CONTROL, real


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet, and the picture by which it steers.

    Args:
        net: a diffusers folder, a file, "org/name" on the hub, "embedded:NAME" for one of the embedded model's, or a
            loaded `models.controlnet.ControlNet`.
        image: what the network is shown: PIL or a path, any mode; resized to what is drawn (Lanczos).
        scale: how strongly it acts, -10 to 10; 1: as it was trained.
        start, stop: the fractions of the steps between which it acts, diffusers' rule: in evaluation i of n if
            i / n >= start and (i + 1) / n <= stop.
        guess: it acts on what the prompt asks for alone, weakly at fine sizes: guess mode, to go without a prompt.
        hint: makes the hint from an ordinary picture: a name of `darkroom.hints`, such as "canny".
    """

    net: str | Path | ControlNet
    image: Image.Image | str | Path
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    guess: bool = False
    hint: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, str | Path | ControlNet) or not str(self.net) or "\0" in str(self.net)[:1000]:
            raise RequestError(f"a ControlNet is {str(self.net)[:60]!r}; give a path, or a loaded ControlNet")
        object.__setattr__(self, "scale", real("a control's scale", self.scale, -MAX_CONTROL, MAX_CONTROL))
        for name in ("start", "stop"):
            object.__setattr__(self, name, real(f"a control's {name}", getattr(self, name), 0.0, 1.0))
        if self.start >= self.stop:
            raise RequestError(f"a control starts at {self.start:g} and stops at {self.stop:g}; let it start before")
        if not isinstance(self.guess, bool):
            raise RequestError(f"a control's guess is {str(self.guess)[:60]!r}; it must be True or False")
        if self.hint is not None:
            object.__setattr__(self, "hint", hints.known(self.hint))


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
    depth: Tensor | None = None  # [H, W] float32, any size and range, larger is nearer: a depth map
    controls: tuple[Control, ...] = ()  # ControlNets and their hints
    loras: tuple[Scaled, ...] = ()  # attached to U-Net and text encoders (`Pipeline.lora` reads them)
