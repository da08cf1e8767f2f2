"""What the tests against diffusers' training scripts share: pictures, a stage over them, gradients by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from darkroom.data.dataset import Dataset, open_dataset
from darkroom.formats.layouts import table
from darkroom.pipeline import Pipeline
from darkroom.training.pictures import PictureRecipe, PictureStage

CAPTIONS = ("a red fox", "a blue car", "the green rocket", "a large fox on the left")
PLAIN: dict[str, Any] = {
    "steps": 3, "batch_size": 4, "lr": 0.01, "optimizer": "adamw", "warmup": 1, "cooldown": 0.0, "log_every": 1,
    "dropout": 0.0, "precision": "float32", "ema": 0.0,
}  # fmt: skip


def write_pictures(folder: Path, side: int = 64) -> Path:
    """Four pictures of noise with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(CAPTIONS):
        values = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@dataclass
class Given:
    """Latents that are the same in every step."""

    dataset: Dataset
    values: Tensor  # [P, C, h, w]

    def draw(self, rows: Any, step: int, seed: int) -> Tensor:
        return self.values[torch.as_tensor(rows)]


def stage_over(recipe: PictureRecipe, pipe: Pipeline, folder: Path) -> PictureStage:
    """A training's stage over the pictures of a folder, with random latents."""
    dataset = open_dataset(str(folder), pipe.size)
    side = pipe.size[0] // pipe.autoencoder.config.downscale
    channels = pipe.autoencoder.config.latent_channels
    latents = torch.randn(len(dataset), channels, side, side, generator=torch.Generator().manual_seed(3))
    stage: PictureStage = recipe.stage(recipe, pipe, dataset)
    stage.latents = Given(dataset, latents)
    return stage


def gradients(part: Any, network: Any) -> dict[str, Tensor]:
    """A network's gradients under diffusers' (or transformers') names."""
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    places = table(part, "diffusers", list(named), network.config)
    return {places[name].name: gradient for name, gradient in named.items()}


def assert_same_gradients(ours: dict[str, Tensor], theirs: nn.Module, tolerance: float = 1e-3) -> None:
    """All gradients of `theirs` against ours; numbers that are nothing but rounding may differ."""
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-6
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-4 * largest)
        assert (ours[name].reshape(-1) - gradient.reshape(-1)).abs().max() < tolerance * scale, name
