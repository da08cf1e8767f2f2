"""A learned word: vectors that stand where the word stands (textual inversion). The model stays as it is.

Shapes: N rows, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import TrainingError
from ..formats.embedding import save_embedding
from ..pipeline import Pipeline
from ..prompts.embeddings import LearnedWord
from ..settings import setting
from .kinds import Report
from .parallel import Rank
from .pictures import PictureRecipe, PictureStage
from .recipe import flag, on, text, whole
from .sheets import Use


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRecipe(PictureRecipe):
    """A learned word (Gal et al. 2022, arXiv 2208.01618): vectors that stand where the word stands."""

    word: str = setting(
        "<new>",
        text("a word without spaces around it", lambda v: v != "" and v == v.strip()),
        'As the captions have it; a caption without it, or none, becomes "a photo of <new>".',
    )
    vectors: int = setting(1, whole("between 1 and 75", lambda v: 1 <= v <= 75), "Tokens that it stands for.")
    initial: str = setting(
        "", text(), "The words that it begins as, of at most as many tokens; none: the mean of all words."
    )
    keep_norm: bool = setting(False, flag(), "Vectors turn only, and stay as long as they began.")

    @property
    def stage(self) -> type[InversionStage]:
        return InversionStage


def textual_inversion(preset: str = "cpu", small: bool = False) -> InversionRecipe:
    """Two thousand steps of four pictures; captions are never dropped. For models with `small` U-Nets two vectors, in
    250 steps of ten (docs/worked-examples.md)."""
    recipe = InversionRecipe(
        steps=2000, batch_size=4, lr=5e-3, optimizer="adamw", warmup=20, cooldown=0.5, dropout=0.0, ema=0.99
    )
    return on(replace(recipe, steps=250, batch_size=10, lr=1e-2, vectors=2) if small else recipe, preset)


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
    def called(cls, recipe: InversionRecipe) -> str:
        """A picture without a caption is called by the word: it would teach nothing else."""
        return recipe.caption or (recipe.word if recipe.template != "{}" else _plain(recipe))

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

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        self.words = (self.word_now(),)
        loss, figures = super().loss(batch, step, rank)
        return loss + 0 * self.word().sum(), figures  # where all captions are dropped nothing else leads to the word

    def captions(self, rows: Sequence[int], step: int) -> list[str]:
        return [c if not c or self._is_read(c) else _plain(self.config) for c in super().captions(rows, step)]

    def blank(self, rows: int, side: int) -> Any:
        """As ever, with the word in every caption: without it nothing would lead back to its vectors."""
        latents, which, captions = super().blank(rows, side)
        return (
            latents,
            which,
            [" ".join([self.config.word, *caption.split()[self.config.vectors :]]) for caption in captions],
        )

    def _is_read(self, caption: str) -> bool:
        """Whether the text encoder is shown the word in a caption: it may be a part of another, or come too late."""
        return any(chunk.learned for (chunk,) in self._chunks(caption))

    def write(self, output: Path, report: Report) -> Path:
        return save_embedding(output / "word.safetensors", self.word().detach(), name=self.config.word)

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(embedding=made)

    @classmethod
    def prompts(cls, recipe: Any, captions: Sequence[str]) -> list[str]:
        """Those with the word, or what is read instead of one without."""
        return super().prompts(recipe, [c for c in captions if recipe.word in c] or [_plain(recipe)])

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        with super().drawing() as told:
            yield {**told, "embeddings": (LearnedWord((self.config.word,), (self.word().detach().clone(),)),)}


def _plain(recipe: InversionRecipe) -> str:
    """What is read with a picture whose caption doesn't have the word."""
    return f"a photo of {recipe.word}"
