"""Tuning: a LoRA, a learned word or a ControlNet for a finished model, which itself stays as it is.

Shapes: N rows, P pictures, C latent channels, h w latent size, H W picture size, T tokens, D text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from darkroom import hints
from darkroom.adapters import init_lora
from darkroom.data.order import Order
from darkroom.diffusion.condition import Batch
from darkroom.diffusion.control import ControlBatch
from darkroom.errors import TrainingError
from darkroom.models.controlnet import ControlNet
from darkroom.prompts.embeddings import LearnedWord
from darkroom.prompts.encoder import PromptEncoder

from .loop import LoopConfig, step_seed
from .objective import denoising_loss
from .parallel import Share

if TYPE_CHECKING:
    from darkroom.data.lessons import Lessons
    from darkroom.pipeline import Pipeline

    from .latents import Latents


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRecipe(LoopConfig):
    """What all tunings have."""

    dropout: float = 0.1  # fraction of captions replaced by the empty one, so that guidance goes on working


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe(TuneRecipe):
    """A LoRA (Hu et al. 2021, arXiv 2106.09685) on the U-Net."""

    rank: int = 4
    alpha: float = 4.0  # the difference is multiplied by alpha / rank
    targets: str = "attention"  # the layers it changes; or "linear", or "all" (convolutions too)


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRecipe(TuneRecipe):
    """A learned word (Gal et al. 2022, arXiv 2208.01618): vectors that stand where the word stands."""

    word: str = "<new>"  # as the captions have it; a caption without it becomes "a photo of <new>"
    vectors: int = 1
    initial: str = ""  # the word that it begins as; none: the mean of all words


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetRecipe(TuneRecipe):
    """A ControlNet (Zhang et al. 2023, arXiv 2302.05543), begun as a copy of the U-Net's way down."""

    hint: str = "canny"  # a name of `darkroom.hints`
    attention: bool = True  # without: no transformers in it, a smaller file, for hints that say where things are
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


class Vectors(nn.Module):
    """The vectors of a word to be learned, [n, D] float32."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().float().clone())


@dataclass
class TuneStage(ABC):
    """The loop's view of a tuning. A subclass says what is trained, and how the network answers with it."""

    config: TuneRecipe
    pipe: Pipeline
    lessons: Lessons
    latents: Latents
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(step_seed(self.config.seed, -1))
        lessons, c = self.lessons, self.config
        self.order = Order(lessons.sizes, lessons.repeats, c.batch_size, c.seed, lessons.prior)
        assert isinstance(self.pipe.prompts, PromptEncoder)
        self.prompts = self.pipe.prompts
        self.words: tuple[LearnedWord, ...] = ()
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make the modules that are trained."""

    def captions(self, rows: np.ndarray[Any, Any], step: int) -> list[str]:
        """The rows' captions, some replaced by the empty one."""
        dropped = np.random.default_rng((self.config.seed, step, 5)).random(len(rows)) < self.config.dropout
        return ["" if gone else self.lessons.captions[i] for i, gone in zip(rows, dropped, strict=True)]

    def batch(self, step: int, share: Share) -> tuple[Tensor, list[int], list[str]]:
        """Latents [N, C, h, w], the pictures' numbers, their captions."""
        rows = self.order.rows(step)
        captions = self.captions(rows, step)
        mine = [int(rows[i]) for i in share.of(range(len(rows)))]
        latents = self.latents.draw(mine, step, self.config.seed)
        return latents, mine, [captions[i] for i in share.of(range(len(rows)))]

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions as the text encoder reads them, each cut to one chunk: [N, T, D] float32."""
        encoded, _ = self.prompts.run([self.prompts.chunks(c, "plain", self.words)[0] for c in captions])
        return encoded

    def loss(
        self, batch: tuple[Tensor, list[int], list[str]], step: int, share: Share
    ) -> tuple[Tensor, dict[str, Tensor]]:
        latents, _, captions = batch
        conditions = Batch(self.text(captions))
        return denoising_loss(self.pipe.denoiser, latents.to(self.pipe.device), conditions, share)


class LoraStage(TuneStage):
    """A LoRA's training."""

    config: LoraRecipe

    def begin(self) -> None:
        c = self.config
        self.lora = init_lora(self.pipe.unet, c.rank, c.alpha, c.targets)
        self.modules["lora"] = self.lora

    def loss(
        self, batch: tuple[Tensor, list[int], list[str]], step: int, share: Share
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with self.lora.attached(self.pipe.unet):
            return super().loss(batch, step, share)


class InversionStage(TuneStage):
    """A learned word's training."""

    config: InversionRecipe

    def begin(self) -> None:
        c, table = self.config, self.pipe.text_encoder.token_embedding.weight.float()
        start = table.mean(dim=0, keepdim=True)
        if c.initial:
            ids = self.pipe.tokenizer.encode(c.initial)
            if not ids:
                raise TrainingError(f"initial is {c.initial[:60]!r}, which is no word; give one that the model knows")
            start = table[ids]
        start = start[[i % len(start) for i in range(c.vectors)]]
        # Vectors that begin alike would stay alike.
        start = start + 0.01 * table.std() * torch.randn(start.shape).to(start) * (torch.arange(c.vectors) > 0)[:, None]
        self.word = Vectors(start)
        self.modules["word"] = self.word
        self.words = (LearnedWord((c.word,), (self.word.vectors,)),)  # whose vectors are the very ones that learn

    def captions(self, rows: np.ndarray[Any, Any], step: int) -> list[str]:
        word = self.config.word
        return [c if not c or word in c else f"a photo of {word}" for c in super().captions(rows, step)]


class ControlNetStage(TuneStage):
    """A ControlNet's training."""

    config: ControlNetRecipe

    def begin(self) -> None:
        c = self.config
        if c.hint not in hints.HINTS:
            raise TrainingError(f"hint is {c.hint!r}; it must be one of {', '.join(hints.HINTS)}")
        self.net = ControlNet.from_unet(self.pipe.unet, attention=c.attention, hint_widths=c.hint_widths)
        wanted, found = self.pipe.autoencoder.config.downscale, self.net.config.hint_downscale
        if found != wanted:
            raise TrainingError(
                f"hint_widths has {len(c.hint_widths)} widths, which shrink a hint {found} times; this model's "
                f"latents are {wanted} times smaller than its pictures"
            )
        self.modules["controlnet"] = self.net

    def hint(self, i: int, step: int) -> Tensor:
        """The hint of picture i, as a step shows it: [3, H, W] in 0..1."""
        shown = self.lessons.picture(i, self.lessons.version(i, step, self.config.seed))
        made = hints.make(self.config.hint, Image.fromarray(shown))
        return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1).float() / 255

    def batch(self, step: int, share: Share) -> Any:
        latents, rows, captions = super().batch(step, share)
        return latents, rows, captions, torch.stack([self.hint(i, step) for i in rows])

    def loss(self, batch: Any, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        latents, rows, captions, shown = batch
        n, device = len(rows), self.pipe.device
        control = ControlBatch(self.net, tuple(range(n)), shown.to(device), (1.0,) * n, (False,) * n)
        conditions = Batch(self.text(captions), controls=(control,))
        return denoising_loss(self.pipe.denoiser, latents.to(device), conditions, share)


STAGES: Mapping[type[TuneRecipe], type[TuneStage]] = {
    LoraRecipe: LoraStage,
    InversionRecipe: InversionStage,
    ControlNetRecipe: ControlNetStage,
}
