"""Twins: one of our networks and its peer in diffusers or transformers, holding the same random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers_names import AUTOENCODER, CONTROLNET, PROJECTED, TEXT_ENCODER, UNET, rename
from torch import Tensor, nn

from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

Config = UNetConfig | AutoencoderConfig | TextEncoderConfig


def peer_of(config: Config) -> nn.Module:
    """The other library's network, built from our `to_diffusers()`."""
    if isinstance(config, ControlNetConfig):
        from diffusers.models.controlnets.controlnet import ControlNetModel

        return ControlNetModel.from_config(config.to_diffusers()).eval()
    if isinstance(config, UNetConfig):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel.from_config(config.to_diffusers()).eval()
    if isinstance(config, AutoencoderConfig):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL.from_config(config.to_diffusers()).eval()
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    return kind(CLIPTextConfig(**config.to_diffusers())).eval()


def ours(config: Config) -> tuple[nn.Module, tuple[tuple[str, str], ...]]:
    if isinstance(config, ControlNetConfig):
        return ControlNet(config), CONTROLNET
    if isinstance(config, UNetConfig):
        return UNet(config), UNET
    if isinstance(config, AutoencoderConfig):
        return Autoencoder(config), AUTOENCODER
    return TextEncoder(config), PROJECTED if config.projection else TEXT_ENCODER


@pytest.fixture(scope="session")
def peer() -> Callable[[Config], nn.Module]:
    return peer_of


@pytest.fixture(scope="session")
def twins() -> Callable[[Config], tuple[nn.Module, nn.Module]]:
    """config -> (our network, the peer), weights shared, every norm and bias random so that none can be mistaken."""

    def make(config: Config) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        network, rules = ours(config)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        other = peer_of(config)
        other.load_state_dict(rename(network.state_dict(), rules), strict=True)
        return network.eval(), other

    return make


@pytest.fixture(scope="session")
def difference() -> Callable[[Tensor, Tensor], float]:
    """max |a - b| / max |b|"""

    def relative(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        assert torch.isfinite(b).all()
        return float((a - b).detach().abs().max() / b.detach().abs().max())

    return relative
