"""Full training of a model's own networks: its U-Net, its text encoders, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..diffusion.schedule import Schedule
from ..errors import TrainingError
from ..pipeline import Pipeline
from .kinds import Subject
from .stage import PictureRecipe, PictureStage
from .unet import UNetRecipe

TRAINED = ("unet", "text-encoder", "both")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe(PictureRecipe):
    """A model that goes on learning."""

    train: str = "unet"  # or "text-encoder", or "both"
    text_lr: float = 0.0  # learning rate of text encoders; 0: that of the U-Net
    prediction: str = ""  # make it another one: "epsilon", "v_prediction", "sample"; none: the model's own
    zero_snr: bool = False  # let the last timestep be pure noise, so that it can draw what is dark or bright all over
    save_dtype: str = "float16"  # of the result; or "float32", "bfloat16"


class FinetuneStage(PictureStage):
    """The training of a model's own networks; the result is a diffusers folder."""

    config: FinetuneRecipe

    @classmethod
    def model(cls, recipe: Any, subject: Subject) -> Pipeline:
        return rescheduled(super().model(recipe, subject), recipe.prediction, recipe.zero_snr)

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

    def write(self, output: Path) -> Path:
        return self.pipe.save(output / "model", dtype=self.config.save_dtype)


def rescheduled(pipe: Pipeline, prediction: str, zero_snr: bool) -> Pipeline:
    """A model with another prediction, or with a schedule that ends in pure noise; `pipe` itself if neither is asked.

    Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891): betas rescaled (algorithm 1), timesteps that begin at the
    last (sec. 3.3); an answer of noise says nothing about the picture there, so epsilon is refused (sec. 3.2).
    """
    config = dict(pipe.scheduler_config)
    own = Schedule.from_config(config).prediction_type
    wanted = prediction or own
    if own == "flow" and (wanted != own or zero_snr):
        raise TrainingError(f"{pipe.name!r} is a flow model: prediction and zero_snr are for the others")
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
    return Pipeline(replace(pipe.model, **parts))


def check_finetune(recipe: FinetuneRecipe | UNetRecipe) -> None:
    """Raise TrainingError on options that contradict each other."""
    if isinstance(recipe, FinetuneRecipe):
        if recipe.train == "unet" and recipe.text_lr:
            raise TrainingError(
                f"text_lr is {recipe.text_lr:g} and train is 'unet', so no text encoder learns; set train=both"
            )
        if recipe.prediction == "flow":
            raise TrainingError("prediction is 'flow': a model that was trained otherwise can't become that in place")
    elif not recipe.prediction:
        raise TrainingError(f"prediction is ''; it must be one of {', '.join(PREDICTIONS)}")
    if recipe.zero_snr and recipe.prediction == "epsilon":
        raise TrainingError(
            "zero_snr is true and prediction is 'epsilon', which is nothing to go by at pure noise; set "
            "prediction=v_prediction, or zero_snr=false"
        )
