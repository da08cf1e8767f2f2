"""What `darkroom train` can train: one entry a kind, and the command line knows nothing else of it.

No torch is imported here: an entry names its recipe and its runner, which are imported when they are wanted. All else
of a kind is in its own file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ..errors import RequestError, TrainingError
from ..formats.hub import check_source
from ..request import choice, whole

Report = Callable[[str, Path | None, int], None]  # told of a stage's name, its run folder (if it is a run), its steps
PRESETS = ("cpu", "gpu")  # every kind has a recipe for each: two cores; one large GPU
SMALL = 100_000_000  # parameters of a U-Net, below which a model learns with the small models' numbers
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
        recipe: "module:function" of `darkroom.training`: preset -> recipe. Where the kind has `purposes`, or is
            `sized`, the function takes also `purpose=` and `small=`.
        run: "module:function": (recipe, source, output, workers, report) -> what was made, as `run.run`.
        ending: "module:function": (recipe, source, output, made, report) -> a `run.Ending`, as `run.conclude`.
        model: what --model means; "": it starts from nothing and takes none.
        data: whether it takes --data; otherwise it is trained on the built-in scenes alone.
        purposes: further presets: what it is for.
        sized: whether its recipe is another for models with small U-Nets (fewer than `SMALL` parameters).
    """

    about: str
    recipe: str
    run: str = "run:run"
    ending: str = "run:conclude"
    model: str = "the model to start from"
    data: bool = True
    purposes: tuple[str, ...] = ()
    sized: bool = False

    @property
    def presets(self) -> tuple[str, ...]:
        """The names that `recipe_of` knows."""
        return (*PRESETS, *self.purposes)

    def recipe_of(self, *presets: str, model: str | None = None) -> Any:
        """The recipe of one of `PRESETS` (default: cpu), of one of the kind's `purposes` beside it, for a model of the
        size that `model` has (as in `Source`).

        Raises TrainingError for presets that exclude each other, CheckpointError for a model that can't be opened.
        """
        devices, purposes = ([p for p in dict.fromkeys(presets) if (p in PRESETS) is on] for on in (True, False))
        for chosen in (devices, purposes):
            if len(chosen) > 1:
                raise TrainingError(f"the presets {chosen[0]} and {chosen[1]} exclude each other; choose one of them")
        unknown = [p for p in purposes if p not in self.purposes]
        if unknown:
            raise TrainingError(f"preset is {unknown[0]!r}; it must be one of {', '.join(self.presets)}")
        options: dict[str, Any] = {}
        if self.purposes and purposes:
            options["purpose"] = purposes[0]
        if self.sized:
            options["small"] = _found("finetune:unet_size")(model) < SMALL
        return _found(self.recipe)(*(devices or PRESETS[:1]), **options)

    def train(self, recipe: Any, source: Source, output: Path, workers: int = 1, report: Report = silent) -> Path:
        """Train to the end, or go on with what is in the folder `output`; returns what was made.

        Raises TrainingError, CheckpointError, and Stopped when SIGINT or SIGTERM came (all is saved then, the same call
        goes on).
        """
        return cast("Path", _found(self.run)(recipe, source, output, workers, report))

    def conclude(self, recipe: Any, source: Source, output: Path, made: Path, report: Report = silent) -> Any:
        """What is told when a run is over, a `run.Ending`: what to type next, a sheet of before and after, the loss."""
        return _found(self.ending)(recipe, source, output, made, report)


def check_asked(name: str, presets: Iterable[str], source: Source, workers: int | None) -> None:
    """Raise RequestError for what a kind of training can't be asked for, before anything of it is imported."""
    kind = KINDS[name]
    for preset in presets:
        choice("preset", preset, kind.presets)
    if workers is not None:
        whole("workers", workers, 1, 256)
    for what, instead in (("model", "starts from nothing"), ("data", "is trained on the built-in scenes")):
        if getattr(source, what) is not None and not getattr(kind, what):
            takers = ", ".join(name for name, other in KINDS.items() if getattr(other, what))
            raise RequestError(f"{what} is for {takers}; {name} {instead}")
    if source.model is not None:
        check_source(source.model)
    data = source.data
    if data is not None and not os.path.exists(data) and not set(data) & set("*?[{"):
        raise RequestError(f"data is {data[:200]!r}, which does not exist; give a folder of pictures, or shards")


def default_output(kind: str, data: str | None) -> Path:
    """Where a run lives, if nobody says: runs/lora-pictures for a lora on my/pictures/."""
    name = re.sub(r"[^\w.]+", "-", Path(data).name).strip("-.")[:60] if data is not None else ""
    return Path("runs", f"{kind}-{name}" if name else kind)


def _found(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return cast("Callable[..., Any]", getattr(import_module(f"darkroom.training.{module}"), function))


KINDS: Mapping[str, Kind] = {
    "embedded": Kind(
        "the embedded model: autoencoder, text encoder and U-Net, on the built-in scenes",
        "embedded:embedded", "embedded:train_embedded", "embedded:conclude_embedded", model="", data=False,
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
    "dreambooth": Kind("a subject, from a few pictures of it", "finetune:dreambooth", sized=True),
    "dreambooth-lora": Kind("the same as a LoRA", "lora:dreambooth_lora", sized=True),
    "lora": Kind(
        "a LoRA: a small file of changes to a model", "lora:lora", purposes=("object", "style"), sized=True
    ),
    "textual-inversion": Kind("a word's vectors", "textual_inversion:textual_inversion", sized=True),
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
