"""What `darkroom train` can train: one entry a kind, and the command line knows nothing else of it.

No torch is imported here: an entry names its recipe and its runner, which are imported when they are wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import visible

if TYPE_CHECKING:
    from .config import LoopConfig
    from .recipes import EmbeddedRecipe

Report = Callable[[str, Path | None, int], None]  # told of a stage's name, its run folder (if it is a run), its steps
PRESETS = ("cpu", "gpu")  # every kind has a recipe for each: two cores; one large GPU
LEFT_OUT = "left-out.txt"  # in the output folder: the pictures that can't be learned from, and why
log = logging.getLogger("darkroom.training")  # warnings to whoever started a run, who may not come back for days


@dataclass(frozen=True)
class Subject:
    """What is trained, on what."""

    model: str | None = None  # as `darkroom.load` takes it, or what else the kind says; None: the embedded model
    data: str | None = None  # a folder of pictures, or shards; None: the built-in scenes


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be trained.

    Attributes:
        about: what it is, for the command's help.
        recipe: "module:function" of `darkroom.training`: preset -> recipe.
        run: "module:function": (recipe, subject, output, workers, report) -> what was made. It trains to the end, or
            goes on with what is in the folder `output`; raises TrainingError, CheckpointError, and Stopped when SIGINT
            or SIGTERM came (all is saved then, the same call goes on).
        model: what --model means; "": it starts from nothing and takes none.
        data: whether it takes --data; otherwise it is trained on the built-in scenes alone.
    """

    about: str
    recipe: str
    run: str
    model: str = "the model to start from"
    data: bool = True

    def recipe_of(self, preset: str = "cpu") -> LoopConfig | EmbeddedRecipe:
        """The recipe of one of `PRESETS`."""
        return cast("LoopConfig | EmbeddedRecipe", _found(self.recipe)(preset))

    def train(
        self, recipe: Any, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
    ) -> Path:
        """Call the runner."""
        return cast("Path", _found(self.run)(recipe, subject, output, workers, report))


def tell_left_out(run: Path, left_out: Sequence[tuple[Path, str]]) -> None:
    """Write down in a run's folder which pictures were left out, a line each, and warn of them."""
    lines = [f"{path}: {why}" for path, why in left_out]
    lines = [visible(line) for line in lines]
    (run / LEFT_OUT).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if lines:
        log.warning("%d pictures are left out; %s says which, and why", len(lines), run / LEFT_OUT)


def _found(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return cast("Callable[..., Any]", getattr(import_module(f"darkroom.training.{module}"), function))


KINDS: Mapping[str, Kind] = {
    "embedded": Kind(
        "the embedded model: autoencoder, text encoder and U-Net, on the built-in scenes",
        "recipes:embedded", "embedded:run_embedded", model="", data=False,
    ),
    "autoencoder": Kind(
        "an autoencoder from nothing, or from a finished one", "recipes:autoencoder", "autoencoder_run:run_autoencoder",
        model="the autoencoder to go on from: a run's, any VAE's file or folder, or a model's",
    ),
    "text-encoder": Kind(
        "a text encoder from nothing, with an image encoder: CLIP", "text_encoder_run:recipe",
        "text_encoder_run:run_text_encoder", model="",
    ),
    "unet": Kind(
        "a U-Net from nothing, with a text encoder beside it", "recipes:unet", "tuning:tune",
        model="whose autoencoder to use: an autoencoder's run, or a model",
    ),
    "finetune": Kind("a model's own networks, all of them or some", "tuning:finetune", "tuning:tune"),
    "dreambooth": Kind("a subject, from a few pictures of it", "tuning:dreambooth", "tuning:tune"),
    "dreambooth-lora": Kind("the same as a LoRA", "tuning:dreambooth_lora", "tuning:tune"),
    "lora": Kind("a LoRA: a small file of changes to a model", "tuning:lora", "tuning:tune"),
    "textual-inversion": Kind("a word's vectors", "tuning:textual_inversion", "tuning:tune"),
    "distill": Kind(
        "a student that draws in few steps (LCM): a model, or a LoRA", "distill:distill", "tuning:tune",
        model="the teacher",
    ),
    "controlnet": Kind("a ControlNet: steers a model by a hint", "tuning:controlnet", "tuning:tune"),
    "inpainting": Kind("an inpainting model, from one that draws from text", "tuning:inpainting", "tuning:tune"),
}  # fmt: skip
