"""The native names and shapes of a network, without its memory. The one place in `formats` that builds networks."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import CheckpointError
from ..models.config import (
    AutoencoderConfig,
    ControlNetConfig,
    InceptionConfig,
    LpipsConfig,
    TinyAutoencoderConfig,
    UNetConfig,
    VisionEncoderConfig,
)
from .rules import Config


def native_shapes(config: Config, where: str = "the configuration") -> dict[str, torch.Size]:
    """Native tensor name -> shape of the network of `config`. CheckpointError, naming `where`, if it can't be built."""
    network: Any
    if isinstance(config, ControlNetConfig):
        from ..models.controlnet import ControlNet as network
    elif isinstance(config, UNetConfig):
        from ..models.unet import UNet as network
    elif isinstance(config, TinyAutoencoderConfig):
        from ..models.tiny_autoencoder import TinyAutoencoder as network
    elif isinstance(config, AutoencoderConfig):
        from ..models.autoencoder import Autoencoder as network
    elif isinstance(config, VisionEncoderConfig):
        from ..models.vision import VisionEncoder as network
    elif isinstance(config, InceptionConfig):
        from ..models.inception import Inception as network
    elif isinstance(config, LpipsConfig):
        from ..models.lpips import Lpips as network
    else:
        from ..models.text_encoder import TextEncoder as network
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in network(config).state_dict().items()}
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from None
