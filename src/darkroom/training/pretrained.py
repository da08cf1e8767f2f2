"""Networks to go on training from, out of anybody's files, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import darkroom

from ..errors import TrainingError
from ..files import read_json
from ..formats.checkpoint import open_checkpoint
from ..formats.features import open_text_encoder
from ..formats.vae import open_vae
from ..models.autoencoder import Autoencoder
from ..models.config import TextEncoderConfig
from ..models.text_encoder import TextEncoder
from ..prompts.tokenizer import Tokenizer


def open_autoencoder(source: str) -> Autoencoder:
    """An autoencoder by itself or out of a whole model: a folder, a file of any layout, or on the hub.

    Raises CheckpointError.
    """
    network: Autoencoder = open_vae(source).build("autoencoder", dtype=torch.float32)
    return network.train().requires_grad_(True)


def open_text(source: str, device: str) -> tuple[TextEncoder, Tokenizer]:
    """A finished text encoder with its tokenizer, frozen: of a model, or of a CLIP's folder. CheckpointError otherwise.

    Its projection stays behind: a U-Net reads what comes before.
    """
    config, place = text_config(source), Path(source)
    if not (place / "config.json").is_file():
        pipe = darkroom.load(source, device=device, dtype="float32")
        return pipe.text_encoder, pipe.tokenizer
    found = open_text_encoder(place)
    found.configs = {"text_encoder": config}
    return found.build("text_encoder", device, torch.float32), Tokenizer.from_folder(place)


def text_config(source: str) -> TextEncoderConfig:
    """What the text encoder is that `open_text` opens. Raises TrainingError, CheckpointError."""
    file = Path(source) / "config.json"
    if not file.is_file():
        found = open_checkpoint(source)
        if found.text_encoder_2_config is not None:
            raise TrainingError(f"text_encoder is {source!r}, which has two; give a model with one")
        return found.text_encoder_config
    if read_json(file).get("model_type") not in ("clip", "clip_text_model"):
        raise TrainingError(f"text_encoder is {source!r}, which is no CLIP and no model")
    config = open_text_encoder(file.parent).config("text_encoder")
    assert isinstance(config, TextEncoderConfig)
    return replace(config, projection=False)
