"""Training an autoencoder: reconstruction in pixels and in features, a whisper of KL, and a discriminator
(Rombach et al. 2022, arXiv 2112.10752, sec. 3.1 and app. G; Esser et al. 2021, arXiv 2012.09841, sec. 3.1).

From nothing or from a finished one, on the built-in scenes or on one's own pictures: crops, and whole pictures at the
end. Of a run there is

RUN/step-*.pt, log.jsonl    the run (loop.py)
RUN/subject.json            the pictures and the autoencoder that it began with
RUN/vae/                    the averaged weights, their latents scaled, as diffusers opens it

Shapes: N pictures, H W height and width of a crop, C latent channels, h w latent size.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from ..data.buckets import Cut, sizes
from ..data.dataset import Dataset, FileDataset, open_dataset
from ..data.order import Order
from ..embedded import MODEL
from ..errors import Error, TrainingError
from ..files import owned, read_bytes, whole_file
from ..formats.tensors import open_tensors
from ..formats.vae import open_vae, save_vae
from ..images import tiled, to_pixels
from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig
from ..models.discriminator import PatchDiscriminator, smallest
from ..settings import setting
from ..toy.glyphs import Glyph, find_font, other_emoji
from ..toy.objects import CANVAS, GRID, SIZES
from ..toy.scenes import draw_collage, draw_scene, render_scene
from . import memory, state
from .ema import result
from .kinds import Report, Source
from .latents import stacked
from .loop import step_seed
from .memory import Estimate, Sketch, empty, rows_of
from .parallel import Rank
from .perceptual import OWN, adaptive_weight, discriminator_loss, generator_loss, open_distance
from .pictures import parted
from .pretrained import open_autoencoder
from .recipe import COUNT, FRACTION, RATE, WEIGHT, LoopConfig, flag, named, number, recipe_of, several, text, whole
from .run import noted
from .scaling import fold, measure, tell
from .stage import Stage

Pixels = NDArray[np.uint8]
FOLDER = "vae"  # in a run: its result as diffusers opens it
WEIGHTS = "diffusion_pytorch_model.safetensors"  # in that
OLD = "autoencoder.safetensors"  # in runs of earlier versions: the same in native names, with its configuration
OTHERS = "others.json"  # in a run on the built-in scenes: whether their collages show other emoji
MEASURED = 512  # pictures over which latents are measured
WIDEST = 2.0  # the longest side of a picture's bucket, in its shortest
SHOWN = 8  # pictures that are looked at on the way, where none are held out
UNSEEN = 10_000_000  # the scene from which those are counted that nothing learns from
SCALINGS = ("folded", "factor", "kept")
game = partial(setting, beside=(("adversarial",),))  # of the discriminator


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe(LoopConfig):
    """An autoencoder from nothing, or from a finished one; on the built-in scenes or on one's own pictures."""

    # The network; a finished one (--model) has its own.
    widths: tuple[int, ...] = setting(
        (16, 32, 96, 192), several(whole()), "Of its levels: n levels make latents of a 2^(n-1)th the size."
    )
    layers: int = setting(1, whole(), "Of a level.")
    groups: int = setting(4, whole(), "Of group norms.")
    latent_channels: int = setting(4, whole(), "Of a latent.")
    # The pictures.
    size: int = setting(128, whole(), "Side of the square whose pixels a whole picture has about as many of.")
    crop: int = setting(64, whole(), "Side of the crops until `whole_from`.")
    flip: bool = setting(False, flag(), "Mirror half of one's own pictures.", of="pictures")
    whole_from: float = setting(
        0.8, FRACTION, "Fraction of the run after which whole pictures are used (as many pixels a batch)."
    )
    decoder_from: float = setting(
        1.0, FRACTION, "Fraction of the run after which only the decoder goes on, and the latents are final."
    )
    held_out: int = setting(0, COUNT, "Pictures that are never learned from, for `validate_every` and `sample_every`.")
    collages: float = setting(0.2, FRACTION, "Fraction of pictures off the grid, with emoji not of ours.", of="scenes")
    # The loss.
    kl: float = setting(1e-6, number("0 or more", lambda v: v >= 0), "Weight of the KL term, a sum over a latent.")
    l2: float = setting(1.0, WEIGHT, "Weight of the mean squared error.")
    l1: float = setting(0.1, WEIGHT, "Weight of the mean absolute error.")
    perceptual: float = setting(0.0, WEIGHT, "Weight of the distance in features.")
    features: str = setting(
        OWN, text(), "Whose: \"own\" (the embedded model's), or LPIPS' vgg.pth,vgg16.pth.", beside=(("perceptual",),)
    )
    adversarial: float = setting(
        0.0, WEIGHT, "Weight of the discriminator beside the reconstruction, times the adaptive one."
    )
    adversarial_from: float = game(0.5, FRACTION, "Fraction of the run after which the discriminator plays.")
    discriminator_width: int = game(
        64,
        whole("between 4 and 1024, a multiple of 4", lambda v: 4 <= v <= 1024 and v % 4 == 0),
        "Of its first layer.",
    )
    discriminator_layers: int = game(
        3,
        whole("between 1 and 6", lambda v: 1 <= v <= 6),
        "That halve: an answer sees 70 x 70 pixels with 3, 34 x 34 with 2.",
    )
    discriminator_lr: float = game(2e-4, RATE, "Its learning rate.")
    # The result.
    scaling: str = setting(
        "folded",
        named(SCALINGS),
        'The latents\' deviation of 1: in the convolutions, as a "factor" beside them, or "kept".',
    )

    @property
    def stage(self) -> type[AutoencoderStage]:
        return AutoencoderStage

    @property
    def whole_rows(self) -> int:
        """Whole pictures in a step: as many pixels as its crops have."""
        return self.batch_size * self.crop**2 // self.size**2

    def check(self, workers: int) -> None:
        LoopConfig.check(self, workers)
        c = self
        if not c.widths or len(c.widths) > 8:
            raise TrainingError(f"widths is {c.widths!r}; it must be between 1 and 8 widths, finest level first")
        grid = 2 ** (len(c.widths) - 1)
        for name in ("crop", "size"):
            value = getattr(c, name)
            if not grid <= value <= 8192 or value % grid:
                raise TrainingError(f"{name} is {value}; it must be a multiple of {grid} for {len(c.widths)} widths")
        if c.crop > c.size:
            raise TrainingError(f"crop is {c.crop}, more than the size of {c.size}")
        parts = workers * c.accumulate
        if c.whole_from < 1 and (c.whole_rows < 1 or c.whole_rows % parts):
            raise TrainingError(
                f"batch_size is {c.batch_size}, which makes {c.whole_rows} whole pictures of {c.size} pixels a side "
                f"for {workers} workers and accumulate={c.accumulate}; take a multiple of "
                f"{-(-(c.size**2) // c.crop**2) * parts}"
            )
        if not (c.l1 or c.l2 or c.perceptual):
            raise TrainingError("l1, l2 and perceptual are all 0; one of them must say what a good picture is")
        if c.perceptual and c.features != OWN and c.crop < 32:
            raise TrainingError(f"crop is {c.crop}; LPIPS compares pictures of 32 pixels or more")
        if c.adversarial:
            self._check_discriminator()

    def _check_discriminator(self) -> None:
        c = self
        if c.adversarial_from >= 1:
            raise TrainingError(
                f"adversarial is {c.adversarial}, and adversarial_from is 1: the discriminator never plays"
            )
        if c.sharding != "none":
            raise TrainingError(
                f"adversarial is {c.adversarial}, and its weight needs the whole of the last layer, which sharding="
                f"{c.sharding} spreads; set sharding=none"
            )
        if c.crop < (least := smallest(c.discriminator_layers)):
            raise TrainingError(
                f"crop is {c.crop}; with {c.discriminator_layers} discriminator_layers it must be {least} or more"
            )


def autoencoder(preset: str = "cpu") -> AutoencoderRecipe:
    """The embedded model's autoencoder: for two CPU cores; or for a large GPU, with larger batches and longer."""
    if preset == "gpu":
        return AutoencoderRecipe(
            steps=60_000, batch_size=64, lr=0.005, optimizer="muon", cooldown=0.4, warmup=200, ema=0.9995, device="cuda"
        )
    return AutoencoderRecipe(
        steps=6000, batch_size=16, lr=0.005, optimizer="muon", whole_from=0.8, cooldown=0.4, warmup=50
    )


def network(recipe: AutoencoderRecipe) -> Autoencoder:
    """The untrained network of a recipe."""
    config = AutoencoderConfig(
        block_out_channels=recipe.widths, layers_per_block=recipe.layers, norm_num_groups=recipe.groups,
        latent_channels=recipe.latent_channels, sample_size=recipe.size, scaling_factor=1.0, force_upcast=False,
    )  # fmt: skip
    torch.manual_seed(step_seed(recipe.seed, -1))
    return Autoencoder(config)


def sketched(recipe: AutoencoderRecipe, model: str | None = None) -> Autoencoder:
    """The network that a run begins with, without values."""
    with Sketch().inside():
        return network(recipe) if model is None else Autoencoder(config_of(model))


@dataclass
class AutoencoderStage(Stage):
    """An autoencoder's training.

    `distance`, of wanted and given pictures to [N], counts by the recipe's weight `perceptual`; None: it is left out.
    """

    afterwards: ClassVar[Sequence[str]] = ("evaluate", "--vae", "{}", "--metrics", "reconstruction")
    title: ClassVar[str] = "autoencoder"
    writing: ClassVar[str] = "normalising latents"
    others: ClassVar[Mapping[str, str]] = {
        "key": "was trained on other pictures, or they have changed",
        "network": "began with another autoencoder",
    }
    unnoted: ClassVar[Mapping[str, Any]] = {"key": "scenes", "network": None}

    config: AutoencoderRecipe
    autoencoder: Autoencoder
    crops: Crops
    distance: nn.Module | None = None
    source: Source = field(default_factory=Source)
    discriminator: PatchDiscriminator | None = field(init=False, default=None)

    @classmethod
    def settled(cls, recipe: AutoencoderRecipe, source: Source) -> AutoencoderRecipe:
        if source.model is None and recipe.scaling == "kept":
            raise TrainingError("scaling is 'kept', and nothing is there to keep: name an autoencoder by --model")
        if source.model is None and recipe.decoder_from == 0:
            raise TrainingError(
                "decoder_from is 0, and the encoder would never learn: name an autoencoder by --model, or set "
                "decoder_from"
            )
        if recipe.decoder_from == 0 and recipe.scaling != "kept":
            raise TrainingError(
                f"decoder_from is 0, so latents stay what they were, and scaling {recipe.scaling!r} changes them; set "
                "scaling=kept"
            )
        if source.model is None:
            return recipe
        c = _start(source.model).config
        return replace(
            recipe, widths=c.block_out_channels, layers=c.layers_per_block, groups=c.norm_num_groups,
            latent_channels=c.latent_channels,
        )  # fmt: skip

    @classmethod
    def open(cls, recipe: AutoencoderRecipe, source: Source, output: Path, report: Report | None = None) -> Self:
        """`source.model`, where given, is the finished autoencoder to go on from: as `darkroom.load(vae=...)` takes it,
        or a run of ours."""
        crops: Crops
        if source.data is None:
            crops = SceneCrops(recipe, _with_others(output, report is not None))
        else:
            crops = open_crops(recipe, source.data)
        built = network(recipe) if source.model is None else _start(source.model)
        distance = open_distance(recipe.features).to(recipe.device) if recipe.perceptual else None
        return cls(recipe, built.to(recipe.device), crops, distance, source)

    def __post_init__(self) -> None:
        c = self.config
        self.hooks = ExitStack()
        self.modules = {"autoencoder": self.autoencoder}
        if c.adversarial:
            torch.manual_seed(step_seed(c.seed, -2))
            channels = self.autoencoder.config.out_channels
            built = PatchDiscriminator(channels, c.discriminator_width, c.discriminator_layers)
            self.discriminator = memory.moved(built, torch.device(c.device))

    def belongs(self) -> dict[str, Any]:
        """Beside what must stay the same: where pictures and autoencoder were found, for whoever finishes the run."""
        data, model = self.source.data, self.source.model
        return {
            "data": None if data is None else str(Path(data).absolute()),
            "key": self.crops.key,
            "model": model,
            "network": None if model is None else self.autoencoder.config.to_diffusers(),
        }

    @property
    def left_out(self) -> Sequence[tuple[Path, str]] | None:
        return self.crops.left_out

    @property
    def discriminators(self) -> dict[str, nn.Module]:
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    @property
    def discriminator_lr(self) -> float:
        return self.config.discriminator_lr

    def batch(self, step: int, rank: Rank) -> Tensor:
        """Pictures [N, 3, H, W] in -1..1."""
        return self.crops.batch(step, rank)

    def validation(self) -> list[Tensor]:
        """Whole pictures that no step shows, one by one. The discriminator has no part in their loss."""
        return [stacked([picture]) for picture in self.crops.held_out()]

    def sheet(self) -> Image.Image:
        """Eight of them above what the autoencoder makes of their latents' means."""
        shown = [stacked([picture]) for picture in islice(self.crops.held_out(), SHOWN)]
        with torch.no_grad():
            back = [self.autoencoder(picture.to(self.config.device)).cpu() for picture in shown]
        return tiled([[Image.fromarray(to_pixels(picture[0])) for picture in row] for row in (shown, back)])

    def loss(self, batch: Tensor, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        pictures = batch.to(c.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and step < c.decoder_from * c.steps):
            mean, logvar = self.autoencoder.encode(pictures).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        noise = rank.of(torch.randn(len(mean) * rank.world_size, *mean.shape[1:])).to(mean.device)
        y = self.autoencoder.decode(mean + torch.exp(0.5 * logvar) * noise).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        psnr = -10 * torch.log10(F.mse_loss(y.detach().clamp(-1, 1), pictures) / 4)
        figures = {"psnr": psnr, "kl": kl.detach(), "deviation": mean.detach().std()}
        reconstruction = c.l2 * F.mse_loss(y, pictures) + c.l1 * F.l1_loss(y, pictures)
        if self.distance is not None:
            distance = self.distance(pictures, y).mean()
            figures["distance"] = distance.detach()
            reconstruction = reconstruction + c.perceptual * distance
        loss = reconstruction + c.kl * kl
        if self.discriminator is not None and torch.is_grad_enabled():
            adversarial, more = self._adversarial(pictures, y, reconstruction, step)
            loss, figures = loss + adversarial, figures | more
        return loss, figures

    def _adversarial(
        self, pictures: Tensor, y: Tensor, reconstruction: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What both sides minimise, and figures of it: nothing before `adversarial_from`.

        Both learn in the same step from the same pictures: the autoencoder's loss goes through the discriminator's
        present weights without moving them, the discriminator's sees pictures without a way back.
        """
        c, judge = self.config, self.discriminator
        assert judge is not None
        nothing = torch.zeros((), device=y.device)
        if step < c.adversarial_from * c.steps:
            return nothing, dict.fromkeys(("deception", "weight", "discriminator"), nothing)
        still = {name: p.detach() for name, p in judge.named_parameters()}
        deceiving = generator_loss(functional_call(judge, still, (y,)))
        weight = adaptive_weight(reconstruction, deceiving, self.autoencoder.decoder.conv_out.weight)
        losing = discriminator_loss(judge(pictures), judge(y.detach()))
        figures = {"deception": deceiving.detach(), "weight": weight, "discriminator": losing.detach()}
        return c.adversarial * weight * deceiving + losing, figures

    def write(self, output: Path, report: Report) -> Path:
        if _finished_file(output) is None:
            _save(self.autoencoder.cpu(), self.config, self.crops, output)
        return output / FOLDER

    @classmethod
    def estimate(cls, recipe: AutoencoderRecipe, model: str | None, world: int) -> Estimate:
        """On crops (later batches of whole pictures have as many pixels), its discriminator in play."""
        distance = open_distance(recipe.features) if recipe.perceptual else None
        start = None if model is None else config_of(model)
        with Sketch().inside():
            built = network(recipe) if start is None else Autoencoder(start)
            if distance is not None:
                empty(distance)
            shown = replace(recipe, device="cpu", adversarial_from=0.0)
            stage = cls(shown, built, crops=None, distance=distance)  # type: ignore[arg-type]
        pictures = torch.zeros(rows_of(recipe, world), 3, recipe.crop, recipe.crop)
        return memory.estimate(
            recipe, {**stage.modules, **stage.discriminators}, () if distance is None else (distance,),
            lambda: stage.loss(pictures, 0, Rank())[0], world,
        )  # fmt: skip


# --- pictures


class Crops(ABC):
    """Pictures for every step: a pure function of the recipe and the step."""

    key = "scenes"  # a hash of the pictures; the built-in ones have none
    left_out: Sequence[tuple[Path, str]] | None = None

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe

    def batch(self, step: int, rank: Rank) -> Tensor:
        """This process's part of a step's pictures: [N, 3, H, W] in -1..1, of one size.

        Until `whole_from` they are crops; then whole pictures, of which there are fewer: as many pixels as before.
        """
        c = self.recipe
        whole = step >= c.whole_from * c.steps
        return stacked(self.pictures(step, rank.of(range(c.whole_rows if whole else c.batch_size)), whole))

    @abstractmethod
    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        """Some rows of a step's batch, each [H, W, 3]."""

    @abstractmethod
    def some(self, count: int) -> Iterator[Pixels]:
        """At most so many whole pictures [H, W, 3], always the same ones, to measure latents over."""

    @abstractmethod
    def held_out(self) -> Iterator[Pixels]:
        """Whole pictures [H, W, 3] that no step shows, always the same; where none are held out, some others."""


class SceneCrops(Crops):
    """Built-in scenes, and collages of emoji off the grid: of our objects, and of others too if `with_others`.

    Raises TrainingError on a recipe that the scenes are too small for.
    """

    def __init__(self, recipe: AutoencoderRecipe, with_others: bool = False) -> None:
        super().__init__(recipe)
        self.with_others = with_others
        if recipe.size != CANVAS:
            raise TrainingError(f"size is {recipe.size}; the built-in scenes have {CANVAS} pixels: name a folder")
        if recipe.crop % GRID:
            raise TrainingError(f"crop is {recipe.crop}; of the built-in scenes it must be a multiple of {GRID}")

    @cached_property
    def others(self) -> Sequence[Glyph]:
        """Rendered when a step first needs them: that takes seconds, and a finished run doesn't need them."""
        return other_emoji(find_font(), SIZES["large"]) if self.with_others else ()

    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        c = self.recipe
        found = []
        for i in rows:
            # Indices never depend on the size of an earlier batch, so that any step can be made on its own.
            index = step * c.batch_size + i
            rng = np.random.default_rng((c.seed, index, 2))
            if rng.random() < c.collages:
                picture = draw_collage(c.seed, index, self.others)
                x, y = (int(v) for v in rng.integers(CANVAS - c.crop + 1, size=2))
            else:
                scene = draw_scene(c.seed, index)
                picture = render_scene(scene)
                o = scene.objects[int(rng.integers(len(scene.objects)))]
                x, y = (_around(rng, at, o.side, c.crop) for at in (o.x, o.y))
            found.append(picture if whole else picture[y : y + c.crop, x : x + c.crop])
        return found

    def some(self, count: int) -> Iterator[Pixels]:
        return (render_scene(draw_scene(self.recipe.seed, UNSEEN + i)) for i in range(count))

    def held_out(self) -> Iterator[Pixels]:
        return self.some(self.recipe.held_out or SHOWN)


class PictureCrops(Crops):
    """Pictures of one's own, each scaled to about `size` x `size` pixels in its own shape, and crops of them."""

    def __init__(self, recipe: AutoencoderRecipe, dataset: Dataset) -> None:
        super().__init__(recipe)
        self.dataset = dataset
        self.key, self.left_out = dataset.key, dataset.left_out
        self.away, self.learned = parted(dataset, recipe.held_out, recipe.seed)
        sizes, repeats = [dataset.sizes[i] for i in self.learned], [dataset.repeats[i] for i in self.learned]
        self.order = Order(sizes, repeats, recipe.batch_size, recipe.seed)

    def pictures(self, step: int, rows: Sequence[int], whole: bool) -> list[Pixels]:
        c = self.recipe
        chosen = self.order.rows(step)
        found = []
        for row in rows:
            i = self.learned[int(chosen[row])]
            picture = self.dataset.picture(i, self.dataset.version(i, step, c.seed))
            if not whole:
                rng = np.random.default_rng((c.seed, step, row, 2))
                y, x = (int(rng.integers(side - c.crop + 1)) for side in picture.shape[:2])
                picture = picture[y : y + c.crop, x : x + c.crop]
            found.append(picture)
        return found

    def some(self, count: int) -> Iterator[Pixels]:
        every = max(len(self.learned) // count, 1)
        return (self.dataset.picture(i) for i in self.learned[::every][:count])

    def held_out(self) -> Iterator[Pixels]:
        return (self.dataset.picture(i) for i in self.away or self.learned[:SHOWN])


def open_crops(recipe: AutoencoderRecipe, data: str) -> PictureCrops:
    """Pictures of a folder or of shards, for an autoencoder.

    Each is scaled down to a size of about `size` x `size` pixels, in its own shape as far as a crop fits into it.
    Pictures are never enlarged: those smaller than a crop are left out. Raises TrainingError where none is left.
    """
    grid = 2 ** (len(recipe.widths) - 1)
    fitting = [s for s in sizes((recipe.size, recipe.size), grid, WIDEST) if min(s) >= recipe.crop]
    aspect = max(max(s) / min(s) for s in fitting) + 1e-6
    cut = Cut(
        buckets=True, grid=grid, aspect=aspect, enlarge=False, crop="random", flip=recipe.flip, variants=0,
        seed=recipe.seed,
    )  # fmt: skip
    dataset = open_dataset(data, (recipe.size, recipe.size), cut)
    assert isinstance(dataset, FileDataset)
    return PictureCrops(recipe, large_enough(dataset, recipe.crop))


def large_enough(dataset: FileDataset, crop: int) -> FileDataset:
    """The dataset of at least a crop's size."""
    good = [i for i, size in enumerate(dataset.sizes) if min(size) >= crop]
    if len(good) == len(dataset):
        return dataset
    small = [e for e, size in zip(dataset.examples, dataset.sizes, strict=True) if min(size) < crop]
    if not good:
        e = small[0]
        raise TrainingError(
            f"no picture holds a crop of {crop} pixels; {e.name[-100:]!r} has {e.width}x{e.height}: set crop, or take "
            "larger pictures"
        )
    told = [(e.path, f"{e.width}x{e.height} pixels hold no crop of {crop}") for e in small]
    chosen: dict[str, Any] = {
        name: [getattr(dataset, name)[i] for i in good]
        for name in ("captions", "repeats", "sizes", "digests", "prior", "examples")
    }
    return dataclasses.replace(dataset, **chosen, left_out=[*dataset.left_out, *told])


def _around(rng: np.random.Generator, at: int, side: int, crop: int) -> int:
    """A crop's corner on the grid so that the crop meets the object at `at`."""
    low, high = max(0, at - crop // 2), min(CANVAS - crop, at + side - crop // 2)
    return (
        int(rng.integers(low // GRID, high // GRID + 1)) * GRID
        if high > low
        else min(low, CANVAS - crop) // GRID * GRID
    )


# --- the result


def is_run(folder: Path) -> bool:
    """Whether a folder is an autoencoder's run, finished or not."""
    return _finished_file(folder) is not None or bool(state.checkpoints(folder))


def config_of(model: str | None) -> AutoencoderConfig:
    """What the autoencoder is that a run or a model has (None: the embedded one)."""
    if model is not None and is_run(Path(model)):
        return finished(Path(model)).config
    config = open_vae(str(MODEL) if model is None else model).config("autoencoder")
    assert isinstance(config, AutoencoderConfig)
    return config


def finished(run: Path) -> Autoencoder:
    """The average of a run's newest checkpoint, its latents scaled, frozen: what is kept in `run`/vae, made if that is
    missing or older than the checkpoint, so that later stages all see the same weights. Raises TrainingError,
    CheckpointError.
    """
    if (file := _finished_file(run)) is not None:
        return _read_old(file) if file.name == OLD else _frozen(open_autoencoder(str(run / FOLDER)))
    return finish(run)


def finish(run: Path) -> Autoencoder:
    """Make the result of a run out of its newest checkpoint. Raises TrainingError."""
    saved, before = result(run), noted(run)
    if set(saved["ema"]) != {"autoencoder"}:
        raise TrainingError(f"{run} is no autoencoder's run, but one of {', '.join(sorted(saved['ema']))}")
    recipe = recipe_of(AutoencoderRecipe, saved["recipe"])
    given = before.get("network")
    built = network(recipe) if given is None else Autoencoder(AutoencoderConfig.from_diffusers(given))
    state.check_fit({"autoencoder": built}, saved["ema"], run)
    built.load_state_dict(saved["ema"]["autoencoder"])
    data = before.get("data")
    return _save(built, recipe, SceneCrops(recipe) if data is None else open_crops(recipe, data), run)


def _save(autoencoder: Autoencoder, recipe: AutoencoderRecipe, crops: Crops, run: Path) -> Autoencoder:
    """Scale the latents of averaged weights, in place, and keep them as the result of a run."""
    _frozen(autoencoder)
    if recipe.scaling != "kept":
        moments = measure(autoencoder, crops.some(MEASURED))
        (fold if recipe.scaling == "folded" else tell)(autoencoder, moments)
    step = {"step": str(state.steps_done(run))}
    with owned(run, "run", TrainingError):
        save_vae(run / FOLDER, autoencoder.state_dict(), autoencoder.config, metadata=step)
    return autoencoder


def _finished_file(run: Path) -> Path | None:
    """The weights of a run's result, if they are as new as its newest checkpoint (and if there is none any more)."""
    for path in (run / FOLDER / WEIGHTS, run / OLD):
        if path.is_file():
            with open_tensors(path) as file:
                made = int(file.metadata.get("step", -1))
            if made >= 0 and state.steps_done(run) in (made, 0):
                return path
    return None


def _read_old(path: Path) -> Autoencoder:
    """What earlier versions kept for themselves beside `vae`. Raises TrainingError."""
    try:
        with open_tensors(path) as file:
            config = AutoencoderConfig.from_diffusers(json.loads(file.metadata["config"]))
            with torch.device("meta"):
                autoencoder = Autoencoder(config)
            autoencoder.load_state_dict({name: file.load(name) for name in file.names()}, assign=True)
    except (Error, KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path} is no autoencoder that we saved; delete it to make it anew: {error}") from error
    return _frozen(autoencoder)


def _frozen(network: Autoencoder) -> Autoencoder:
    return network.eval().requires_grad_(False)


def _start(model: str) -> Autoencoder:
    """The finished autoencoder to go on from, with parameters that learn."""
    found: nn.Module = finished(Path(model)) if is_run(Path(model)) else open_autoencoder(model)
    if not isinstance(found, Autoencoder):
        raise TrainingError(f"{model[:200]!r} is a tiny autoencoder, which draws no latents; give an AutoencoderKL")
    c = found.config
    if (c.in_channels, c.out_channels) != (3, 3):
        raise TrainingError(
            f"the autoencoder of {model[:200]!r} takes {c.in_channels} channels and makes {c.out_channels}; pictures "
            "have 3"
        )
    return found.train().requires_grad_(True)


def _with_others(run: Path, first: bool) -> bool:
    """Whether the collages of a run show other emoji too: if the font is here when it begins, and to its end."""
    try:
        find_font()
        there = True
    except TrainingError:
        there = False
    note = run / OTHERS
    if first and not state.checkpoints(run):
        with whole_file(note, TrainingError) as draft:
            draft.write_text(json.dumps(there) + "\n")
    wanted = read_bytes(note, error=TrainingError).strip() == b"true" if note.is_file() else there
    if wanted and not there:
        raise TrainingError(f"{run} began with the emoji font at hand; install fonts-noto-color-emoji to go on")
    return wanted
