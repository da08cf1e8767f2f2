"""A tiny random model of every family, in native names, for the tests of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.formats.save import Contents, save_folder, save_single_file
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary

CLASSES = {"unet": UNet, "autoencoder": Autoencoder, "text_encoder": TextEncoder}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


@dataclass
class TinyModel:
    """Configurations, random weights under native names, and a tokenizer."""

    configs: dict[str, Any]
    states: dict[str, dict[str, torch.Tensor]]
    tokenizer: Tokenizer

    def shapes(self, part: str) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.states[part].items()}

    def contents(self, **others: Any) -> Contents:
        """`others`: states by part (unet=...), configurations (unet_config=...), and fields of `Contents`."""
        states = {part: others.pop(part, state) for part, state in self.states.items()}
        configs = {part: others.pop(f"{part}_config", config) for part, config in self.configs.items()}
        given = {"tokenizers": {"text_encoder": self.tokenizer}, "scheduler_config": SCHEDULER}
        return Contents(configs=configs, states=states, **{**given, **others})

    def save(self, path: Path, dtype: torch.dtype | None = None, **others: Any) -> Path:
        writer = save_single_file if path.suffix == ".safetensors" else save_folder
        return writer(path, self.contents(**others), dtype)


def make(unet: UNetConfig, autoencoder: AutoencoderConfig, text: TextEncoderConfig, pad: str | None) -> TinyModel:
    vocab, merges = build_vocabulary(["a red fox", "blue"])
    tokenizer = Tokenizer(vocab, merges, pad_token=pad)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    text = replace(text, vocab_size=len(vocab), **ids)
    configs = {"unet": unet, "autoencoder": autoencoder, "text_encoder": text}
    torch.manual_seed(0)
    states = {
        part: {name: torch.randn(t.shape) / 8 for name, t in CLASSES[part](config).state_dict().items()}
        for part, config in configs.items()
    }
    return TinyModel(configs, states, tokenizer)


TINY_UNET = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=(1, 1),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(8, 8),
    cross_attention_dim=24,
)
TINY_AUTOENCODER = AutoencoderConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, sample_size=64)
TINY_TEXT = TextEncoderConfig(
    hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, projection_dim=24
)


def tiny(family: str) -> TinyModel:
    """ "sd1", "sd2", "inpainting" or "upscaler" in small."""
    if family == "sd1":
        return make(TINY_UNET, TINY_AUTOENCODER, TINY_TEXT, None)
    if family == "inpainting":
        return make(replace(TINY_UNET, in_channels=9), TINY_AUTOENCODER, TINY_TEXT, None)
    text = replace(TINY_TEXT, hidden_act="gelu")
    if family == "sd2":
        return make(replace(TINY_UNET, use_linear_projection=True, heads=(1, 2)), TINY_AUTOENCODER, text, "!")
    unet = replace(
        TINY_UNET,
        in_channels=7,
        attention_levels=(False, True),
        only_cross_attention=(True, True),
        use_linear_projection=True,
        num_class_embeds=30,
    )
    autoencoder = replace(TINY_AUTOENCODER, block_out_channels=(32, 32, 64), scaling_factor=0.08333)
    return make(unet, autoencoder, text, "!")


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, TinyModel]:
    return {family: tiny(family) for family in ("sd1", "sd2", "inpainting", "upscaler")}


@pytest.fixture
def sd1(tiny_models: dict[str, TinyModel]) -> TinyModel:
    return tiny_models["sd1"]


@pytest.fixture
def sd2(tiny_models: dict[str, TinyModel]) -> TinyModel:
    return tiny_models["sd2"]
