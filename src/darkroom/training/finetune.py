"""Full training of a model's own networks: its U-Net, its text encoders, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..devices import DTYPES
from ..diffusion.schedule import Schedule
from ..embedded import MODEL
from ..errors import TrainingError
from ..formats.checkpoint import open_checkpoint
from ..models.layers import parameter_count
from ..models.unet import UNet
from ..pipeline import Pipeline
from ..settings import setting
from .kinds import Report, Source
from .memory import with_values
from .pictures import PictureRecipe, PictureStage
from .recipe import FRACTION, either, flag, listed, on
from .sheets import Use

TRAIN = either(("unet", "text-encoder", "both"))
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
DREAMBOOTH: Mapping[str, Any] = {"caption": "a photo of sks", "dropout": 0.0, "prior_weight": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe(PictureRecipe):
    """A model that goes on learning."""

    train: str = setting("unet", TRAIN, "Which networks learn.")
    text_lr: float = setting(0.0, FRACTION, "Learning rate of text encoders; 0: that of the U-Net.")
    prediction: str = setting("", listed(PREDICTIONS, ""), "Make it another one; none: the model's own.")
    zero_snr: bool = setting(
        False, flag(), "Let the last timestep be pure noise, so that it can draw what is dark or bright all over."
    )
    save_dtype: str = setting("float16", listed(DTYPES), "Of the result.", free=True)

    @property
    def stage(self) -> type[FinetuneStage]:
        return FinetuneStage

    def check(self, workers: int) -> None:
        PictureRecipe.check(self, workers)
        check_text_lr(self.train, self.text_lr)
        if self.prediction == "flow":
            raise TrainingError("prediction is 'flow': a model that was trained otherwise can't become that in place")
        check_zero_snr(self.prediction, self.zero_snr)


def finetune(preset: str = "cpu") -> FinetuneRecipe:
    """Two thousand steps of four pictures."""
    return on(FinetuneRecipe(steps=2000, batch_size=4, lr=1e-5, optimizer="adamw", warmup=50, cooldown=0.5), preset)


def dreambooth(preset: str = "cpu", small: bool = False) -> FinetuneRecipe:
    """Eight hundred steps of a picture of the subject and one of its class (Ruiz et al. 2022, arXiv 2208.12242); for
    `small` U-Nets five hundred of 24 at a hundred times the rate (docs/worked-examples.md)."""
    recipe = FinetuneRecipe(
        steps=800, batch_size=2, lr=5e-6, optimizer="adamw", warmup=20, cooldown=0.5, ema=0.99, **DREAMBOOTH
    )
    return on(replace(recipe, steps=500, batch_size=24, lr=5e-4) if small else recipe, preset)


def picture_sides(model: str | None = None) -> tuple[int, int]:
    """The side in pixels of the squares that a model is made for, and of what a side must be a multiple.

    Raises CheckpointError.
    """
    found = open_checkpoint(MODEL if model is None else model)
    pixels = found.autoencoder_config.downscale
    return found.unet_config.sample_size * pixels, found.unet_config.grid * pixels


def unet_size(model: str | None = None) -> int:
    """The parameters of a model's U-Net, by its configuration. Raises CheckpointError."""
    config = open_checkpoint(MODEL if model is None else model).unet_config
    with torch.device("meta"):
        return parameter_count(UNet(config))


class FinetuneStage(PictureStage):
    """The training of a model's own networks; the result is a diffusers folder."""

    config: FinetuneRecipe

    @classmethod
    def model(cls, recipe: Any, source: Source) -> Pipeline:
        return rescheduled(super().model(recipe, source), recipe.prediction, recipe.zero_snr)

    def begin(self) -> None:
        c, pipe = self.config, self.pipe
        found: dict[str, nn.Module] = {}
        if c.train != "text-encoder":
            found["unet"] = pipe.unet
        if c.train != "unet":
            found["text_encoder"] = pipe.text_encoder
            if pipe.text_encoder_2 is not None:
                found["text_encoder_2"] = pipe.text_encoder_2
            self.text_learns = True
        for module in found.values():
            module.requires_grad_(True)
        self.modules.update(found)

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of modules that have another than the recipe's `lr`."""
        lr = self.config.text_lr
        return {name: lr for name in self.modules if name.startswith("text_encoder")} if lr else {}

    def write(self, output: Path, report: Report) -> Path:
        return self.pipe.save(output / "model", dtype=self.config.save_dtype)

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(model=made)


def rescheduled(pipe: Pipeline, prediction: str, zero_snr: bool) -> Pipeline:
    """A model with another prediction, or with a schedule that ends in pure noise; `pipe` itself if neither is asked.

    Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891): betas rescaled (algorithm 1), timesteps that begin at the
    last (sec. 3.3); an answer of noise says nothing about the picture there, so epsilon is refused (sec. 3.2).
    """
    config = dict(pipe.scheduler_config)
    schedule = Schedule.from_config(config)
    own = schedule.prediction_type
    wanted = prediction or own
    edm = schedule.sigma_data is not None
    if (own == "flow" or edm) and (wanted != own or zero_snr):
        kind = "an EDM" if edm else "a flow"
        raise TrainingError(f"{pipe.name!r} is {kind} model: prediction and zero_snr are for the others")
    if wanted == own and not zero_snr:
        return pipe
    config["prediction_type"] = wanted
    if zero_snr:
        if wanted == "epsilon":
            raise TrainingError(
                "zero_snr is asked for and the model predicts epsilon, which is nothing to go by at pure noise; "
                "set prediction=v_prediction"
            )
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if config.get("_class_name") not in ("DDIMScheduler", "EulerDiscreteScheduler"):  # others don't rescale
            config = {**config, "_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True}
    return rebuilt(pipe, scheduler_config=config)


def rebuilt(pipe: Pipeline, **parts: Any) -> Pipeline:
    """A model with another U-Net or schedule in place of its own (the fields of `Model`); the rest is shared."""
    with with_values():  # its schedule's numbers are looked at, also where networks have none
        return Pipeline(replace(pipe.model, **parts))


def check_text_lr(train: str, text_lr: float) -> None:
    """Raise TrainingError for a learning rate of text encoders where none learns."""
    if train == "unet" and text_lr:
        raise TrainingError(
            f"text_lr is {text_lr:g} and train is 'unet', so no text encoder learns; set train=both, or text_lr=0"
        )


def check_zero_snr(prediction: str, zero_snr: bool) -> None:
    """Raise TrainingError for a prediction that says nothing at pure noise, where there shall be that."""
    if zero_snr and prediction == "epsilon":
        raise TrainingError(
            "zero_snr is true and prediction is 'epsilon', which is nothing to go by at pure noise; set "
            "prediction=v_prediction, or zero_snr=false"
        )
