"""Gradient checkpointing: the same answers and gradients, less kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from darkroom.models.layers import set_checkpointing
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

UNET = UNetConfig(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=(1, 1), attention_levels=(True, True),
    only_cross_attention=(False, False), transformer_layers=(1, 2), heads=(2, 2), cross_attention_dim=24,
    norm_num_groups=8,
)  # fmt: skip
AUTOENCODER = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16)
TEXT = TextEncoderConfig(vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=7, eos_token_id=29)  # fmt: skip


def unet() -> tuple[nn.Module, Callable[[], Tensor]]:
    network = UNet(UNET)
    x, text = torch.randn(2, 4, 7, 8, requires_grad=True), torch.randn(2, 5, 24)
    return network, lambda: network(x, torch.tensor([3.0, 700.0]), text)


def autoencoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    network, pictures = Autoencoder(AUTOENCODER), torch.randn(2, 3, 16, 16)
    return network, lambda: network(pictures)


def text_encoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    network = TextEncoder(TEXT)
    return network, lambda: network(torch.arange(14).view(2, 7))


def step(network: nn.Module, forward: Callable[[], Tensor], precision: str) -> tuple[Tensor, list[Tensor], int]:
    """The answer, the gradients, and the bytes that were kept for them."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    network.zero_grad()
    enabled = precision == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    ):
        answer = forward()
    answer.float().square().mean().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    return answer.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [unet, autoencoder, text_encoder])
def test_answers_and_gradients_are_the_same_bits(make: Any, precision: str) -> None:
    torch.manual_seed(0)
    network, forward = make()
    plain, gradients, kept = step(network, forward, precision)
    set_checkpointing(network)
    again, same, kept_less = step(network, forward, precision)
    assert torch.equal(plain, again)
    assert len(gradients) == len(same) == len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert kept_less < 0.6 * kept
    set_checkpointing(network, False)
    assert step(network, forward, precision)[2] == kept


def test_nothing_changes_where_no_gradient_is_asked_for() -> None:
    torch.manual_seed(0)
    network, forward = unet()
    with torch.no_grad():
        plain = forward()
        set_checkpointing(network)
        assert torch.equal(forward(), plain)
        assert not forward().requires_grad
