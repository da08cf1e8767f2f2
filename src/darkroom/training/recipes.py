"""Recipes: complete, typed configurations, the presets of the embedded model, and overrides by name.

A recipe is a frozen dataclass; a preset is a function that returns one. `override` changes fields by `key=value`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..adapters.train import WHICH
from ..errors import TrainingError, closest
from ..hints import HINTS
from ..models.discriminator import smallest
from ..pipeline import DTYPES
from .autoencoder import SCALINGS, AutoencoderRecipe
from .config import LOOP_RULES, LoopConfig, Rule, check_loop, check_rules
from .crops import whole_rows
from .distill import DistillRecipe, check_distill
from .finetune import PREDICTIONS, TRAINED, FinetuneRecipe, check_finetune
from .lora import LoraRecipe, check_lora, is_target
from .objective import TIMES, WEIGHTS
from .perceptual import OWN
from .stage import CHUNKS, PictureRecipe, check_pictures
from .unet import UNetRecipe

Recipe = TypeVar("Recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRecipe:
    """Both stages of the embedded model."""

    autoencoder: AutoencoderRecipe
    unet: UNetRecipe
    evaluate: int = 100  # pictures a category in the scores of the card; 0: none


# What makes a model learn the order of the nouns in a caption (docs/decisions/0012): captions that say the places
# first, and more of high noise, where the order alone decides what goes where.
PLACED: dict[str, Any] = {"lines": True, "times": "logit-normal", "times_mean": 0.5, "times_std": 1.4}


def cpu() -> EmbeddedRecipe:
    """Two CPU cores, about five hours: the shipped model in one go (its card tells of its stages). Longer is better."""
    return EmbeddedRecipe(
        autoencoder=AutoencoderRecipe(
            steps=6000, batch_size=16, lr=0.005, optimizer="muon", whole_from=0.8, cooldown=0.4, warmup=50
        ),
        unet=UNetRecipe(
            steps=10_000,
            batch_size=64,
            lr=0.003,
            optimizer="muon",
            cooldown=0.4,
            warmup=100,
            scenes=96_000,
            encode_precision="bfloat16",
            **PLACED,
        ),
    )


def gpu() -> EmbeddedRecipe:
    """One data-centre GPU: larger batches, many more pictures, wider networks of the same shape."""
    return EmbeddedRecipe(
        autoencoder=AutoencoderRecipe(
            steps=60_000, batch_size=64, lr=0.005, optimizer="muon", cooldown=0.4, warmup=200, ema=0.9995, device="cuda"
        ),
        unet=UNetRecipe(
            steps=60_000,
            batch_size=512,
            lr=0.003,
            optimizer="muon",
            scenes=400_000,
            ema=0.9995,
            device="cuda",
            **PLACED,
        ),
    )


PRESETS: dict[str, Callable[[], EmbeddedRecipe]] = {"cpu": cpu, "gpu": gpu}


def embedded(preset: str = "cpu") -> EmbeddedRecipe:
    """Both stages of the embedded model."""
    return PRESETS[preset]()


def autoencoder(preset: str = "cpu") -> AutoencoderRecipe:
    """The embedded model's autoencoder."""
    return PRESETS[preset]().autoencoder


def unet(preset: str = "cpu") -> UNetRecipe:
    """The embedded model's U-Net and text encoder."""
    return PRESETS[preset]().unet


def parts(recipe: LoopConfig | EmbeddedRecipe) -> list[LoopConfig]:
    """The runs of the loop that a recipe is of."""
    return [recipe.autoencoder, recipe.unet] if isinstance(recipe, EmbeddedRecipe) else [recipe]


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """`recipe` with fields changed by "key=value"; "part.key=value" reaches into a recipe of several parts.

    Values are written as in Python, lists with commas: "lr=3e-4", "widths=64,128,192", "attention_levels=false,true".
    Raises TrainingError on a key that doesn't exist, with the nearest one, and on a value of another type.
    """
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise TrainingError(f"{text[:100]!r} is no setting; write key=value, such as steps=1000")
        recipe = _set(recipe, key.strip(), value.strip(), key.strip())
    return recipe


def keys(recipe: Any, prefix: str = "") -> list[str]:
    """The names that `override` knows in a recipe."""
    names: list[str] = []
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        names += keys(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return names


def _set(recipe: Recipe, key: str, value: str, whole: str) -> Recipe:
    assert is_dataclass(recipe)
    assert not isinstance(recipe, type)
    first, dot, rest = key.partition(".")
    kinds = get_type_hints(type(recipe))
    if first not in kinds or is_dataclass(kinds[first]) != bool(dot):
        before = whole[: len(whole) - len(key)]
        known = keys(recipe, before)
        same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
        near = closest(whole, same or known, cutoff=0.0 if same else 0.5)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
        raise TrainingError(f"the recipe has no setting {whole[:100]!r}; {hint}")
    if dot:
        return replace(recipe, **{first: _set(getattr(recipe, first), rest, value, whole)})
    return replace(recipe, **{first: _parse(value, kinds[first], whole)})


def _parse(text: str, kind: Any, key: str) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_parse(part.strip(), get_args(kind)[0], key) for part in text.strip("()[]").split(",") if part)
    wanted = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}[kind]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise TrainingError(f"{key} is {text[:100]!r}; it must be {wanted}") from None


# What the recipes' numbers must be.
_RULES: tuple[Rule, ...] = (
    *LOOP_RULES,
    ("whole_from", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("decoder_from", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("collages", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("kl", "0 or more", lambda v: v >= 0),
    ("l1", "0 or more", lambda v: 0 <= v < math.inf),
    ("l2", "0 or more", lambda v: 0 <= v < math.inf),
    ("perceptual", "0 or more", lambda v: 0 <= v < math.inf),
    ("adversarial", "0 or more", lambda v: 0 <= v < math.inf),
    ("adversarial_from", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("discriminator_width", "between 4 and 1024, a multiple of 4", lambda v: 4 <= v <= 1024 and v % 4 == 0),
    ("discriminator_layers", "between 1 and 6", lambda v: 1 <= v <= 6),
    ("discriminator_lr", "a number above 0, at most 1", lambda v: 0 < v <= 1),
    ("scaling", "'folded', 'factor' or 'kept'", lambda v: v in SCALINGS),
    ("temperature", "between 0.01 and 10", lambda v: 0.01 <= v <= 10),
    ("tokens", "between 3 and 1024", lambda v: 3 <= v <= 1024),
    ("patch", "1 or more", lambda v: v >= 1),
    ("held_out", "0 or more", lambda v: v >= 0),
    ("scenes", "1 or more", lambda v: 1 <= v <= 10**8),
    ("encode_precision", "'float32' or 'bfloat16'", lambda v: v in ("float32", "bfloat16")),
    ("dropout", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("gamma", "above 0", lambda v: v > 0),
    ("weight", " or ".join(map(repr, WEIGHTS)), lambda v: v in WEIGHTS),
    ("times", " or ".join(map(repr, TIMES)), lambda v: v in TIMES),
    ("times_mean", "between -10 and 10", lambda v: -10 <= v <= 10),
    ("times_std", "above 0, at most 10", lambda v: 0 < v <= 10),
    ("times_from", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("times_to", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("noise_offset", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("perturbation", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("keep_tags", "0 or more", lambda v: v >= 0),
    ("tag_dropout", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("chunks", f"between 1 and {CHUNKS}", lambda v: 1 <= v <= CHUNKS),
    ("class_pictures", "between 1 and 100000", lambda v: 1 <= v <= 100_000),
    ("prior_weight", "0 or more", lambda v: 0 <= v < math.inf),
    ("train", " or ".join(map(repr, TRAINED)), lambda v: v in TRAINED),
    ("text_lr", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("prediction", "one of " + ", ".join(PREDICTIONS), lambda v: v in ("", *PREDICTIONS)),
    ("save_dtype", "one of " + ", ".join(DTYPES), lambda v: v in DTYPES),
    ("shift", "between 0.001 and 1000", lambda v: 1e-3 <= v <= 1e3),
    ("boxes", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("borders", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("whole", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("rank", "between 1 and 1024", lambda v: 1 <= v <= 1024),
    ("alpha", "above 0", lambda v: v > 0),
    ("targets", f"of {', '.join(WHICH)}, or patterns such as *.attn2.*", lambda v: v and all(map(is_target, v))),
    ("lora_dropout", "at least 0 and below 1", lambda v: 0 <= v < 1),
    ("rank_dropout", "at least 0 and below 1", lambda v: 0 <= v < 1),
    ("conv_rank", "between 0 and 1024", lambda v: 0 <= v <= 1024),
    ("grid", "between 1 and 1000", lambda v: 1 <= v <= 1000),
    ("target_ema", "at least 0 and below 1", lambda v: 0 <= v < 1),
    ("huber", "above 0", lambda v: v > 0),
    ("vectors", "between 1 and 75", lambda v: 1 <= v <= 75),
    ("cut", "'centre' or 'random'", lambda v: v in ("centre", "random")),
    ("aspect", "between 1 and 16", lambda v: 1 <= v <= 16),
    ("variants", "between 0 and 1024", lambda v: 0 <= v <= 1024),
    ("hint", "one of " + ", ".join(HINTS), lambda v: v in HINTS),
    ("word", "a word without spaces around it", lambda v: v != "" and v == v.strip()),
)


def check(recipe: LoopConfig, workers: int = 1) -> None:
    """Raise TrainingError, naming the setting, on a recipe that can't be trained by `workers` processes."""
    check_rules(recipe, _RULES)
    check_loop(recipe, workers)
    if isinstance(recipe, AutoencoderRecipe):
        _check_autoencoder(recipe, workers)
    if isinstance(recipe, PictureRecipe):
        check_pictures(recipe)
    if isinstance(recipe, FinetuneRecipe | UNetRecipe):
        check_finetune(recipe)
    if isinstance(recipe, LoraRecipe):
        check_lora(recipe)
    if isinstance(recipe, DistillRecipe):
        check_distill(recipe)
    _check_device(recipe.device)


def _check_autoencoder(recipe: AutoencoderRecipe, workers: int) -> None:
    """What an autoencoder's settings must be beside each other."""
    c = recipe
    if not c.widths or len(c.widths) > 8:
        raise TrainingError(f"widths is {c.widths!r}; it must be between 1 and 8 widths, finest level first")
    grid = 2 ** (len(c.widths) - 1)
    for name in ("crop", "size"):
        value = getattr(c, name)
        if not grid <= value <= 8192 or value % grid:
            raise TrainingError(f"{name} is {value}; it must be a multiple of {grid} for {len(c.widths)} widths")
    if c.crop > c.size:
        raise TrainingError(f"crop is {c.crop}, more than the size of {c.size}")
    whole, parts = whole_rows(c), workers * c.accumulate
    if c.whole_from < 1 and (whole < 1 or whole % parts):
        raise TrainingError(
            f"batch_size is {c.batch_size}, which makes {whole} whole pictures of {c.size} pixels a side for {workers} "
            f"workers and accumulate={c.accumulate}; take a multiple of {-(-(c.size**2) // c.crop**2) * parts}"
        )
    if not (c.l1 or c.l2 or c.perceptual):
        raise TrainingError("l1, l2 and perceptual are all 0; one of them must say what a good picture is")
    if c.perceptual and c.features != OWN and c.crop < 32:
        raise TrainingError(f"crop is {c.crop}; LPIPS compares pictures of 32 pixels or more")
    if c.adversarial and c.adversarial_from >= 1:
        raise TrainingError(f"adversarial is {c.adversarial}, and adversarial_from is 1: the discriminator never plays")
    if c.adversarial and c.sharding != "none":
        raise TrainingError(
            f"adversarial is {c.adversarial}, and its weight needs the whole of the last layer, which sharding="
            f"{c.sharding} spreads; set sharding=none"
        )
    if c.adversarial and c.crop < (least := smallest(c.discriminator_layers)):
        raise TrainingError(
            f"crop is {c.crop}; with {c.discriminator_layers} discriminator_layers it must be {least} or more"
        )


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device is {name!r}; there are cpu, cuda, cuda:1, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device is {name!r}, and no GPU was found; choose the preset cpu, or set device=cpu")
