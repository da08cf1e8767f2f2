"""The image encoder against transformers' CLIPVisionModelWithProjection: random weights, same input, same output."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from darkroom.models.clip import VisionEncoder
from darkroom.models.config import VisionEncoderConfig
from darkroom.models.layers import set_checkpointing

BASE = VisionEncoderConfig(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
    projection_dim=20,
)
CONFIGS = {
    "openai": BASE,
    "openclip": replace(BASE, hidden_act="gelu", layer_norm_eps=1e-3, num_hidden_layers=1),
    "a border that fills no patch": replace(BASE, image_size=30, num_channels=1),
}
# Ours to transformers', written apart from `darkroom.formats`.
NAMES = (
    (r"^projection\.", "visual_projection."),
    (r"^(class|patch|position)_embedding", r"vision_model.embeddings.\1_embedding"),
    (r"^pre_norm\.", "vision_model.pre_layrnorm."),
    (r"^final_norm\.", "vision_model.post_layernorm."),
    (r"^layers\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^layers\.(\d+)\.attention\.(q|k|v|out)\.", r"vision_model.encoder.layers.\1.self_attn.\2_proj."),
    (r"^layers\.(\d+)\.(fc[12])\.", r"vision_model.encoder.layers.\1.mlp.\2."),
)


def theirs(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_transformers(name, difference):
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    config = CONFIGS[name]
    torch.manual_seed(0)
    network = VisionEncoder(config).eval()
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    peer = CLIPVisionModelWithProjection(CLIPVisionConfig(**config.to_diffusers())).eval()
    peer.load_state_dict({theirs(n): t for n, t in network.state_dict().items()}, strict=True)
    pixels = torch.randn(3, config.num_channels, config.image_size, config.image_size)
    answer = peer(pixels)
    assert difference(network(pixels), answer.image_embeds) < 1e-5
    assert difference(network.tokens(pixels), answer.last_hidden_state) < 1e-5


def test_every_parameter_learns_and_checkpointing_changes_nothing():
    torch.manual_seed(0)
    network = VisionEncoder(BASE)
    pixels, direction = torch.randn(2, 3, 32, 32), torch.randn(2, 20)
    gradients = []
    for on in (False, True):
        set_checkpointing(network, on)
        network.zero_grad()
        (network(pixels) * direction).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in idle if not n.endswith("attention.k.bias")] == []  # softmax doesn't see a key's bias
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_a_patch_sees_all_others():
    torch.manual_seed(0)
    network = VisionEncoder(BASE).eval()
    pixels = torch.randn(1, 3, 32, 32)
    other = pixels.clone()
    other[..., -1, -1] += 5  # the last patch
    with torch.no_grad():
        assert not torch.isclose(network.tokens(pixels), network.tokens(other)).all(dim=-1).any()


def test_inputs_and_configurations_that_do_not_fit_are_named():
    network = VisionEncoder(BASE)
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 40\) given; this image encoder takes \[N, 3, 32, 32\]"):
        network(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match="patch_size is 64, larger than the picture's 32"):
        replace(BASE, patch_size=64)
    with pytest.raises(ValueError, match="num_attention_heads is 5"):
        replace(BASE, num_attention_heads=5)
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        VisionEncoderConfig.from_diffusers({"hidden_act": "relu"})
    assert VisionEncoderConfig.from_diffusers(BASE.to_diffusers()) == BASE
