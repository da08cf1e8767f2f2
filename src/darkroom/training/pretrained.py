"""Networks to go on training from, out of anybody's files, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import darkroom

from ..errors import TrainingError
from ..files import read_json
from ..formats.checkpoint import open_checkpoint
from ..formats.configs import network_config
from ..formats.folder import weights_file
from ..formats.layouts import Part
from ..formats.rules import Config
from ..formats.vae import open_vae
from ..formats.weights import Weights, native_state
from ..models.autoencoder import Autoencoder, TinyAutoencoder
from ..models.config import TextEncoderConfig, TinyAutoencoderConfig
from ..models.text_encoder import TextEncoder
from ..prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class _One:
    """A single network's file."""

    part: Part
    only: Weights
    its: Config

    @property
    def weights(self) -> Mapping[Part, Weights]:
        return {self.part: self.only}

    def config(self, part: Part) -> Config:
        return self.its


def open_autoencoder(source: str) -> Autoencoder:
    """An autoencoder by itself or out of a whole model: a folder, a file of any layout, or on the hub.

    Raises CheckpointError.
    """
    vae = open_vae(source)
    with torch.device("meta"):
        tiny = isinstance(vae.config, TinyAutoencoderConfig)
        network = TinyAutoencoder(vae.config) if tiny else Autoencoder(vae.config)  # type: ignore[arg-type]
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state = native_state(_One("autoencoder", vae.weights, vae.config), "autoencoder", expected, torch.float32)
    network.load_state_dict(state, assign=True)
    return network


def open_text(source: str, device: str) -> tuple[TextEncoder, Tokenizer]:
    """A finished text encoder with its tokenizer, frozen: of a model, or of a CLIP's folder. CheckpointError otherwise.

    Its projection stays behind: a U-Net reads what comes before.
    """
    config, place = text_config(source), Path(source)
    if not (place / "config.json").is_file():
        pipe = darkroom.load(source, device=device, dtype="float32")
        return pipe.text_encoder, pipe.tokenizer
    with torch.device("meta"):
        network = TextEncoder(config)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    weights = Weights(weights_file(place), "diffusers")
    state = native_state(_One("text_encoder", weights, config), "text_encoder", expected, torch.float32)
    network.load_state_dict(state, assign=True)
    return network.to(device).eval().requires_grad_(False), Tokenizer.from_folder(place)


def text_config(source: str) -> TextEncoderConfig:
    """What the text encoder is that `open_text` opens. Raises TrainingError, CheckpointError."""
    file = Path(source) / "config.json"
    if not file.is_file():
        found = open_checkpoint(source)
        if found.text_encoder_2_config is not None:
            raise TrainingError(f"text_encoder is {source!r}, which has two; give a model with one")
        return found.text_encoder_config
    content = read_json(file)
    if content.get("model_type") not in ("clip", "clip_text_model"):
        raise TrainingError(f"text_encoder is {source!r}, which is no CLIP and no model")
    config = network_config("text_encoder", content, str(file))
    assert isinstance(config, TextEncoderConfig)
    return replace(config, projection=False)
