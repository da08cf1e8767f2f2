"""Training a text encoder by pictures: CLIP's contrastive objective (Radford et al. 2021, arXiv 2103.00020, sec. 2.3).

RUN/step-*.pt, log.jsonl    the run (loop.py)
RUN/tokenizer/              what the captions are read with
RUN/clip/                   the result, which transformers opens as a CLIPModel
RUN/scores.json             how well pictures and captions find each other (built-in scenes that training never saw)

Shapes: N pictures and their captions, S side of a picture, T tokens, P width of the common space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.buckets import Cut
from ..data.captions import Captions
from ..data.dataset import Dataset, SceneDataset, open_dataset
from ..data.order import Order
from ..errors import TrainingError
from ..files import whole_file
from ..formats.save import MEAN, STD, save_clip
from ..models.clip import LARGEST, Clip, VisionEncoder, contrastive_loss
from ..models.config import TextEncoderConfig, VisionEncoderConfig
from ..models.text_encoder import TextEncoder
from ..prompts.tokenizer import Tokenizer
from ..settings import setting
from ..toy.objects import with_article
from ..toy.scenes import Scene, draw_scene, render_scene
from . import memory, state
from .kinds import Report, Source
from .loop import step_seed
from .memory import Estimate, Sketch, rows_of
from .parallel import Rank, this_rank
from .pictures import CUT, PictureRecipe, parted
from .recipe import COUNT, LoopConfig, again, flag, number, text, whole
from .stage import Stage
from .tokenizer import learn_tokenizer, of_length, run_tokenizer, scene_tokenizer, texts_of

FOLDER = "clip"
SCORES = "scores.json"
TESTED = 500  # built-in scenes that training never saw, for the scores
FOUND = 64  # pictures among which a sheet's captions look
ROWS = 50  # encoded at once for the scores
UNSEEN = 20_000_000  # the scene from which those are counted that nothing learns from


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderRecipe(LoopConfig):
    """A text encoder and the image encoder it learns with, from nothing."""

    size: int = setting(128, whole(), "Side of the pictures that the image encoder sees.")
    patch: int = setting(16, whole("1 or more", lambda v: v >= 1), "Side of the patches it cuts them into.")
    image_width: int = setting(192, whole(), "Of the image encoder.")
    image_layers: int = setting(4, whole(), "Of the image encoder.")
    text_width: int = setting(192, whole(), "Of the text encoder.")
    text_layers: int = setting(4, whole(), "Of the text encoder.")
    heads: int = setting(4, whole(), "Of both encoders.")
    projection: int = setting(128, whole(), "Width of the space that both meet in.")
    temperature: float = setting(
        0.07, number("between 0.01 and 10", lambda v: 0.01 <= v <= 10), "At the beginning; it is learned."
    )
    vocabulary: int = setting(
        4096,
        whole(),
        "At most that many tokens are made from the captions (the built-in scenes have their own).",
    )
    tokenizer: str = setting("", text(), "A folder of a finished one; none: it is made from the captions.")
    tokens: int = setting(
        77,
        whole("between 3 and 1024", lambda v: 3 <= v <= 1024),
        "Of a caption, its begin and end included; what is longer is cut.",
    )
    cut: str = setting("centre", CUT, "Where a picture is cut to a square.")
    flip: bool = setting(
        False, flag(), "Mirror half of the pictures' appearances: not where captions tell left from right."
    )
    template: str = again(PictureRecipe, "template")
    prefix: str = again(PictureRecipe, "prefix")
    shuffle: bool = again(PictureRecipe, "shuffle")
    keep_tags: int = again(PictureRecipe, "keep_tags")
    tag_dropout: float = again(PictureRecipe, "tag_dropout")
    lines: bool = again(PictureRecipe, "lines")
    caption: str = again(PictureRecipe, "caption")
    scenes: int = again(PictureRecipe, "scenes", 40_000)
    held_out: int = setting(0, COUNT, "Pictures that are never learned from, for `validate_every` and `sample_every`.")

    @property
    def stage(self) -> type[TextEncoderStage]:
        return TextEncoderStage


def text_encoder(preset: str = "cpu") -> TextEncoderRecipe:
    """Two CPU cores, an hour; or one large GPU."""
    if preset == "gpu":
        return TextEncoderRecipe(
            steps=20_000, batch_size=1024, lr=5e-4, optimizer="adamw", weight_decay=0.1, image_width=384,
            image_layers=8, text_width=384, text_layers=6, heads=6, projection=256, scenes=400_000, device="cuda",
        )  # fmt: skip
    return TextEncoderRecipe(steps=4000, batch_size=128, lr=1e-3, optimizer="adamw", weight_decay=0.1, warmup=100)


def network(recipe: TextEncoderRecipe, tokenizer: Tokenizer, vocabulary: int | None = None) -> Clip:
    """The untrained encoders of a recipe, for as many tokens as the tokenizer has or as is said.

    Raises ValueError for numbers that no network can have.
    """
    torch.manual_seed(step_seed(recipe.seed, -1))
    return Clip(
        TextEncoder(TextEncoderConfig(
            vocab_size=vocabulary or tokenizer.vocab_size, hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
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
class TextEncoderStage(Stage):
    """A text encoder's training, with the image encoder beside it."""

    afterwards: ClassVar[Sequence[str]] = ("train", "unet", "--set", "text_encoder={}")
    title: ClassVar[str] = "text encoder"
    others: ClassVar[Mapping[str, str]] = {"key": "was trained on other pictures or captions, or they have changed"}

    config: TextEncoderRecipe
    clip: Clip
    tokenizer: Tokenizer
    dataset: Dataset

    @classmethod
    def open(cls, recipe: TextEncoderRecipe, source: Source, output: Path, report: Report | None = None) -> Self:
        dataset = _dataset(recipe, source)

        def make() -> Tokenizer:
            if recipe.tokenizer:
                made = Tokenizer.from_folder(recipe.tokenizer)
            elif source.data is None:
                made = scene_tokenizer()
            else:
                made = learn_tokenizer(texts_of(recipe, dataset.captions), recipe.vocabulary, recipe.tokens)
            return of_length(made, recipe.tokens)

        begins = report is not None and not state.steps_done(output)
        tokenizer = run_tokenizer(output, make if begins else None)
        try:
            clip = network(recipe, tokenizer)
        except ValueError as error:
            raise TrainingError(f"the recipe's networks can't be built: {error}") from None
        return cls(recipe, clip.to(recipe.device), tokenizer, dataset)

    def __post_init__(self) -> None:
        c = self.config
        self.hooks = ExitStack()
        self.modules = {"clip": self.clip}
        self.held_out, self.learned = parted(self.dataset, c.held_out, c.seed)
        sizes = [self.dataset.sizes[i] for i in self.learned]
        repeats = [self.dataset.repeats[i] for i in self.learned]
        self.order = Order(sizes, repeats, c.batch_size, c.seed)
        self.texts = Captions(
            template=c.template, prefix=c.prefix, shuffle=c.shuffle, keep=c.keep_tags, tag_dropout=c.tag_dropout,
            lines=c.lines,
        )  # fmt: skip

    def belongs(self) -> dict[str, Any]:
        return {"key": self.dataset.key}

    @property
    def left_out(self) -> Sequence[tuple[Path, str]]:
        return self.dataset.left_out

    def batch(self, step: int, rank: Rank) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, S, S], normalised, and the token ids [N, T] of their captions."""
        chosen = self.order.rows(step)
        return self.shown([self.learned[int(chosen[i])] for i in rank.of(range(len(chosen)))], step)

    def shown(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Some pictures of the dataset and their captions' ids, as a step shows them."""
        seed = self.config.seed
        pictures = [self.dataset.picture(i, self.dataset.version(i, step, seed)) for i in rows]
        texts = self.texts.texts(self.dataset.captions, rows, step, seed)
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
        pictures, side = [Image.fromarray(self.dataset.picture(i)) for i in rows], self.config.size
        sheet = Image.new("RGB", (6 * side + side // 8, min(len(rows), 8) * side), "white")
        for y in range(min(len(rows), 8)):
            sheet.paste(pictures[y], (0, y * side))
            for x, i in enumerate(order[y, :5].tolist()):
                sheet.paste(pictures[i], ((x + 1) * side + side // 8, y * side))
        return sheet

    def loss(self, batch: tuple[Tensor, Tensor], step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of the rows of all processes together, the same in each of them.

        Where a step is computed in parts (`accumulate`), a picture is told from those of its part alone.
        """
        with torch.no_grad():
            # Clipped itself, not only where it is used: beyond the limit it would get no gradient to come back by.
            self.clip.logit_scale.clamp_(max=math.log(LARGEST))
        pixels, ids = (x.to(self.config.device) for x in batch)
        pictures, texts, scale = self.clip(pixels, ids)
        if rank.world_size > 1:
            pictures, texts = gather(pictures), gather(texts)
        loss = contrastive_loss(pictures, texts, scale)
        found = (texts @ pictures.T).detach().argmax(dim=1) == torch.arange(len(texts), device=texts.device)
        return loss, {"found": found.float().mean(), "scale": scale.detach().mean()}

    def write(self, output: Path, report: Report) -> Path:
        clip = self.clip.cpu().eval().requires_grad_(False)
        made = save_clip(
            output / FOLDER, text_encoder=clip.text.state_dict(), text_encoder_config=clip.text.config,
            image_encoder=clip.image.state_dict(), image_encoder_config=clip.image.config,
            logit_scale=float(clip.logit_scale), tokenizer=self.tokenizer,
        )  # fmt: skip
        if isinstance(self.dataset, SceneDataset):
            report("scoring", None, 0)
            scores = score_scenes(clip, self.tokenizer, TESTED, self.config.seed)
            with whole_file(output / SCORES, TrainingError) as draft:
                draft.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        return made

    @classmethod
    def estimate(cls, recipe: TextEncoderRecipe, model: str | None, world: int) -> Estimate:
        tokenizer, n = scene_tokenizer(), rows_of(recipe, world)
        most = max(tokenizer.vocab_size, recipe.vocabulary)
        with Sketch().inside():
            clip = network(recipe, of_length(tokenizer, recipe.tokens), most)
        dataset = SceneDataset.of(max(n, 2), recipe.seed)
        stage = cls(replace(recipe, device="cpu", held_out=0), clip, tokenizer, dataset)
        batch = torch.zeros(n, 3, recipe.size, recipe.size), torch.zeros(n, recipe.tokens, dtype=torch.long)
        return memory.estimate(recipe, stage.modules, (), lambda: stage.loss(batch, 0, Rank())[0], world)


def _dataset(recipe: TextEncoderRecipe, source: Source) -> Dataset:
    cut = Cut(crop=recipe.cut, flip=recipe.flip, variants=0, seed=recipe.seed)
    size = (recipe.size, recipe.size)
    found = open_dataset(source.data, size, cut, caption=recipe.caption, scenes=recipe.scenes, seed=recipe.seed)
    different = {caption.strip() for caption in found.captions}
    if len(different) < 2:
        raise TrainingError(
            f"all {len(found)} pictures have the caption {next(iter(different))[:60]!r}; it takes different ones to "
            "learn from"
        )
    return found


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
    gathered: Tensor = rows if this_rank().world_size == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(this_rank().world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)  # row i of the whole batch is rank i % world's

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # The loss is the same everywhere, and so is this gradient: the sum over all processes is so many times it.
        return gradient[this_rank().index :: this_rank().world_size] * this_rank().world_size


# --- how well pictures and captions find each other


@torch.no_grad()
def embed(
    clip: Clip, tokenizer: Tokenizer, pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Pictures [S, S, 3] and captions, each [N, P] of unit length."""
    device = clip.logit_scale.device
    seen = [clip.see(pixels_of(pictures[i : i + ROWS]).to(device)) for i in range(0, len(pictures), ROWS)]
    ids = torch.tensor([tokenizer.padded(caption) for caption in captions])
    read = [clip.read(part.to(device)) for part in torch.split(ids, ROWS)]
    return torch.cat(seen).cpu(), torch.cat(read).cpu()


def retrieval(pictures: Tensor, texts: Tensor) -> dict[str, float]:
    """Of N pictures and texts [N, P], row by row of each other: the fraction that finds its other first, and among the
    first five, in both directions."""
    found: dict[str, float] = {}
    right = torch.arange(len(texts))[:, None]
    for name, scores in (("text_to_picture", texts @ pictures.T), ("picture_to_text", pictures @ texts.T)):
        order = scores.argsort(dim=1, descending=True)
        found[name] = float((order[:, :1] == right).any(dim=1).float().mean())
        found[f"{name}_5"] = float((order[:, :5] == right).any(dim=1).float().mean())
    return found


def score_scenes(clip: Clip, tokenizer: Tokenizer, count: int, seed: int) -> dict[str, float]:
    """The scores of an encoder over built-in scenes that training never saw.

    `text_to_picture`, `picture_to_text` (and `..._5`): among `count` scenes with different captions. `swap`: the
    fraction of pictures of two objects that are nearer to their caption than to its twin with the nouns swapped
    (chance: 0.5).
    """
    scenes = list(islice(_different(seed), count))
    pictures, texts = embed(clip, tokenizer, [render_scene(s) for s in scenes], [s.caption for s in scenes])
    scores = {"scenes": float(count)} | retrieval(pictures, texts)
    pairs = [draw_scene(seed, UNSEEN + i, kind="relation", held_out=None) for i in range(count)]
    shown = [render_scene(s) for s in pairs]
    pictures, texts = embed(clip, tokenizer, shown, [s.caption for s in pairs])
    _, twins = embed(clip, tokenizer, shown[:1], [swapped(s) for s in pairs])
    nearer = (pictures * texts).sum(dim=1) > (pictures * twins).sum(dim=1)
    return scores | {"swap": float(nearer.float().mean())}


def swapped(scene: Scene) -> str:
    """The caption of a scene of two objects with the nouns swapped: what the picture does not show."""
    first, second = (with_article(o.noun) for o in scene.objects)
    told = f"{first} {scene.relation} {second}"
    return f"{second} {scene.relation} {first}{scene.caption.removeprefix(told)}"


def _different(seed: int) -> Iterator[Scene]:
    """Scenes of any kind that training never saw, each with a caption of its own."""
    seen: set[str] = set()
    index = UNSEEN
    while True:
        scene = draw_scene(seed, index, held_out=None)
        index += 1
        if scene.caption not in seen:
            seen.add(scene.caption)
            yield scene
