"""A U-Net from nothing: with a text encoder that learns beside it, or with a finished one that stays as it is.

OUTPUT/tokenizer/     what the captions are read with
OUTPUT/model/         the result, which diffusers opens
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

import darkroom

from ..data.dataset import Dataset
from ..errors import TrainingError
from ..model import Model
from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..pipeline import Pipeline
from ..prompts.tokenizer import Tokenizer
from ..settings import setting
from . import state
from .autoencoder import config_of, finished, is_run
from .finetune import PREDICTIONS, FinetuneRecipe, check_zero_snr
from .kinds import Report, Source
from .loop import step_seed
from .memory import Estimate, Sketch
from .pictures import PictureRecipe, PictureStage, autoencoder_like, dataset_at
from .pretrained import open_text, text_config
from .recipe import again, flag, listed, number, several, text, whole
from .sheets import Use
from .text_encoder import TextEncoderRecipe
from .tokenizer import TOKENIZER, learn_tokenizer, run_tokenizer, scene_tokenizer, texts_of

# Betas of Stable Diffusion.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}

# What suits a small model (docs/LOG.md): guidance spoils counts, at the usual 7.5 most of all; refinement at the usual
# 0.3 smears.
DEFAULTS: dict[str, float] = {"steps": 20, "guidance_scale": 2.0, "refine_strength": 0.15}


# What makes a model learn the order of the nouns in a caption (docs/decisions/0012): captions that say the places
# first, and more of high noise, where the order alone decides what goes where.
PLACED: dict[str, Any] = {"lines": True, "times": "logit-normal", "times_mean": 0.5, "times_std": 1.4}


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetRecipe(PictureRecipe):
    """A U-Net from nothing, and a text encoder beside it, on the built-in scenes or on one's own pictures."""

    size: int = again(PictureRecipe, "size", 128)
    widths: tuple[int, ...] = setting((64, 128, 192), several(whole()), "Of the U-Net's levels.")
    attention_levels: tuple[bool, ...] = setting((False, True, True), several(flag()), "Which of them attend.")
    layers: int = setting(1, whole(), "Of a level.")
    heads: int = setting(4, whole(), "Of both networks.")
    groups: int = setting(16, whole(), "Of group norms.")
    text_width: int = setting(192, whole(), "Of the text encoder.")
    text_layers: int = setting(2, whole(), "Of the text encoder.")
    text_encoder: str = setting(
        "", text(), "A model's or a CLIP's folder, whose text encoder is taken as it is; none: one learns."
    )
    vocabulary: int = again(TextEncoderRecipe, "vocabulary")
    scenes: int = again(PictureRecipe, "scenes", 40_000)
    weight: str = again(PictureRecipe, "weight", "snr-plus-one")
    # Zero terminal signal-to-noise ratio and v-prediction (Lin et al. 2023, arXiv 2305.08891): without them a model
    # can't paint a flat black picture.
    prediction: str = setting("v_prediction", listed(PREDICTIONS), "What the network answers.")
    zero_snr: bool = setting(True, flag(), "The last timestep is pure noise (a flow model's always is).")
    shift: float = setting(
        1.0,
        number("between 0.001 and 1000", lambda v: 1e-3 <= v <= 1e3),
        "Of a flow model's times: above 1 high noise comes more often.",
        beside=(("prediction", "flow"),),
    )
    save_dtype: str = again(FinetuneRecipe, "save_dtype")

    @property
    def stage(self) -> type[UNetStage]:
        return UNetStage

    def check(self, workers: int) -> None:
        PictureRecipe.check(self, workers)
        check_zero_snr(self.prediction, self.zero_snr)


def unet(preset: str = "cpu") -> UNetRecipe:
    """The embedded model's U-Net and text encoder: for two CPU cores; or for a large GPU, with many more pictures."""
    if preset == "gpu":
        return UNetRecipe(
            steps=60_000, batch_size=512, lr=0.003, optimizer="muon", scenes=400_000, ema=0.9995, device="cuda",
            **PLACED,
        )  # fmt: skip
    return UNetRecipe(
        steps=10_000, batch_size=64, lr=0.003, optimizer="muon", cooldown=0.4, warmup=100, scenes=96_000,
        encode_precision="bfloat16", **PLACED,
    )  # fmt: skip


def scheduler_config(recipe: UNetRecipe) -> dict[str, Any]:
    """The `scheduler_config.json` of a recipe's model."""
    if recipe.prediction == "flow":
        return {
            "_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": recipe.shift,
            "steps_offset": 1,
        }  # fmt: skip
    changed = {"prediction_type": recipe.prediction, "rescale_betas_zero_snr": recipe.zero_snr}
    return {**SCHEDULER_CONFIG, **changed}


def networks(
    recipe: UNetRecipe, tokenizer: Tokenizer, latent_channels: int = 4, downscale: int = 8
) -> tuple[UNet, TextEncoder]:
    """The untrained networks of a recipe. Raises ValueError for numbers that no network can have."""
    levels = len(recipe.widths)
    torch.manual_seed(step_seed(recipe.seed, -1))
    unet = UNet(UNetConfig(
        sample_size=recipe.size // downscale, in_channels=latent_channels, out_channels=latent_channels,
        block_out_channels=recipe.widths, layers_per_block=(recipe.layers,) * levels,
        attention_levels=recipe.attention_levels, only_cross_attention=(False,) * levels,
        transformer_layers=(1,) * levels, heads=(recipe.heads,) * levels, cross_attention_dim=recipe.text_width,
        norm_num_groups=recipe.groups,
    ))  # fmt: skip
    text_encoder = TextEncoder(TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=recipe.text_width, intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers, num_attention_heads=recipe.heads,
        max_position_embeddings=tokenizer.max_length, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id, projection_dim=recipe.text_width,
    ))  # fmt: skip
    with torch.no_grad():
        # Every residual branch begins as nothing, so that the first gradients go straight through.
        for name, p in unet.named_parameters():
            if ".conv2." in name or ".proj_out." in name or name.startswith("conv_out."):
                p.zero_()
    return unet, text_encoder


class UNetStage(PictureStage):
    """The training of a U-Net from nothing."""

    config: UNetRecipe

    @classmethod
    def open(cls, recipe: Any, source: Source, output: Path, report: Report | None = None) -> Self:
        """Untrained networks on a finished autoencoder, `source.model`: an autoencoder's run, or a model's."""
        autoencoder = autoencoder_of(source.model).to(recipe.device)
        c = autoencoder.config
        grid = c.downscale * 2 ** (len(recipe.widths) - 1)
        dataset = dataset_at(recipe, source, recipe.size, grid, output, recipe.caption)
        given, built = None, recipe
        if recipe.text_encoder:
            given = open_text(recipe.text_encoder, recipe.device)
            built = replace(recipe, text_width=given[0].config.hidden_size)
        tokenizer = given[1] if given else _tokenizer(recipe, source, dataset, output, report is not None)
        try:
            unet, text_encoder = networks(built, tokenizer, c.latent_channels, c.downscale)
        except ValueError as error:
            raise TrainingError(f"the recipe's networks can't be built: {error}") from None
        model = Model(
            unet=unet.to(recipe.device), autoencoder=autoencoder,
            text_encoder=given[0] if given else text_encoder.to(recipe.device),
            tokenizer=tokenizer, scheduler_config=scheduler_config(recipe), name=output.name,
        )  # fmt: skip
        return cls(recipe, Pipeline(model), dataset)

    @classmethod
    def estimate(cls, recipe: UNetRecipe, model: str | None, world: int) -> Estimate:
        return estimate(recipe, config_of(model), world)

    def begin(self) -> None:
        self.text_learns = not self.config.text_encoder
        self.modules["unet"] = self.pipe.unet
        if self.text_learns:
            self.modules["text_encoder"] = self.pipe.text_encoder
        for module in self.modules.values():
            module.requires_grad_(True)

    def write(self, output: Path, report: Report) -> Path:
        return self.pipe.save(output / "model", dtype=self.config.save_dtype, defaults=DEFAULTS)

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(model=made, begun=False)


def autoencoder_of(source: str | None) -> Autoencoder:
    """The finished autoencoder that a U-Net's latents shall come from: of an autoencoder's run, or of whatever
    `darkroom.load` takes (None: the embedded model). Raises TrainingError, CheckpointError.
    """
    if source is not None and is_run(Path(source)):
        return finished(Path(source))
    found = darkroom.load(source, device="cpu", dtype="float32").autoencoder
    if not isinstance(found, Autoencoder):
        raise TrainingError(f"{str(source)[:200]!r} has a tiny autoencoder, which draws no latents; give another model")
    return found


def _tokenizer(recipe: UNetRecipe, source: Source, dataset: Dataset, output: Path, first: bool) -> Tokenizer:
    """The run's tokenizer; made by its first process when it begins, and kept in its folder."""

    def make() -> Tokenizer:
        if source.data is None:
            return scene_tokenizer()
        return learn_tokenizer(texts_of(recipe, dataset.captions), recipe.vocabulary)

    if not first or state.steps_done(output):  # runs of early versions have none in their folder
        return run_tokenizer(output) if (output / TOKENIZER).is_dir() else scene_tokenizer()
    return run_tokenizer(output, make)


def estimate(recipe: UNetRecipe, vae: AutoencoderConfig, world: int) -> Estimate:
    """`Stage.estimate` on the latents of an autoencoder."""
    given = text_config(recipe.text_encoder) if recipe.text_encoder else None
    built = recipe if given is None else replace(recipe, text_width=given.hidden_size)
    tokenizer, sketch = scene_tokenizer(), Sketch()
    with sketch.inside():
        unet, text_encoder = networks(built, tokenizer, vae.latent_channels, vae.downscale)
        most = max(text_encoder.config.vocab_size, recipe.vocabulary)
        text_encoder = TextEncoder(given or replace(text_encoder.config, vocab_size=most))
        autoencoder = autoencoder_like(vae)
    model = Model(
        unet=unet, autoencoder=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer,
        scheduler_config=scheduler_config(recipe), name="unet",
    )  # fmt: skip
    return UNetStage.estimate_of(recipe, model, sketch, world)
