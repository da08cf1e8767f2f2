"""A LoRA's training: on the U-Net, the text encoders or both, of any kind that `adapters` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..adapters import Adapter, TrainableLora, init_lora
from ..adapters.train import KINDS, WHICH, Layer
from ..errors import TrainingError
from ..formats.lora import read_lora
from ..formats.lora_names import Home, Homes
from ..formats.lora_save import FORMS, Form, save_lora
from ..pipeline import Pipeline
from ..settings import setting
from .finetune import DREAMBOOTH, FinetuneRecipe, check_text_lr
from .kinds import Report, Source
from .loop import step_seed
from .memory import moved, with_values
from .parallel import Rank
from .pictures import PictureRecipe, PictureStage
from .recipe import ABOVE_ZERO, BELOW_ONE, again, flag, listed, on, several, text, whole
from .sheets import Use

_VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}  # kohya's names, by the width of the text
_ARCHITECTURES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl-v1-base"}

RANK = whole("between 1 and 1024", lambda v: 1 <= v <= 1024)
TARGETS = several(
    text(),
    f"of {', '.join(WHICH)}, or patterns such as *.attn2.*",
    lambda v: bool(v) and all(name in WHICH or "*" in name or "." in name for name in v),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe(PictureRecipe):
    """A LoRA (Hu et al. 2021, arXiv 2106.09685)."""

    kind: str = setting("lora", listed(KINDS), '"dora": directions and magnitudes; "loha", "lokr": LyCORIS\' products.')
    rank: int = setting(4, RANK, "Of the difference of a layer.")
    alpha: float = setting(4.0, ABOVE_ZERO, "The difference is multiplied by alpha / rank.")
    conv_rank: int = setting(
        0,
        whole("between 0 and 1024", lambda v: 0 <= v <= 1024),
        "Of convolutions of more than one pixel; 0: as the others.",
        beside=(("targets", "convolutions", "all", "*"),),
    )
    rslora: bool = setting(False, flag(), "Multiply by alpha / sqrt(rank) instead.")
    targets: tuple[str, ...] = setting(("attention",), TARGETS, "The layers it changes: see `chooser`.")
    train: str = again(FinetuneRecipe, "train")
    text_lr: float = again(FinetuneRecipe, "text_lr")
    lora_dropout: float = setting(0.0, BELOW_ONE, "Fraction of a layer's inputs that the LoRA is not shown.")
    rank_dropout: float = setting(0.0, BELOW_ONE, "Fraction of ranks left out in a step.")
    init: str = setting(
        "",
        text(),
        "A LoRA's file to go on from; what it changes keeps the kind, the rank and the alpha it has there.",
    )
    form: str = setting("diffusers", listed(FORMS), "Of the file.", free=True)
    trigger: str = setting(
        "", text(), "The words that call it, noted in the file for people and their tools.", free=True
    )
    save_dtype: str = again(FinetuneRecipe, "save_dtype", "float32")

    @property
    def stage(self) -> type[LoraStage]:
        return LoraStage

    def check(self, workers: int) -> None:
        PictureRecipe.check(self, workers)
        check_text_lr(self.train, self.text_lr)
        if self.sharding == "fsdp":
            raise TrainingError(
                "sharding is 'fsdp', and a LoRA's factors are too small to be sharded; use sharding=none"
            )
        if self.rank_dropout and self.kind not in ("lora", "dora"):
            raise TrainingError(
                f"rank_dropout is {self.rank_dropout:g}; {self.kind} has no ranks to leave out: use lora_dropout"
            )


# What teaches the embedded model an object in a minute or two (docs/lora.md): every layer, and the word itself.
OBJECT: Mapping[str, Any] = {
    "steps": 250, "batch_size": 6, "lr": 2e-3, "rank": 8, "alpha": 8.0, "targets": ("all",), "train": "both",
    "text_lr": 1e-3,
}  # fmt: skip


def lora(preset: str = "cpu", purpose: str = "", small: bool = False) -> LoraRecipe:
    """A thousand steps of four pictures at the rate, rank and layers that are usual for Stable Diffusion (diffusers'
    script); `purpose` "object": the text encoder learns the word, too, at half of that rate (kohya's custom).

    For `small` U-Nets what was measured with the embedded model; an object where nothing is said.
    """
    recipe = LoraRecipe(steps=1000, batch_size=4, lr=1e-4, optimizer="adamw", warmup=20, cooldown=0.5)
    if small:
        recipe = replace(recipe, **OBJECT)
        if purpose == "style":
            recipe = replace(recipe, lr=1e-3, train="unet", text_lr=0.0)
    elif purpose == "object":
        recipe = replace(recipe, rank=8, alpha=8.0, train="both", text_lr=5e-5)
    return on(recipe, preset)


def dreambooth_lora(preset: str = "cpu", small: bool = False) -> LoraRecipe:
    """The same for a subject: see `finetune.dreambooth`."""
    length: Mapping[str, Any] = {} if small else {"steps": 800, "batch_size": 2}
    return on(replace(lora(small=small), ema=0.99, **length, **DREAMBOOTH), preset)


class LoraStage(PictureStage):
    """A LoRA's training. The hooks stay on to its end, since gradient checkpointing asks them on the way back."""

    config: LoraRecipe

    @classmethod
    def model(cls, recipe: LoraRecipe, source: Source) -> Pipeline:
        pipe = super().model(recipe, source)
        networks = pipe.loras.networks
        kept = read_lora(recipe.init, networks).parts if recipe.init else {}
        for part, network in networks.items():
            if recipe.train in ("both", _name(part)) and part not in kept:
                check_targets(recipe.targets, part, network)
        return pipe

    def begin(self) -> None:
        c, networks = self.config, self.pipe.loras.networks
        learning = {part: n for part, n in networks.items() if c.train in ("both", _name(part))}
        with with_values():  # what is read from a file has values also where networks have none
            self.before = read_lora(c.init, networks) if c.init else Adapter({})
        self.loras: dict[str, TrainableLora] = {}
        for part, network in networks.items():
            if part in self.before.parts:
                self.loras[part] = TrainableLora(self.before.parts[part], c.lora_dropout, c.rank_dropout)
            elif part in learning:
                check_targets(c.targets, part, network)
                self.loras[part] = self._begun(part, network)
        for part, lora in self.loras.items():
            self.hooks.callback(moved(lora, self.pipe.device).attach(networks[part]))
            if part in learning:
                self.modules[part] = lora
            else:  # kept as the file has it
                lora.requires_grad_(False).eval()
        self.text_learns = any(part != "unet" for part in self.loras)

    def _begun(self, part: str, network: nn.Module) -> TrainableLora:
        c = self.config
        # Loaders of text encoders drop magnitudes, so those have plain factors there.
        kind = "lora" if c.kind == "dora" and part != "unet" else c.kind
        return init_lora(
            network, c.rank, c.alpha, chooser(c.targets, part, network), kind=kind, conv_rank=c.conv_rank or None,
            rslora=c.rslora, dropout=c.lora_dropout, rank_dropout=c.rank_dropout,
        )  # fmt: skip

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of modules that have another than the recipe's `lr`."""
        lr = self.config.text_lr
        return {part: lr for part in self.modules if part != "unet"} if lr else {}

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        for lora in self.loras.values():
            lora.seed = step_seed(self.config.seed, step)
        return super().loss(batch, step, rank)

    def write(self, output: Path, report: Report) -> Path:
        c = self.config
        parts = {part: lora.adapter(part).parts[part] for part, lora in self.loras.items()}
        return save_lora(
            output / "lora.safetensors", Adapter(parts, metadata=self.before.metadata), self.pipe.loras.networks,
            cast("Form", c.form), dtype=getattr(torch, c.save_dtype), metadata=self.notes(output.name),
        )  # fmt: skip

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        return Use(lora=made)

    def notes(self, name: str) -> dict[str, str]:
        """What the file says of itself, under the keys of kohya's tools and of modelspec; the same for the same run."""
        c, pipe, width = self.config, self.pipe, self.pipe.unet.config.cross_attention_dim
        side = "x".join(map(str, self.dataset.sizes[0]))
        notes = {
            "ss_output_name": name,
            "ss_sd_model_name": pipe.name,
            "ss_sd_model_hash": pipe.model_hash,
            "ss_base_model_version": _VERSIONS.get(width),
            "ss_v2": str(width == 1024),
            "ss_max_train_steps": str(c.steps),
            "ss_learning_rate": f"{c.lr:g}",
            "ss_text_encoder_lr": f"{c.text_lr or c.lr:g}" if self.text_learns else None,
            "ss_batch_size_per_device": str(c.batch_size),
            "ss_num_train_images": str(sum(self.dataset.repeats)),
            "ss_resolution": side,
            "ss_seed": str(c.seed),
            "modelspec.title": name,
            "modelspec.architecture": f"{_ARCHITECTURES[width]}/lora" if width in _ARCHITECTURES else None,
            "modelspec.prediction_type": pipe.schedule.prediction_type.removesuffix("_prediction"),
            "modelspec.resolution": side,
            "modelspec.trigger_phrase": c.trigger or None,
        }
        return {key: text for key, text in notes.items() if text is not None}


def chooser(targets: Sequence[str], part: str, network: nn.Module) -> Callable[[str], bool]:
    """Which layers some targets mean: says yes to a layer's native name.

    A target is "attention" (the four projections of every attention), "cross-attention", "linear" (all linear layers),
    "convolutions" or "all"; or a pattern of layers' names, ours or diffusers', such as `*.attn2.*` or
    `down_blocks.2.*.to_q`.
    """
    names = Homes({part: network}).names

    def chosen(path: str) -> bool:
        layer, spelled = network.get_submodule(path), names.get(Home(part, path), path)
        return any(
            WHICH[target](path, layer) if target in WHICH else fnmatchcase(path, target) or fnmatchcase(spelled, target)
            for target in targets
        )

    return chosen


def check_targets(targets: Sequence[str], part: str, network: nn.Module) -> None:
    """Raise TrainingError where targets mean no layer of a network."""
    chosen = chooser(targets, part, network)
    if not any(isinstance(layer, Layer) and chosen(path) for path, layer in network.named_modules()):
        told, examples = ",".join(targets), ", ".join(list(Homes({part: network}).names.values())[:2])
        raise TrainingError(
            f"targets is {told[:100]!r}, which is no layer of the {part}; its layers are {examples}, ..."
        )


def _name(part: str) -> str:
    """A part's name, as `train` has it."""
    return "unet" if part == "unet" else "text-encoder"
