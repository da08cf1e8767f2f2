"""Networks to go on training from, out of anybody's files, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from darkroom.formats.layouts import Part
from darkroom.formats.rules import Config
from darkroom.formats.vae import open_vae
from darkroom.formats.weights import Weights, native_state
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import TinyAutoencoderConfig
from darkroom.models.tiny_autoencoder import TinyAutoencoder


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
