"""Training a text encoder by pictures: CLIP's contrastive objective (Radford et al. 2021, arXiv 2103.00020, sec. 2.3).

Shapes: N pictures and their captions, S side of a picture, T tokens, P width of the common space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..data.captions import Captions
from ..data.dataset import Lessons
from ..data.order import Order
from ..formats.clip import MEAN, STD
from ..models.clip import LARGEST, Clip, VisionEncoder, contrastive_loss
from ..models.config import TextEncoderConfig, VisionEncoderConfig
from ..models.text_encoder import TextEncoder
from ..prompts.tokenizer import Tokenizer
from .config import LoopConfig
from .loop import step_seed
from .parallel import Share
from .parallel import share as ranks
from .stage import parted

FOUND = 64  # pictures among which a sheet's captions look


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderRecipe(LoopConfig):
    """A text encoder and the image encoder it learns with, from nothing."""

    size: int = 128  # side of the pictures that the image encoder sees
    patch: int = 16  # side of the patches it cuts them into
    image_width: int = 192
    image_layers: int = 4
    text_width: int = 192
    text_layers: int = 4
    heads: int = 4  # of both encoders
    projection: int = 128  # width of the space that both meet in
    temperature: float = 0.07  # at the beginning; it is learned
    vocabulary: int = 4096  # at most that many tokens are made from the captions (the built-in scenes have their own)
    tokenizer: str = ""  # a folder of a finished one; none: it is made from the captions
    tokens: int = 77  # of a caption, its begin and end included; what is longer is cut
    cut: str = "centre"  # where a picture is cut to a square; or "random"
    flip: bool = False  # mirror half of the pictures' appearances: not where captions tell left from right
    template: str = "{}"  # around every caption: "a photo of {}"; several with | between them are taken by lot
    prefix: str = ""  # before every caption
    shuffle: bool = False  # put tags (between commas) in another order each time
    keep_tags: int = 0  # that many first tags stay where they are
    tag_dropout: float = 0.0  # fraction of tags left out
    lines: bool = False  # each line of a caption's file is a caption of its own; else lines are joined
    caption: str = ""  # of pictures that have none of their own
    scenes: int = 40_000  # how many of the built-in scenes
    held_out: int = 0  # pictures that are never learned from, for `validate_every` and `sample_every`


def network(recipe: TextEncoderRecipe, tokenizer: Tokenizer) -> Clip:
    """The untrained encoders of a recipe. Raises ValueError for numbers that no network can have."""
    torch.manual_seed(step_seed(recipe.seed, -1))
    return Clip(
        TextEncoder(TextEncoderConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=recipe.text_width, intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers, num_attention_heads=recipe.heads,
            max_position_embeddings=tokenizer.max_length, bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id, projection_dim=recipe.projection,
            projection=True,
        )),
        VisionEncoder(VisionEncoderConfig(
            hidden_size=recipe.image_width, intermediate_size=4 * recipe.image_width,
            num_hidden_layers=recipe.image_layers, num_attention_heads=recipe.heads, image_size=recipe.size,
            patch_size=recipe.patch, projection_dim=recipe.projection,
        )),
        recipe.temperature,
    )  # fmt: skip


@dataclass
class TextEncoderStage:
    """The loop's view of it."""

    config: TextEncoderRecipe
    clip: Clip
    tokenizer: Tokenizer
    lessons: Lessons
    order: Order = field(init=False)
    texts: Captions = field(init=False)
    held_out: list[int] = field(init=False)
    learned: list[int] = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        self.held_out, self.learned = parted(self.lessons, c.held_out, c.seed)
        sizes = [self.lessons.sizes[i] for i in self.learned]
        repeats = [self.lessons.repeats[i] for i in self.learned]
        self.order = Order(sizes, repeats, c.batch_size, c.seed)
        self.texts = captions_of(c)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"clip": self.clip}

    def batch(self, step: int, share: Share) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, S, S], normalised, and the token ids [N, T] of their captions."""
        chosen = self.order.rows(step)
        return self.shown([self.learned[int(chosen[i])] for i in share.of(range(len(chosen)))], step)

    def shown(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Some pictures of the lessons and their captions' ids, as a step shows them."""
        seed = self.config.seed
        pictures = [self.lessons.picture(i, self.lessons.version(i, step, seed)) for i in rows]
        texts = self.texts.texts(self.lessons.captions, rows, step, seed)
        return pixels_of(pictures), torch.tensor([self.tokenizer.padded(text) for text in texts])

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """What is held out (else the first pictures), in batches of the size of a step's."""
        n, rows = self.config.batch_size, self.held_out or self.learned[: self.config.batch_size]
        return [self.shown(rows[k : k + n], 0) for k in range(0, len(rows), n)]

    def sheet(self) -> Image.Image:
        """Eight of those pictures in the first column; in its row, the five that its caption finds first."""
        rows = (self.held_out or self.learned)[:FOUND]
        pixels, ids = (x.to(self.config.device) for x in self.shown(rows, 0))
        with torch.no_grad():
            order = (self.clip.read(ids) @ self.clip.see(pixels).T).argsort(dim=1, descending=True).cpu()
        pictures, side = [Image.fromarray(self.lessons.picture(i)) for i in rows], self.config.size
        sheet = Image.new("RGB", (6 * side + side // 8, min(len(rows), 8) * side), "white")
        for y in range(min(len(rows), 8)):
            sheet.paste(pictures[y], (0, y * side))
            for x, i in enumerate(order[y, :5].tolist()):
                sheet.paste(pictures[i], ((x + 1) * side + side // 8, y * side))
        return sheet

    def loss(self, batch: tuple[Tensor, Tensor], step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of the rows of all processes together, the same in each of them.

        Where a step is computed in parts (`accumulate`), a picture is told from those of its part alone.
        """
        with torch.no_grad():
            # Clipped itself, not only where it is used: beyond the limit it would get no gradient to come back by.
            self.clip.logit_scale.clamp_(max=math.log(LARGEST))
        pixels, ids = (x.to(self.config.device) for x in batch)
        pictures, texts, scale = self.clip(pixels, ids)
        if share.world > 1:
            pictures, texts = gather(pictures), gather(texts)
        loss = contrastive_loss(pictures, texts, scale)
        found = (texts @ pictures.T).detach().argmax(dim=1) == torch.arange(len(texts), device=texts.device)
        return loss, {"found": found.float().mean(), "scale": scale.detach().mean()}


def captions_of(recipe: TextEncoderRecipe) -> Captions:
    """What is made of captions. Raises TrainingError for options that can't be."""
    c = recipe
    return Captions(
        template=c.template, prefix=c.prefix, shuffle=c.shuffle, keep=c.keep_tags, tag_dropout=c.tag_dropout,
        lines=c.lines,
    )  # fmt: skip


def pixels_of(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pictures [S, S, 3] as the image encoder takes them: [N, 3, S, S] float32, normalised as CLIP's are."""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, [N, P] -> [world N, P] in the order of the whole batch; gradients come back.

    Every process must compute the same loss from them, of which it goes back through its own rows; the loop takes the
    mean of what all of them find.
    """
    gathered: Tensor = rows if ranks().world == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(ranks().world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)  # row i of the whole batch is rank i % world's

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # The loss is the same everywhere, and so is this gradient: the sum over all processes is so many times it.
        return gradient[ranks().rank :: ranks().world] * ranks().world
