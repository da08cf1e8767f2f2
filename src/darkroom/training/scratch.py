"""A U-Net from nothing: with a text encoder that learns beside it, or with a finished one that stays as it is.

OUTPUT/tokenizer/     what the captions are read with
OUTPUT/model/         the result, which diffusers opens
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import darkroom

from ..data.dataset import Lessons
from ..errors import TrainingError
from ..model import Model
from ..pipeline import Pipeline
from ..prompts.tokenizer import Tokenizer
from . import state
from .autoencoder_run import finish_autoencoder
from .cache import fingerprint
from .finish import FINISHED, load_autoencoder, save_autoencoder, scene_tokenizer
from .kinds import Report, Subject
from .stage import PictureStage, lessons_at
from .unet import DEFAULTS, UNetRecipe, networks, scheduler_config
from .vocabulary import learn_tokenizer
from .warm import open_text

TOKENIZER = "tokenizer"


class ScratchStage(PictureStage):
    """The training of a U-Net from nothing."""

    config: UNetRecipe

    @classmethod
    def open(
        cls, recipe: Any, subject: Subject, output: Path, report: Report | None = None
    ) -> tuple[Pipeline, Lessons]:
        """Untrained networks on a finished autoencoder, `subject.model`: an autoencoder's run, or a model's."""
        autoencoder = load_autoencoder(autoencoder_file(subject.model, output)).to(recipe.device)
        c = autoencoder.config
        lessons = lessons_at(recipe, subject, recipe.size, c.downscale * 2 ** (len(recipe.widths) - 1), output)
        given, built = None, recipe
        if recipe.text_encoder:
            given = open_text(recipe.text_encoder, recipe.device)
            built = replace(recipe, text_width=given[0].config.hidden_size)
        tokenizer = given[1] if given else _tokenizer(recipe, subject, lessons, output, report is not None)
        try:
            unet, text_encoder = networks(built, tokenizer, c.latent_channels, c.downscale)
        except ValueError as error:
            raise TrainingError(f"the recipe's networks can't be built: {error}") from None
        model = Model(
            unet=unet.to(recipe.device), autoencoder=autoencoder,
            text_encoder=given[0] if given else text_encoder.to(recipe.device),
            tokenizer=tokenizer, scheduler_config=scheduler_config(recipe), name=output.name,
        )  # fmt: skip
        return Pipeline(model), lessons

    def begin(self) -> None:
        self.text_learns = not self.config.text_encoder
        self.modules["unet"] = self.pipe.unet
        if self.text_learns:
            self.modules["text_encoder"] = self.pipe.text_encoder
        for module in self.modules.values():
            module.requires_grad_(True)

    def write(self, output: Path) -> Path:
        return self.pipe.save(output / "model", dtype=self.config.save_dtype, defaults=DEFAULTS)


def autoencoder_file(source: str | None, folder: Path) -> Path:
    """The file of the autoencoder that a U-Net's latents shall come from.

    `source` is an autoencoder's run, or whatever `darkroom.load` takes (None: the embedded model): then the file is
    written into `folder`. Raises TrainingError, CheckpointError.
    """
    if source is not None:
        run = Path(source)
        if (run / FINISHED).is_file() or state.checkpoints(run):
            finish_autoencoder(run)
            return run / FINISHED
    autoencoder = darkroom.load(source, device="cpu", dtype="float32").autoencoder
    path = folder / FINISHED
    if not path.is_file() or fingerprint(load_autoencoder(path)) != fingerprint(autoencoder):
        save_autoencoder(autoencoder, path, step=-1)
    return path


def _tokenizer(recipe: UNetRecipe, subject: Subject, lessons: Lessons, output: Path, first: bool) -> Tokenizer:
    """The run's tokenizer; made by its first process when it begins, and kept in its folder."""
    folder = output / TOKENIZER
    if state.steps_done(output) or not first:
        return Tokenizer.from_folder(folder) if folder.is_dir() else scene_tokenizer()
    if subject.data is None:
        made = scene_tokenizer()
    else:
        around = [recipe.prefix, *recipe.template.replace("{}", " ").split("|")]
        made = learn_tokenizer([*lessons.captions, *around], recipe.vocabulary)
    shutil.rmtree(folder, ignore_errors=True)
    made.save(folder)
    return made
