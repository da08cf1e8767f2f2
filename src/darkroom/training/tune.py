"""What is attached to a finished model and trained: a learned word, a ControlNet. The model stays as it is.

Shapes: N rows, C latent channels, h w latent size, H W picture size, T tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from .. import hints
from ..data.dataset import Lessons
from ..diffusion.condition import ControlBatch
from ..engine.job import Control
from ..errors import TrainingError
from ..formats.control import save_controlnet
from ..formats.embedding import save_embedding
from ..models.controlnet import ControlNet
from ..pipeline import Pipeline
from ..prompts.embeddings import LearnedWord
from .kinds import Report, Subject
from .parallel import Share
from .stage import PictureRecipe, PictureStage


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRecipe(PictureRecipe):
    """A learned word (Gal et al. 2022, arXiv 2208.01618): vectors that stand where the word stands."""

    word: str = "<new>"  # as the captions have it; a caption without it, or none, becomes "a photo of <new>"
    vectors: int = 1
    initial: str = ""  # the words that it begins as, of at most as many tokens; none: the mean of all words
    keep_norm: bool = False  # vectors turn only, and stay as long as they began


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetRecipe(PictureRecipe):
    """A ControlNet (Zhang et al. 2023, arXiv 2302.05543), begun as a copy of the U-Net's way down."""

    hint: str = "canny"  # a name of `darkroom.hints`
    attention: bool = True  # without: no transformers in it, a smaller file, for hints that say where things are
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


class Vectors(nn.Module):
    """The vectors of a word to be learned, [n, D] float32; called, it gives them, as long as they began if so asked."""

    def __init__(self, start: Tensor, keep_norm: bool = False) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().float().clone())
        self.lengths = self.vectors.detach().norm(dim=-1, keepdim=True) if keep_norm else None

    def forward(self) -> Tensor:
        if self.lengths is None:
            return self.vectors
        kept: Tensor = self.lengths * functional.normalize(self.vectors, dim=-1)
        return kept


class InversionStage(PictureStage):
    """A learned word's training."""

    config: InversionRecipe

    @classmethod
    def open(
        cls, recipe: InversionRecipe, subject: Subject, output: Path, report: Report | None = None
    ) -> tuple[Pipeline, Lessons]:
        """As `PictureStage.open`; a picture without a caption is called by the word: it would teach nothing else."""
        called = recipe.word if recipe.template != "{}" else _plain(recipe)
        return super().open(replace(recipe, caption=recipe.caption or called), subject, output, report)

    @classmethod
    def check_model(cls, pipe: Pipeline) -> None:
        super().check_model(pipe)
        if pipe.text_encoder_2 is not None:
            raise TrainingError(f"{pipe.name!r} has two text encoders; a word is learned for models with one")

    def begin(self) -> None:
        self.check_word()
        c, table = self.config, self.pipe.text_encoder.token_embedding.weight.float()
        start = table.mean(dim=0, keepdim=True)
        if c.initial:
            ids = self.pipe.tokenizer.encode(c.initial)
            if not ids:
                raise TrainingError(f"initial is {c.initial[:60]!r}, which is no word; give one that the model knows")
            if len(ids) > c.vectors:
                told = f"initial is {c.initial[:60]!r}, which is {len(ids)} tokens, and vectors is {c.vectors}"
                raise TrainingError(f"{told}; set vectors={len(ids)} or more, or begin with fewer words")
            start = table[ids]
        start = start[[i % len(start) for i in range(c.vectors)]]
        # Vectors that begin alike would stay alike.
        start = start + 0.01 * table.std() * torch.randn(start.shape).to(start) * (torch.arange(c.vectors) > 0)[:, None]
        self.word = Vectors(start, c.keep_norm)
        self.modules["word"] = self.word
        self.words = (self.word_now(),)
        if not self._is_read(_plain(c)):
            raise TrainingError(
                f"vectors is {c.vectors}, and {_plain(c)[:60]!r} is then more than chunks={c.chunks} reads; set fewer"
            )

    def check_word(self) -> None:
        """Raise TrainingError for a word that the model knows already: prompts would lose that one, and diffusers
        refuses a file with it."""
        word = self.config.word
        tokens = self.pipe.tokenizer.vocab
        if {word, word.lower(), f"{word.lower()}</w>"} & tokens.keys():
            raise TrainingError(
                f"word is {word!r}, which this model's tokenizer knows as one of its own; take a name that is none, "
                f"such as <{word.strip('<>')}-1>"
            )

    def word_now(self) -> LearnedWord:
        """The word as it is now; gradients go to its vectors."""
        return LearnedWord((self.config.word,), (self.word(),))

    def loss(self, batch: Any, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        self.words = (self.word_now(),)
        loss, figures = super().loss(batch, step, share)
        return loss + 0 * self.word().sum(), figures  # where all captions are dropped nothing else leads to the word

    def captions(self, rows: Sequence[int], step: int) -> list[str]:
        return [c if not c or self._is_read(c) else _plain(self.config) for c in super().captions(rows, step)]

    def _is_read(self, caption: str) -> bool:
        """Whether the text encoder is shown the word in a caption: it may be a part of another, or come too late."""
        return any(chunk.learned for (chunk,) in self._chunks(caption))

    def write(self, output: Path) -> Path:
        return save_embedding(output / "word.safetensors", self.word().detach(), name=self.config.word)

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        with super().drawing() as told:
            yield {**told, "embeddings": (LearnedWord((self.config.word,), (self.word().detach().clone(),)),)}


def _plain(recipe: InversionRecipe) -> str:
    """What is read with a picture whose caption doesn't have the word."""
    return f"a photo of {recipe.word}"


class ControlNetStage(PictureStage):
    """A ControlNet's training."""

    config: ControlNetRecipe

    def begin(self) -> None:
        c = self.config
        try:
            self.net = ControlNet.from_unet(self.pipe.unet, attention=c.attention, hint_widths=c.hint_widths)
        except ValueError as error:
            raise TrainingError(str(error)) from None
        check_hint_widths(c, self.net, self.pipe.autoencoder.config.downscale)
        self.modules["controlnet"] = self.net

    def hint(self, i: int, step: int) -> Tensor:
        """The hint of picture i, as a step shows it: [3, H, W] in 0..1."""
        shown = self.lessons.picture(i, self.lessons.version(i, step, self.config.seed))
        made = hints.make(self.config.hint, Image.fromarray(shown))
        return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1).float() / 255

    def shown(self, rows: Sequence[int], step: int) -> Any:
        return *super().shown(rows, step), torch.stack([self.hint(i, step) for i in rows])

    def loss(self, batch: Any, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        latents, rows, captions, shown = batch
        n = len(rows)
        control = ControlBatch(self.net, tuple(range(n)), shown.to(self.pipe.device), (1.0,) * n, (False,) * n)
        condition = replace(self.condition(captions, rows, step), controls=(control,))
        return self.denoising(latents, rows, condition, share)

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        """Sheets are steered by the hint of the first picture."""
        hint = hints.make(self.config.hint, Image.fromarray(self.lessons.picture(0)))
        with super().drawing() as told:
            yield {**told, "controls": (Control(self.net, hint),)}

    def write(self, output: Path) -> Path:
        return save_controlnet(output / "controlnet", self.net.state_dict(), self.net.config, torch.float16)


def check_hint_widths(recipe: ControlNetRecipe, net: ControlNet, wanted: int) -> None:
    """Raise TrainingError unless a ControlNet brings hints to the size of latents, `wanted` times smaller."""
    if (found := net.config.hint_downscale) != wanted:
        raise TrainingError(
            f"hint_widths has {len(recipe.hint_widths)} widths, which shrink a hint {found} times; this model's "
            f"latents are {wanted} times smaller than its pictures"
        )
