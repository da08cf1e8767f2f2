"""What `darkroom train` can train: one entry a kind, and the command line knows nothing else of it.

No torch is imported here: an entry names its recipe and its runner, which are imported when they are wanted. All else
of a kind is in its own file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

Report = Callable[[str, Path | None, int], None]  # told of a stage's name, its run folder (if it is a run), its steps
PRESETS = ("cpu", "gpu")  # every kind has a recipe for each: two cores; one large GPU
log = logging.getLogger("darkroom.training")  # warnings to whoever started a run, who may not come back for days


def silent(text: str, run: Path | None, steps: int) -> None:
    """A `Report` that tells nobody."""


@dataclass(frozen=True)
class Source:
    """What a training starts from."""

    model: str | None = None  # as `darkroom.load` takes it, or what else the kind says; None: the embedded model
    data: str | None = None  # a folder of pictures, or shards; None: the built-in scenes


Subject = Source  # its documented name until now; gone in the next version


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be trained.

    Attributes:
        about: what it is, for the command's help.
        recipe: "module:function" of `darkroom.training`: preset -> recipe.
        run: "module:function": (recipe, source, output, workers, report) -> what was made, as `run.run`.
        model: what --model means; "": it starts from nothing and takes none.
        data: whether it takes --data; otherwise it is trained on the built-in scenes alone.
    """

    about: str
    recipe: str
    run: str = "run:run"
    model: str = "the model to start from"
    data: bool = True

    def recipe_of(self, preset: str = "cpu") -> Any:
        """The recipe of one of `PRESETS`."""
        return _found(self.recipe)(preset)

    def train(self, recipe: Any, source: Source, output: Path, workers: int = 1, report: Report = silent) -> Path:
        """Train to the end, or go on with what is in the folder `output`; returns what was made.

        Raises TrainingError, CheckpointError, and Stopped when SIGINT or SIGTERM came (all is saved then, the same call
        goes on).
        """
        return cast("Path", _found(self.run)(recipe, source, output, workers, report))


def _found(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return cast("Callable[..., Any]", getattr(import_module(f"darkroom.training.{module}"), function))


KINDS: Mapping[str, Kind] = {
    "embedded": Kind(
        "the embedded model: autoencoder, text encoder and U-Net, on the built-in scenes",
        "embedded:embedded", "embedded:train_embedded", model="", data=False,
    ),
    "autoencoder": Kind(
        "an autoencoder from nothing, or from a finished one", "autoencoder:autoencoder",
        model="the autoencoder to go on from: a run's, any VAE's file or folder, or a model's",
    ),
    "text-encoder": Kind(
        "a text encoder from nothing, with an image encoder: CLIP", "text_encoder:text_encoder", model=""
    ),
    "unet": Kind(
        "a U-Net from nothing, with a text encoder beside it", "unet:unet",
        model="whose autoencoder to use: an autoencoder's run, or a model",
    ),
    "finetune": Kind("a model's own networks, all of them or some", "finetune:finetune"),
    "dreambooth": Kind("a subject, from a few pictures of it", "finetune:dreambooth"),
    "dreambooth-lora": Kind("the same as a LoRA", "lora:dreambooth_lora"),
    "lora": Kind("a LoRA: a small file of changes to a model", "lora:lora"),
    "textual-inversion": Kind("a word's vectors", "textual_inversion:textual_inversion"),
    "distill": Kind(
        "a student that draws in few steps (LCM): a model, or a LoRA", "distill:distill", model="the teacher"
    ),
    "controlnet": Kind("a ControlNet: steers a model by a hint", "controlnet:controlnet"),
    "upscaler": Kind(
        "a network that enlarges pictures, from nothing or from a finished one", "upscaler:upscaler",
        model="the finished network to go on from",
    ),
    "inpainting": Kind("an inpainting model, from one that draws from text", "inpainting:inpainting"),
}  # fmt: skip
