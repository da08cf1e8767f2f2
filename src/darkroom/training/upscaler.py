"""Training a network that enlarges: pixels and features of pictures that were made small in known ways (Dong et al.
2014, arXiv 1501.00092; Wang et al. 2021, "Real-ESRGAN", arXiv 2107.10833, sec. 3, for what pictures suffer on the way).

From nothing or from a finished network, on one's own pictures or on the built-in scenes. A picture is made small by a
filter; a part of them is blurred, made noisy and compressed as well, and another part goes through an autoencoder and
back, as whatever a latent diffusion model draws does. Of a run there is

RUN/step-*.pt, log.jsonl    the run (loop.py)
RUN/subject.json            the pictures and the network that it began with
RUN/upscaler.safetensors    the averaged weights, by Real-ESRGAN's names

Shapes: P pictures, K crops of each, C a crop's side in the small picture, S the scale, h w a small picture's size.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

from ..data.buckets import Cut, sizes
from ..data.dataset import FileDataset, open_dataset
from ..data.order import Order
from ..errors import TrainingError
from ..formats.upscaler import PART, open_upscaler, save_upscaler
from ..images import from_pixels, tiled, to_pixels
from ..models.autoencoder import Autoencoder
from ..models.upscaler import CLASSES, CompactConfig, RRDBConfig, SpanConfig, UpscalerConfig
from ..settings import setting
from ..toy.glyphs import Drawings
from ..toy.objects import CANVAS
from ..toy.scenes import draw_collage, draw_scene, render_scene
from . import memory
from .autoencoder import UNSEEN, WIDEST, large_enough
from .kinds import Report, Source
from .loop import step_seed
from .memory import Estimate, Sketch, empty, rows_of
from .parallel import Rank
from .perceptual import OWN, open_distance
from .pictures import parted
from .pretrained import open_autoencoder
from .recipe import COUNT, FRACTION, WEIGHT, LoopConfig, either, flag, listed, named, number, several, text, whole
from .stage import Stage

Pixels = NDArray[np.uint8]
FILE = "upscaler.safetensors"  # in a run: its result
SHOWN = 6  # pictures that are looked at on the way
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
ARCHITECTURES = ("compact", "rrdb", "span")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerRecipe(LoopConfig):
    """A network that enlarges, from nothing or from a finished one."""

    # The network; a finished one (--model) has its own.
    architecture: str = setting("compact", named(ARCHITECTURES), "Which network.")
    scale: int = setting(4, whole("1, 2, 4 or 8", lambda v: v in (1, 2, 4, 8)), "How many times a side becomes longer.")
    width: int = setting(32, whole("between 1 and 1024", lambda v: 1 <= v <= 1024), "Channels of a layer.")
    layers: int = setting(
        8, whole("between 1 and 256", lambda v: 1 <= v <= 256), "Layers of compact, blocks of rrdb; span has its own."
    )
    # The pictures.
    glyphs: str = setting(
        "", text(), "Folder of the objects' large drawings, NOUN.png (scenes); without it scenes are 128 pixels large."
    )
    size: int = setting(128, whole("16 or more", lambda v: 16 <= v <= 2048), "Side of the small pictures, about.")
    crop: int = setting(
        32, whole("8 or more", lambda v: 8 <= v <= 2048), "Side of the crops of them that are compared."
    )
    crops: int = setting(4, whole("between 1 and 64", lambda v: 1 <= v <= 64), "Crops of a picture.")
    places: int = setting(
        4, whole("between 1 and 64", lambda v: 1 <= v <= 64), "Places that are drawn for a crop: the busiest is taken."
    )
    turn: bool = setting(True, flag(), "Turn crops by quarters, and mirror half of them.")
    collages: float = setting(0.3, FRACTION, "Fraction of pictures that are no scenes but emoji anywhere (scenes).")
    held_out: int = setting(0, COUNT, "Pictures that are never learned from, for `validate_every`, `sample_every`.")
    # How they are made small.
    filters: tuple[str, ...] = setting(
        ("lanczos", "bicubic", "bilinear", "box"),
        several(listed(FILTERS), "one or more of " + ", ".join(FILTERS), lambda v: v and set(v) <= set(FILTERS)),
        "Among which is drawn.",
    )
    degraded: float = setting(0.3, FRACTION, "Fraction of pictures that suffer blur, noise and JPEG as well.")
    blur: float = setting(
        0.8, number("between 0 and 8", lambda v: 0 <= v <= 8), "Largest deviation of the blur, in small pixels."
    )
    noise: float = setting(
        6.0, number("between 0 and 64", lambda v: 0 <= v <= 64), "Largest deviation of the noise, of 255."
    )
    jpeg: int = setting(60, whole("between 1 and 100", lambda v: 1 <= v <= 100), "Lowest quality of JPEG; 100: none.")
    reconstructed: float = setting(
        0.0, FRACTION, "Fraction of pictures that go through an autoencoder and back, as what a model draws."
    )
    autoencoder: str = setting("embedded:model", text(), "Whose: as `darkroom.load(vae=...)` takes it.")
    # The loss.
    l1: float = setting(1.0, WEIGHT, "Weight of the mean absolute error of -1..1.")
    l2: float = setting(0.0, WEIGHT, "Weight of the mean squared error.")
    perceptual: float = setting(0.0, WEIGHT, "Weight of the distance in features.")
    perceptual_from: float = setting(0.0, FRACTION, "Fraction of the run after which it counts.")
    features: str = setting(
        OWN, text(), "Whose: \"own\" (of the embedded model's autoencoder), or LPIPS' files: vgg.pth,vgg16.pth."
    )
    # The result.
    stored: str = setting("float16", either(("float16", "float32")), "The numbers of its file.")

    @property
    def stage(self) -> type[UpscalerStage]:
        return UpscalerStage

    def check(self, workers: int) -> None:
        LoopConfig.check(self, workers)
        c = self
        if c.crop > c.size:
            raise TrainingError(f"crop is {c.crop}, more than the size of {c.size}")
        if not (c.l1 or c.l2 or c.perceptual):
            raise TrainingError("l1, l2 and perceptual are all 0; one of them must say what a good picture is")
        if c.perceptual and c.features != OWN and c.crop * c.scale < 32:
            raise TrainingError(f"crop is {c.crop}, which makes {c.crop * c.scale} pixels; LPIPS compares 32 or more")


def upscaler(preset: str = "cpu") -> UpscalerRecipe:
    """The embedded model's upscaler: Compact, 32 channels wide, for one processor core; or a wider one on a GPU."""
    if preset == "gpu":
        return UpscalerRecipe(
            steps=100_000, batch_size=16, lr=1e-3, optimizer="adamw", width=64, layers=16, crop=48, warmup=200,
            reconstructed=0.5, perceptual=0.02, perceptual_from=0.5, ema=0.999, device="cuda",
        )  # fmt: skip
    return UpscalerRecipe(
        steps=800, batch_size=4, lr=1e-3, optimizer="adamw", reconstructed=0.3, degraded=0.15, l2=2.0, warmup=30,
        ema=0.998,
    )  # fmt: skip


def config_of(recipe: UpscalerRecipe) -> UpscalerConfig:
    """The network of a recipe. Raises ValueError on one that can't be built."""
    c = recipe
    if c.architecture == "rrdb":
        unshuffle = max(4 // c.scale, 1)  # Real-ESRGAN's way to less than four times
        return RRDBConfig(
            width=c.width, growth=max(c.width // 2, 1), blocks=c.layers, unshuffle=unshuffle,
            doublings=(c.scale * unshuffle).bit_length() - 1,
        )  # fmt: skip
    if c.architecture == "span":
        return SpanConfig(width=c.width, scale=c.scale)
    return CompactConfig(width=c.width, layers=c.layers, scale=c.scale)


def network(config: UpscalerConfig, seed: int) -> nn.Module:
    """An untrained one. Its last layer is zero, so that Compact begins as what repeats pixels: what begins with noise
    learns first to be silent, and its last activations may never speak again (docs/LOG.md)."""
    torch.manual_seed(step_seed(seed, -1))
    built: nn.Module = CLASSES[type(config)](config)
    for module in built.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.25)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    last = [module for module in built.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
    return built


def started(source: str) -> nn.Module:
    """A finished network to go on from. Raises CheckpointError."""
    found: nn.Module = open_upscaler(source).build(PART, dtype=torch.float32)
    return found.train().requires_grad_(True)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of a batch."""

    small: Tensor  # [3, h, w] of 0..1
    large: Tensor  # [K, 3, S C, S C] of 0..1: crops, turned
    corners: tuple[tuple[int, int], ...]  # (y, x) of each in `small`
    turns: tuple[int, ...]  # of each: quarters, and 4 more where it is mirrored
    decoded: bool  # whether `small` is to go through the autoencoder first


@dataclass
class UpscalerStage(Stage):
    """A training of a network that enlarges. `distance` counts by the weight `perceptual`; None: it is left out."""

    title: ClassVar[str] = "upscaler"
    afterwards: ClassVar[Sequence[str]] = ("upscale", "picture.png", "--upscaler", "{}")
    others: ClassVar[Mapping[str, str]] = {
        "key": "was trained on other pictures, or they have changed",
        "network": "began with another network",
    }

    config: UpscalerRecipe
    upscaler: nn.Module
    pictures: Pictures
    distance: nn.Module | None = None
    autoencoder: Autoencoder | None = None
    source: Source = field(default_factory=Source)

    @classmethod
    def settled(cls, recipe: UpscalerRecipe, source: Source) -> UpscalerRecipe:
        if source.model is None:
            return recipe
        config = open_upscaler(source.model).upscaler_config
        return replace(recipe, scale=config.scale, width=config.width)

    @classmethod
    def open(cls, recipe: UpscalerRecipe, source: Source, output: Path, report: Report | None = None) -> Self:
        """`source.model`, where given, is the finished network to go on from."""
        pictures: Pictures = Scenes(recipe) if source.data is None else Own(recipe, source.data)
        built = network(config_of(recipe), recipe.seed) if source.model is None else started(source.model)
        distance = open_distance(recipe.features).to(recipe.device) if recipe.perceptual else None
        return cls(recipe, built.to(recipe.device), pictures, distance, _decoder(recipe), source)

    def __post_init__(self) -> None:
        self.hooks = ExitStack()
        self.modules = {"upscaler": self.upscaler}

    def belongs(self) -> dict[str, Any]:
        return {"key": self.pictures.key, "network": repr(self.upscaler.config)}

    @property
    def left_out(self) -> Sequence[tuple[Path, str]] | None:
        return self.pictures.left_out

    def batch(self, step: int, rank: Rank) -> list[Shown]:
        rows = rank.of(range(self.config.batch_size))
        return [
            self._shown(picture, (step, row)) for row, picture in zip(rows, self.pictures.of(step, rows), strict=True)
        ]

    def validation(self) -> list[list[Shown]]:
        return [[self._shown(picture, (-1, i))] for i, picture in enumerate(self.pictures.held_out())]

    def _shown(self, picture: Pixels, at: tuple[int, int]) -> Shown:
        """A picture [H, W, 3], sides multiples of the scale, made small, and its crops."""
        c = self.config
        rng = np.random.default_rng((c.seed, at[0] + 1, at[1], 3))
        decoded = bool(rng.random() < c.reconstructed)
        small = made_small(picture, c, rng, harmed=not decoded and rng.random() < c.degraded)
        corners, turns, crops = [], [], []
        for _ in range(c.crops):
            y, x = _busiest(small, c, rng)
            turn = int(rng.integers(8)) if c.turn else 0
            crop = from_pixels(picture[c.scale * y :, c.scale * x :][: c.scale * c.crop, : c.scale * c.crop])
            corners.append((y, x))
            turns.append(turn)
            crops.append(turned(crop / 2 + 0.5, turn))
        return Shown(from_pixels(small) / 2 + 0.5, torch.stack(crops), tuple(corners), tuple(turns), decoded)

    def loss(self, batch: list[Shown], step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        given = self._given(batch).to(c.device)
        wanted = torch.cat([shown.large for shown in batch]).to(c.device)
        made = self.upscaler(given).float()
        psnr = -10 * torch.log10(F.mse_loss(made.detach().clamp(0, 1), wanted))
        # Errors as of -1..1, which other losses here are of.
        loss = 2 * c.l1 * F.l1_loss(made, wanted) + 4 * c.l2 * F.mse_loss(made, wanted)
        figures = {"psnr": psnr}
        if self.distance is not None and step >= c.perceptual_from * c.steps:
            distance = self.distance(2 * wanted - 1, 2 * made - 1).mean()
            figures["distance"] = distance.detach()
            loss = loss + c.perceptual * distance
        elif self.distance is not None:
            figures["distance"] = torch.zeros((), device=made.device)
        return loss, figures

    @torch.no_grad()
    def _given(self, batch: Sequence[Shown]) -> Tensor:
        """The crops of the small pictures: [P K, 3, C, C]."""
        c, found = self.config, []
        for shown in batch:
            small = shown.small
            if shown.decoded and self.autoencoder is not None:
                small = through(self.autoencoder, small, c.device)
            for (y, x), turn in zip(shown.corners, shown.turns, strict=True):
                found.append(turned(small[:, y : y + c.crop, x : x + c.crop], turn))
        return torch.stack(found)

    def sheet(self) -> Image.Image:
        """Pictures that no step shows: enlarged by Lanczos, by the network, and as they are."""
        rows = []
        for i, picture in enumerate(self.pictures.held_out()):
            shown = self._shown(picture, (-1, i))
            small = shown.small
            if shown.decoded and self.autoencoder is not None:
                small = through(self.autoencoder, small, self.config.device)
            with torch.no_grad():
                made = self.upscaler(small[None].to(self.config.device))[0].float().cpu()
            plain = Image.fromarray(to_pixels(2 * small.float().cpu() - 1))
            size = picture.shape[1::-1]
            rows.append([plain.resize(size, FILTERS["lanczos"]), Image.fromarray(to_pixels(2 * made - 1)),
                         Image.fromarray(picture)])  # fmt: skip
        return tiled(rows)

    def write(self, output: Path, report: Report) -> Path:
        c = self.config
        return save_upscaler(
            output / FILE, self.upscaler.cpu().state_dict(), cast(Any, self.upscaler).config, getattr(torch, c.stored)
        )

    @classmethod
    def estimate(cls, recipe: UpscalerRecipe, model: str | None, world: int) -> Estimate:
        distance = open_distance(recipe.features) if recipe.perceptual else None
        autoencoder = _decoder(replace(recipe, device="cpu"))
        with Sketch().inside():
            config = config_of(recipe) if model is None else open_upscaler(model).upscaler_config
            built: nn.Module = CLASSES[type(config)](config)
            frozen = [each for each in (distance, autoencoder) if each is not None]
            for each in frozen:
                empty(each)
            shown = replace(recipe, device="cpu", perceptual_from=0.0)
            stage = cls(shown, built, None, distance, autoencoder)  # type: ignore[arg-type]
        c, large = recipe, recipe.scale * recipe.crop
        batch = [
            Shown(torch.zeros(3, c.size, c.size), torch.zeros(c.crops, 3, large, large), ((0, 0),) * c.crops,
                  (0,) * c.crops, c.reconstructed > 0)
            for _ in range(rows_of(recipe, world))
        ]  # fmt: skip
        return memory.estimate(recipe, stage.modules, frozen, lambda: stage.loss(batch, 0, Rank())[0], world)


def _busiest(small: Pixels, recipe: UpscalerRecipe, rng: np.random.Generator) -> tuple[int, int]:
    """Of some places of a crop, (y, x), the one whose pixels differ most: much of a picture is plain ground."""
    high, wide = (side - recipe.crop + 1 for side in small.shape[:2])
    places = [(int(rng.integers(high)), int(rng.integers(wide))) for _ in range(recipe.places)]
    return max(places, key=lambda at: float(small[at[0] :, at[1] :][: recipe.crop, : recipe.crop].std()))


def _decoder(recipe: UpscalerRecipe) -> Autoencoder | None:
    if not recipe.reconstructed:
        return None
    return open_autoencoder(recipe.autoencoder).to(recipe.device).eval().requires_grad_(False)


def through(autoencoder: Autoencoder, small: Tensor, device: str) -> Tensor:
    """A picture [3, h, w] of 0..1 to a latent's mean and back, rounded as a saved picture is."""
    height, width = small.shape[-2:]
    grid = autoencoder.config.downscale
    padded = F.pad(small[None], (0, -width % grid, 0, -height % grid), mode="replicate").to(device)
    back = autoencoder(2 * padded - 1)[0, :, :height, :width].float() / 2 + 0.5
    rounded: Tensor = (255 * back).round() / 255
    return rounded.clamp(0, 1)


def turned(picture: Tensor, turn: int) -> Tensor:
    """[3, H, W] turned by quarters, mirrored first from 4 on."""
    return (picture.flip(-1) if turn >= 4 else picture).rot90(turn % 4, (-2, -1))


def made_small(picture: Pixels, recipe: UpscalerRecipe, rng: np.random.Generator, harmed: bool) -> Pixels:
    """A picture [H, W, 3] at a `scale`-th of its size, as the recipe says; `harmed`: blurred, noisy, compressed."""
    c = recipe
    large = Image.fromarray(picture)
    if harmed and c.blur:
        large = large.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, c.blur)) * c.scale))
    chosen = FILTERS[c.filters[int(rng.integers(len(c.filters)))]]
    small = large.resize((large.width // c.scale, large.height // c.scale), chosen)
    if harmed and c.noise:
        deviation = rng.uniform(0, c.noise)
        noisy = np.asarray(small).astype(np.float32) + deviation * rng.standard_normal(
            (*small.size[::-1], 3), np.float32
        )
        small = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if harmed and c.jpeg < 100:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=int(rng.integers(c.jpeg, 101)))
        small = Image.open(file).convert("RGB")
    return np.array(small)


# --- pictures


class Pictures(ABC):
    """Large pictures for every step: a pure function of the recipe and the step. Their sides are multiples of the
    scale, and hold a crop."""

    key = "scenes"  # a hash of the pictures; the built-in ones have none
    left_out: Sequence[tuple[Path, str]] | None = None

    @abstractmethod
    def of(self, step: int, rows: Sequence[int]) -> list[Pixels]:
        """Some rows of a step, each [H, W, 3]."""

    @abstractmethod
    def held_out(self) -> list[Pixels]:
        """Pictures that no step shows, always the same; where none are held out, some others."""


class Scenes(Pictures):
    """Built-in scenes and collages, of large drawings where the recipe names their folder."""

    def __init__(self, recipe: UpscalerRecipe) -> None:
        self.recipe = recipe
        c = recipe
        self.large = Drawings(Path(c.glyphs), c.scale) if c.glyphs else None
        side = CANVAS * c.scale if c.glyphs else CANVAS
        if side < c.crop * c.scale:
            raise TrainingError(
                f"crop is {c.crop}, {c.crop * c.scale} pixels of scenes of {side}: set glyphs, or a smaller crop"
            )
        if c.glyphs and not Path(c.glyphs).is_dir():
            raise TrainingError(
                f"glyphs is {c.glyphs[:200]!r}, which is no folder; docs/upscaling.md says how one is made"
            )
        self.others = self.large.others if self.large else ()

    def of(self, step: int, rows: Sequence[int]) -> list[Pixels]:
        c, found = self.recipe, []
        for row in rows:
            index = step * c.batch_size + row
            collage = np.random.default_rng((c.seed, index, 4)).random() < c.collages
            found.append(
                draw_collage(c.seed, index, self.others, self.large)
                if collage
                else render_scene(draw_scene(c.seed, index), large=self.large)
            )
        return found

    def held_out(self) -> list[Pixels]:
        count = self.recipe.held_out or SHOWN
        scenes = (draw_scene(self.recipe.seed, UNSEEN + i, held_out=True) for i in range(count))
        return [render_scene(scene, large=self.large) for scene in scenes]


class Own(Pictures):
    """Pictures of one's own, each scaled down to about `size` times `scale` pixels a side in its own shape.

    They are never enlarged: those that hold no crop are left out. Raises TrainingError where none is left.
    """

    def __init__(self, recipe: UpscalerRecipe, data: str) -> None:
        c = recipe
        side, crop = c.size * c.scale, c.crop * c.scale
        fitting = [s for s in sizes((side, side), c.scale, WIDEST) if min(s) >= crop]
        aspect = max(max(s) / min(s) for s in fitting) + 1e-6
        cut = Cut(
            buckets=True, grid=c.scale, aspect=aspect, enlarge=False, crop="random", flip=False, variants=0, seed=c.seed
        )
        dataset = open_dataset(data, (side, side), cut)
        assert isinstance(dataset, FileDataset)
        self.recipe, self.dataset = recipe, large_enough(dataset, crop)
        self.key, self.left_out = self.dataset.key, self.dataset.left_out
        self.away, self.learned = parted(self.dataset, c.held_out, c.seed)
        pairs = [(self.dataset.sizes[i], self.dataset.repeats[i]) for i in self.learned]
        self.order = Order([size for size, _ in pairs], [n for _, n in pairs], c.batch_size, c.seed)

    def of(self, step: int, rows: Sequence[int]) -> list[Pixels]:
        chosen = self.order.rows(step)
        found = []
        for row in rows:
            i = self.learned[int(chosen[row])]
            found.append(self._even(self.dataset.picture(i, self.dataset.version(i, step, self.recipe.seed))))
        return found

    def held_out(self) -> list[Pixels]:
        return [self._even(self.dataset.picture(i)) for i in self.away or self.learned[:SHOWN]]

    def _even(self, picture: Pixels) -> Pixels:
        """Without the last rows and columns that are no whole small pixel."""
        height, width = (side // self.recipe.scale * self.recipe.scale for side in picture.shape[:2])
        return picture[:height, :width]
