"""What all trainings of a U-Net, or of something attached to one, have in common: pictures, captions, conditions, loss.

Class pictures for prior preservation (Ruiz et al. 2022, arXiv 2208.12242, sec. 3.2) are drawn here by the model itself,
and so are the sheets of samples that say on the way what a training can draw so far.

Shapes: N rows, P pictures, C latent channels, h w latent size, T tokens, D text width.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import darkroom

from ..data.buckets import Cut
from ..data.captions import Captions
from ..data.dataset import Dataset, SceneDataset, open_dataset
from ..data.order import Order
from ..diffusion.condition import Batch, alike
from ..embedded import MODEL
from ..errors import TrainingError
from ..files import whole_file
from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..model import Model
from ..models.autoencoder import Autoencoder, TinyAutoencoder
from ..models.config import AutoencoderConfig, TinyAutoencoderConfig, UNetConfig
from ..models.layers import set_checkpointing
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..pipeline import Pipeline
from ..prompts.chunks import Chunk
from ..prompts.embeddings import LearnedWord
from ..prompts.encoder import Encoded, JointEncoder, PromptEncoder
from ..prompts.readable import listed, spelled
from ..settings import setting
from . import memory
from .background import interruptible
from .kinds import Report, Source, log
from .latents import Latents, TextStore, fill, latents_of, place, texts_place
from .loop import Stopped, step_seed
from .memory import Estimate, Sketch
from .objective import DenoisingRecipe, denoising_loss
from .parallel import Rank, this_rank
from .recipe import COUNT, FRACTION, WEIGHT, flag, named, number, several, text, whole
from .sheets import PICTURES, before_and_after, draw, labelled, spread
from .stage import Stage

OTHER = "was trained on other pictures or for another model"
NEVER = 1 << 40  # the step of what is validated: training has none of that number
INDEX = "pictures.sqlite"  # in a run's folder: what was found in the files of its pictures
SCENES = whole("1 or more", lambda v: 1 <= v <= 10**8)
CUT = named(("centre", "random"))
CHUNKS = 4  # of a caption at most: texts of 1 to 4 chunks have a length of 12 in common, those of 1 to 5 one of 60
KEPT_TEXTS = 4096  # captions whose encodings are kept on disk; where there are more, each is encoded when it comes
DRAWN = "drawn.json"  # in the folder of class pictures: of which model and prompt they are
TEXTS = 256  # chunks of encoded captions kept, where no text encoder learns


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRecipe(DenoisingRecipe):
    """What every training on pictures with captions has."""

    heading: ClassVar[str] = "Pictures and captions"

    encode_precision: str = setting(
        "float32",
        named(("float32", "bfloat16")),
        'In which latents are made; "bfloat16" is quicker, and enough for many pictures.',
    )
    scenes: int = setting(20_000, SCENES, "How many of the built-in scenes, where no data is given.", of="scenes")
    size: int = setting(
        0,
        whole("a side in pixels up to 8192, or 0 for the model's own", lambda v: 0 <= v <= 8192),
        "Side of the pictures in pixels; with buckets, of the square whose area they have; 0: the model's.",
    )
    buckets: bool = setting(
        False, flag(), "Several sizes, by a picture's shape; else every picture is cut to a square."
    )
    aspect: float = setting(
        2.0,
        number("between 1 and 16", lambda v: 1 <= v <= 16),
        "The longest side a bucket may have, in its shortest.",
        beside=(("buckets",),),
    )
    enlarge: bool = setting(
        True, flag(), "Without: a picture smaller than its bucket gets a smaller one.", of="pictures"
    )
    cut: str = setting("centre", CUT, "Where a picture is cut.", of="pictures")
    flip: bool = setting(False, flag(), "Mirror half of the pictures' appearances.", of="pictures")
    variants: int = setting(
        4,
        whole("between 0 and 1024", lambda v: 0 <= v <= 1024),
        "Where cuts are random or pictures mirrored: how many versions of each there are; 0: no end.",
        beside=(("cut", "random"), ("flip",)),
    )
    template: str = setting(
        "{}",
        text(),
        'Around every caption: "a photo of {}"; several with | between them are taken by lot.',
    )
    prefix: str = setting("", text(), "Before every caption.")
    shuffle: bool = setting(False, flag(), "Put tags (between commas) in another order each time.")
    keep_tags: int = setting(
        0, COUNT, "That many first tags stay where they are.", beside=(("shuffle",), ("tag_dropout",))
    )
    tag_dropout: float = setting(0.0, FRACTION, "Fraction of tags left out.")
    chunks: int = setting(
        1,
        whole(f"between 1 and {CHUNKS}", lambda v: 1 <= v <= CHUNKS),
        "Of a caption that are read, at most: 75 tokens each, as in drawing.",
    )
    lines: bool = setting(
        False,
        flag(),
        "Each line of a caption's file is a caption of its own; else lines are joined. A built-in scene has one or "
        "two.",
    )
    caption: str = setting("", text(), 'Of pictures that have none of their own, such as "a photo of sks dog".')
    class_prompt: str = setting(
        "", text(), 'Prior preservation: what the subject is one of, such as "a photo of a dog".'
    )
    class_data: str = setting(
        "", text(), "A folder of pictures of that; none: the model itself draws them.", beside=(("class_prompt",),)
    )
    class_pictures: int = setting(
        100,
        whole("between 1 and 100000", lambda v: 1 <= v <= 100_000),
        "How many it draws.",
        beside=(("class_prompt",),),
    )
    prior_weight: float = setting(
        1.0, WEIGHT, "Of class pictures in the loss, against the subject's.", beside=(("class_prompt",),)
    )
    held_out: int = setting(
        0,
        COUNT,
        "Pictures that are never learned from, for the losses of `validate_every`.",
        beside=(("validate_every",),),
    )
    prompts: tuple[str, ...] = setting(
        (), several(text()), "Of the sheets of samples, and of the one at the end; none: some captions.", free=True
    )
    compare: int = setting(
        PICTURES, COUNT, "Prompts of the sheet at the end, drawn before and after; 0: no sheet.", free=True
    )

    def check(self, workers: int) -> None:
        DenoisingRecipe.check(self, workers)
        if self.times_from >= self.times_to:
            raise TrainingError(f"times_from is {self.times_from:g} and times_to {self.times_to:g}; it must be below")
        if self.class_data and not self.class_prompt:
            raise TrainingError("class_data is given and class_prompt is not; say what those pictures show")
        if self.class_prompt and self.batch_size < 2:
            raise TrainingError(
                "batch_size is 1; with class pictures half of a batch is theirs, so it must be 2 or more"
            )
        # The template must have a place for the caption.
        Captions(template=self.template, dropout=self.dropout, keep=self.keep_tags, tag_dropout=self.tag_dropout)


@dataclass
class PictureStage(Stage):
    """The training of a U-Net, or of something attached to one. A subclass says what is trained, how the network
    answers, and what is made."""

    encoding: ClassVar[str] = "encoding pictures"
    writing: ClassVar[str] = "writing what was made"
    others: ClassVar[Mapping[str, str]] = dict.fromkeys(("key", "model"), OTHER)

    config: Any  # the subclass's own recipe
    pipe: Pipeline
    dataset: Dataset
    modules: dict[str, nn.Module] = field(default_factory=dict)
    text_learns: bool = False  # whether what is trained reaches into the text encoder
    hooks: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(cls, recipe: Any, source: Source, output: Path, report: Report | None = None) -> Self:
        """On the model that training begins with, in float32."""
        pipe = cls.model(recipe, source)
        if report is not None and recipe.class_prompt and not recipe.class_data:
            draw_class(pipe, recipe.class_prompt, recipe.class_pictures, recipe.seed, class_folder(output), report)
        side, grid, caption = pipe.size[0], pipe.model.grid, cls.called(recipe)
        return cls(recipe, pipe, dataset_at(recipe, source, side, grid, output, caption))

    @classmethod
    def model(cls, recipe: Any, source: Source) -> Pipeline:
        """The model that training begins with. Raises TrainingError, CheckpointError."""
        pipe = darkroom.load(source.model, device=recipe.device, dtype="float32")
        cls.check_model(pipe)
        return pipe

    @classmethod
    def check_model(cls, pipe: Pipeline) -> None:
        """Raise TrainingError for a model that can't be trained so."""
        channels, latent = pipe.unet.config.in_channels, pipe.autoencoder.config.latent_channels
        if channels != latent:
            raise TrainingError(
                f"the U-Net of {pipe.name!r} takes {channels} channels where a latent has {latent}; this trains "
                "text-to-image models, so give one of those (or train inpainting)"
            )

    @classmethod
    def called(cls, recipe: Any) -> str:
        """The caption of a picture that has none of its own."""
        return str(recipe.caption)

    def __post_init__(self) -> None:
        c, dataset = self.config, self.dataset
        torch.manual_seed(step_seed(c.seed, -1))
        self.away, self.learned = parted(dataset, c.held_out, c.seed)
        self.order = Order(
            [dataset.sizes[i] for i in self.learned], [dataset.repeats[i] for i in self.learned], c.batch_size, c.seed,
            [dataset.prior[i] for i in self.learned],
        )  # fmt: skip
        self.texts = Captions(
            template=c.template, prefix=c.prefix, dropout=c.dropout, shuffle=c.shuffle, keep=c.keep_tags,
            tag_dropout=c.tag_dropout, lines=c.lines,
        )  # fmt: skip
        prompts = self.pipe.prompts
        self.encoders: Sequence[PromptEncoder] = prompts.encoders if isinstance(prompts, JointEncoder) else (prompts,)
        self.words: tuple[LearnedWord, ...] = ()
        self._frozen = lru_cache(TEXTS // c.chunks)(self._encode_frozen)
        for network in self.pipe.loras.networks.values():  # gradients go through those that don't learn themselves, too
            set_checkpointing(network, c.checkpointing)
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make the modules that are trained."""

    def belongs(self) -> dict[str, Any]:
        return {"key": self.dataset.key, "model": self.pipe.model_hash or place(Path(), self.pipe.autoencoder).name}

    @property
    def left_out(self) -> Sequence[tuple[Path, str]]:
        return self.dataset.left_out

    def tell(self, output: Path) -> None:
        super().tell(output)
        if without := sum(not caption for caption in self.dataset.captions):
            log.warning(
                "%d of %d pictures have no caption, and are learned from with the empty one; "
                "write one beside each, or set one for all (caption=...)", without, len(self.dataset),
            )  # fmt: skip
        own = [c for c, prior in zip(self.dataset.captions, self.dataset.prior, strict=True) if not prior]
        if not (self.text_learns or self.words) and (found := spelled(own, self.encoders[0].tokenizer)):
            cure = "; set train=both to teach it" if hasattr(self.config, "train") else ""
            log.warning(
                "captions have %s, which this model spells in pieces, and its text encoder stays as it is%s",
                listed(list(found)), cure,
            )  # fmt: skip

    @classmethod
    def estimate(cls, recipe: Any, model: str | None, world: int) -> Estimate:
        found = open_checkpoint(MODEL if model is None else model)
        second = found.text_encoder_2_config
        sketch = Sketch()
        with sketch.inside():
            networks: dict[str, Any] = {
                "unet": UNet(cls.unet_config(found)), "autoencoder": autoencoder_like(found.autoencoder_config),
                "text_encoder": TextEncoder(found.text_encoder_config),
                "text_encoder_2": None if second is None else TextEncoder(second),
            }  # fmt: skip
        made = Model(
            **networks, tokenizer=found.tokenizer(),
            tokenizer_2=None if second is None else found.tokenizer("text_encoder_2"),
            scheduler_config=found.scheduler_config, zero_negative=found.zero_negative, name=found.name,
        )  # fmt: skip
        return cls.estimate_of(recipe, made, sketch, world)

    @classmethod
    def unet_config(cls, found: Checkpoint) -> UNetConfig:
        """What the U-Net is that is trained from a checkpoint."""
        return found.unet_config

    @classmethod
    def estimate_of(cls, recipe: Any, model: Model, sketch: Sketch, world: int) -> Estimate:
        """`estimate` for networks without values."""
        for network in model.networks.values():
            network.requires_grad_(False)
        pipe, n = Pipeline(model), memory.rows_of(recipe, world)
        side = recipe.size or pipe.unet.config.sample_size * pipe.autoencoder.config.downscale
        dataset = replace(SceneDataset.of(n, 0), sizes=[(side, side)] * n)
        changed = {"device": "cpu", "held_out": 0, "class_prompt": ""}
        with sketch.inside():
            stage = cls(replace(recipe, **changed), pipe, dataset)
        shown = stage.blank(n, side)
        return memory.estimate(
            recipe, stage.modules, model.networks.values(), lambda: stage.loss(shown, 0, Rank())[0], world
        )

    def blank(self, rows: int, side: int) -> Any:
        """A batch as `shown` gives, of pictures of nothing of `side` pixels; its captions have all lengths, so that
        together they have the most tokens (`condition.alike`)."""
        c = self.pipe.autoencoder.config
        latents = torch.zeros(rows, c.latent_channels, side // c.downscale, side // c.downscale)
        words = self.encoders[0].length - 2
        lengths = [max(self.config.chunks - i, 1) if rows > 1 else self.config.chunks for i in range(rows)]
        lengths = [self.config.chunks if i >= self.config.chunks else length for i, length in enumerate(lengths)]
        return latents, range(rows), [" ".join(["a"] * (words * length - words // 2)) for length in lengths]

    @property
    def _half(self) -> bool:
        return bool(self.config.encode_precision == "bfloat16")

    def encode(self, cache: Path) -> None:
        fill(cache, self.dataset, self.pipe.autoencoder, this_rank(), bfloat16=self._half)

    def take(self, cache: Path, ahead: bool | None = None) -> None:
        self.latents: Latents = latents_of(self.dataset, self.pipe.autoencoder, cache, self._half)
        self.keep_texts(cache, bool(ahead))
        if ahead is not None and (count := self.cut_captions()):
            log.warning(
                "%d of %d captions are longer than the %d tokens that chunks=%d reads; only their beginning is learned "
                "from", count, len(self.dataset), self.config.chunks * (self.encoders[0].length - 2),
                self.config.chunks,
            )  # fmt: skip

    def keep_texts(self, cache: Path, ahead: bool) -> None:
        """Where no text encoder learns and the texts of a run are few, take them from a cache's folder from now on;
        `ahead`: encode those that are missing first.
        """
        known = [self.texts.all(caption) for caption in set(self.dataset.captions)]
        if self.text_learns or self.words or len(known) > KEPT_TEXTS or any(texts is None for texts in known):
            return
        encoders, limit = [encoder.text_encoder for encoder in self.encoders], self.config.chunks
        told = (self.pipe.unet.config.size_conditioning, limit)
        store = TextStore(texts_place(cache, encoders, told), self._encode_frozen)
        if ahead:
            texts = {text for texts in known for text in texts or ()}
            store.fill(sorted(texts, key=lambda text: (len(self._chunks(text)), text)))
        self._frozen = lru_cache(TEXTS // limit)(lambda caption: _on(self.pipe.device, store(caption)))

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        """While this lasts, `pipe` draws with what is being trained; gives fields of Request and Inputs to go with."""
        self.pipe.prompts.clear()
        try:
            yield {}
        finally:
            self.pipe.prompts.clear()

    def captions(self, rows: Sequence[int], step: int) -> list[str]:
        """What is read with some pictures in a step. Class pictures have their prompt and nothing around it."""
        found = self.texts.texts(self.dataset.captions, rows, step, self.config.seed)
        prior = self.dataset.prior
        return [text and self.dataset.captions[i] if prior[i] else text for i, text in zip(rows, found, strict=True)]

    def cut_captions(self) -> int:
        """How many pictures have a caption of which the beginning only is read: as many chunks as the recipe says."""
        limit: int = self.config.chunks

        def cut(text: str, encoder: PromptEncoder) -> bool:
            # A token is a byte at least, but for a learned word's; and two of a chunk are its ends.
            may_be = bool(self.words) or len(text.encode()) > limit * (encoder.length - 2)
            return may_be and len(encoder.chunks(text, "plain", self.words)) > limit

        long = {
            caption: any(cut(t, e) for t in self.texts.all(caption) or [caption] for e in self.encoders)
            for caption in set(self.dataset.captions)
        }
        return sum(long[caption] for caption in self.dataset.captions)

    def batch(self, step: int, rank: Rank) -> Any:
        """The loop's `Stage.batch`."""
        whole = self.order.rows(step)
        return self.shown([int(self.learned[whole[i]]) for i in rank.of(range(len(whole)))], step)

    def shown(self, rows: Sequence[int], step: int) -> Any:
        """What a step shows of some pictures of one size: latents [N, C, h, w], the pictures' numbers, their captions.

        A pure function of its arguments; a subclass adds what else the network is shown.
        """
        return self.latents.draw(rows, step, self.config.seed), rows, self.captions(rows, step)

    def validation(self) -> list[Any]:
        """The loop's hook: batches, each of one size, of the pictures that are held out; of the first ones where none
        are, whose loss with the same noise is steadier than that of the log. Always the same batches.
        """
        n, by_size = self.config.batch_size, dict[tuple[int, int], list[int]]()
        for i in self.away or self.learned[:n]:
            by_size.setdefault(self.dataset.sizes[i], []).append(int(i))
        batches = [same[k : k + n] for same in by_size.values() for k in range(0, len(same), n)]
        return [self.shown(rows, NEVER) for rows in batches]

    @classmethod
    def prompts(cls, recipe: Any, captions: Sequence[str]) -> list[str]:
        """Of the sheets of a run that learns from pictures with such captions."""
        return list(recipe.prompts) or spread(captions) or [""]

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """The loop's hook: a picture of each prompt, picture i of seed i. Afterwards all networks are as before."""
        learning = [module for module in self.modules.values() if module.training]
        for module in learning:
            module.eval()
        try:
            prompts = self.prompts(self.config, self.dataset.captions)
            with self.drawing() as told:
                side = self.config.size
                drawn = draw(self.pipe, prompts, told, (side, side) if side else self.pipe.size)
        finally:
            for module in learning:
                module.train()
        return labelled({"": drawn}, prompts)

    @classmethod
    def compare(cls, recipe: Any, source: Source, made: Path, output: Path, report: Report) -> tuple[str, Path | None]:
        use = cls.use(recipe, made)
        if not recipe.compare:
            return use.command(cls.prompts(recipe, [cls.called(recipe)])[0], source.model), None
        pipe = darkroom.load(source.model if use.begun else made, device=recipe.device)
        dataset = dataset_at(recipe, source, pipe.size[0], pipe.model.grid, output, cls.called(recipe))
        prompts = cls.prompts(recipe, dataset.captions)
        shown = Image.fromarray(dataset.picture(0)) if use.paints or use.control else None
        drawn = before_and_after(use, pipe, prompts[: recipe.compare], shown, recipe, output, report)
        return use.command(prompts[0], source.model), drawn

    @property
    def compiled(self) -> list[nn.Module]:
        """The loop's hook: what torch.compile is for."""
        others = [module for module in self.modules.values() if module is not self.pipe.unet]
        return [self.pipe.unet, *others]

    def condition(self, captions: Sequence[str], rows: Sequence[int], step: int) -> Batch:
        """What the U-Net is told of some pictures: of their captions what drawing would tell it, cut to the recipe's
        number of chunks.
        """
        if self.text_learns or self.words:
            parts = self._encode(captions)
        else:
            parts = [self._frozen(caption) for caption in captions]
        text = torch.stack(alike([part for part, _ in parts]))
        whole = [part for _, part in parts if part is not None]
        if not whole or not self.pipe.unet.config.size_conditioning:
            return Batch(text)
        pooled = torch.stack(whole)
        if self.pipe.zero_negative:  # the empty caption is what guidance leads away from, and means zeros there
            told = torch.tensor([caption != "" for caption in captions], device=text.device)
            text, pooled = text * told[:, None, None], pooled * told[:, None]
        sizes = torch.tensor([self._sizes(i, step) for i in rows], dtype=torch.float32, device=text.device)
        return Batch(text, pooled=pooled, sizes=sizes)

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        """The loop's `Stage.loss`."""
        latents, rows, captions = batch
        return self.denoising(latents, rows, self.condition(captions, rows, step), rank)

    def denoising(
        self, latents: Tensor, rows: Sequence[int], condition: Batch, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`denoising_loss` of some pictures, class pictures weighed as the recipe says."""
        x0 = latents.to(self.pipe.device)
        return denoising_loss(self.pipe.denoiser, x0, condition, rank, self.config, self._row_weights(rows))

    def _row_weights(self, rows: Sequence[int]) -> Tensor | None:
        """Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, eq. 2): the mean error of the subject's pictures, and
        `prior_weight` times that of class pictures. Half of all rows are class pictures (`data.order`).
        """
        if not any(self.dataset.prior):
            return None
        weights = {False: 2.0, True: 2.0 * self.config.prior_weight}
        return torch.tensor([weights[bool(self.dataset.prior[i])] for i in rows])

    def _chunks(self, caption: str) -> list[tuple[Chunk, ...]]:
        """The chunks of a caption that are read, each as every text encoder is shown it. Where they have different
        numbers, the shorter are continued with empty ones, as in `JointEncoder.encode`.
        """
        shown = [encoder.chunks(caption, "plain", self.words)[: self.config.chunks] for encoder in self.encoders]
        for chunks, encoder in zip(shown, self.encoders, strict=True):
            chunks += encoder.chunks("", "plain") * (max(map(len, shown)) - len(chunks))
        return list(zip(*shown, strict=True))

    def _encode(self, captions: Sequence[str]) -> list[Encoded]:
        """Of each caption [T, D], its chunks side by side, and pooled [P] or None, of the first one; float32, all in
        one call of each text encoder. Gradients reach text encoders and learned words.
        """
        rows = [self._chunks(caption) for caption in captions]
        shown = zip(*(chunk for chunks in rows for chunk in chunks), strict=True)
        parts = [encoder.run(chunks) for encoder, chunks in zip(self.encoders, shown, strict=True)]
        text, pooled, counts = torch.cat([text for text, _ in parts], dim=-1), parts[-1][1], [*map(len, rows)]
        first = [None] * len(rows) if pooled is None else [part[0] for part in torch.split(pooled, counts)]
        return [(part.flatten(0, 1), whole) for part, whole in zip(torch.split(text, counts), first, strict=True)]

    @torch.no_grad()
    def _encode_frozen(self, caption: str) -> Encoded:
        """[T, D] and pooled [P], by itself and in float32: the same bits whatever else is in the batch."""
        with torch.autocast(self.pipe.device.type, enabled=False):
            return self._encode([caption])[0]

    def _sizes(self, i: int, step: int) -> tuple[float, ...]:
        """What SDXL is told of a picture (Podell et al. 2023, arXiv 2307.01952, sec. 2.2)."""
        crop = self.dataset.crop(i, self.dataset.version(i, step, self.config.seed))
        (width, height), (left, top), size = crop.original, crop.corner, self.dataset.sizes[i]
        return (height, width, top, left, size[1], size[0])


def autoencoder_like(config: AutoencoderConfig) -> Autoencoder | TinyAutoencoder:
    """An untrained autoencoder."""
    return TinyAutoencoder(config) if isinstance(config, TinyAutoencoderConfig) else Autoencoder(config)


def parted(dataset: Dataset, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of `count` pictures that are held out, drawn by lot, and of all others. Raises TrainingError."""
    own = [i for i in range(len(dataset)) if not dataset.prior[i]]
    if count >= len(own):
        raise TrainingError(f"held_out is {count}, and there are {len(own)} pictures; leave some to learn from")
    away = sorted(int(i) for i in np.random.default_rng((seed, 13)).permutation(own)[:count])
    gone = set(away)
    return away, [i for i in range(len(dataset)) if i not in gone]


def _on(device: torch.device, encoded: Encoded) -> Encoded:
    text, pooled = encoded
    return text.to(device), None if pooled is None else pooled.to(device)


def dataset_at(recipe: PictureRecipe, source: Source, side: int, grid: int, output: Path, caption: str) -> Dataset:
    """The pictures and captions of a recipe, for a model made for squares of `side` pixels in steps of `grid`.

    Raises TrainingError.
    """
    side = recipe.size or side
    if side % grid:
        raise TrainingError(f"size is {side}; this model takes pictures in steps of {grid} pixels")
    cut = Cut(
        buckets=recipe.buckets, grid=grid, aspect=recipe.aspect, enlarge=recipe.enlarge, crop=recipe.cut,
        flip=recipe.flip, variants=recipe.variants, seed=recipe.seed,
    )  # fmt: skip
    prior = (recipe.class_data or str(class_folder(output))) if recipe.class_prompt else None
    dataset = open_dataset(
        source.data, (side, side), cut, prior=prior, caption=caption, prior_caption=recipe.class_prompt,
        scenes=recipe.scenes, seed=recipe.seed, lines=recipe.lines, index=output / INDEX,
    )  # fmt: skip
    parted(dataset, recipe.held_out, recipe.seed)  # told now, not when all is encoded
    return dataset


# --- class pictures


def class_folder(output: Path) -> Path:
    """Where a run keeps the class pictures that were drawn for it."""
    return output / "class"


def draw_class(pipe: Pipeline, prompt: str, count: int, seed: int, folder: Path, report: Report) -> None:
    """Draw what is missing of `count` pictures of a class into a folder, each with its own seed; killed, it goes on.

    Raises TrainingError where the folder holds pictures of another class or model; Stopped after SIGINT or SIGTERM.
    """
    made_of = json.dumps({"prompt": prompt, "model": pipe.model_hash, "seed": seed}) + "\n"
    note = folder / DRAWN
    if note.is_file():
        if note.read_bytes() != made_of.encode():
            raise TrainingError(
                f"{folder} holds class pictures of another prompt, model or seed; delete it, or use another folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as draft:
            draft.write_text(made_of, encoding="utf-8")
    with interruptible() as asked:
        for i in range(count):
            path = folder / f"{i:05d}.png"
            if path.is_file():
                continue
            if asked():
                raise Stopped(f"stopped after {i} of {count} class pictures in {folder}; the same command goes on")
            report(f"drawing class pictures, {i + 1} of {count}", None, 0)
            drawn = pipe.generate(prompt, seed=_seed(seed, i)).images[0]
            assert isinstance(drawn, Image.Image)
            with whole_file(path, TrainingError) as draft:
                drawn.save(draft, "PNG")


def _seed(seed: int, i: int) -> int:
    """A seed for class picture i that no sample sheet and no other class picture has."""
    return int(hashlib.sha256(f"class {step_seed(seed, i)}".encode()).hexdigest()[:8], 16)
