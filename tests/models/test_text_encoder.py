"""The text encoder against transformers' CLIPTextModel: random weights, same input, same output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models.config import TextEncoderConfig
from darkroom.models.presets import SD2_TEXT_ENCODER, SD15_TEXT_ENCODER
from darkroom.models.text_encoder import TextEncoder

SMALL = {"vocab_size": 99, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
CONFIGS = {
    "sd1": replace(SD15_TEXT_ENCODER, **SMALL),
    "sd2": replace(SD2_TEXT_ENCODER, **SMALL),
    "short": TextEncoderConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=16, layer_norm_eps=1e-3),
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_transformers_at_every_clip_skip(name, twins, difference):
    config = CONFIGS[name]
    network, peer = twins(config)
    ids = torch.randint(0, 99, (3, config.max_position_embeddings))
    answer = peer(ids, output_hidden_states=True)
    assert difference(network(ids), answer.last_hidden_state) < 1e-5
    assert torch.equal(network(ids, 1), network(ids))
    layers = config.num_hidden_layers
    for skip in (2, 3, layers, layers + 1):
        assert difference(network(ids, skip), peer.final_layer_norm(answer.hidden_states[-skip])) < 1e-5
    short = ids[:1, :5]
    assert difference(network(short), peer(short).last_hidden_state) < 1e-5


@torch.no_grad()
def test_a_token_sees_only_what_came_before(twins):
    network, _ = twins(CONFIGS["short"])
    ids = torch.randint(0, 99, (1, 16))
    other = ids.clone()
    other[0, 9] = (other[0, 9] + 1) % 99
    first, second = network(ids), network(other)
    assert torch.equal(first[:, :9], second[:, :9])
    assert not torch.isclose(first[:, 9:], second[:, 9:]).all(dim=-1).any()


@torch.no_grad()
def test_given_embeddings_replace_the_lookup(twins):
    network, _ = twins(CONFIGS["short"])
    ids = torch.randint(0, 98, (2, 16))
    ids[0, 4] = 98
    expected = network(ids)
    learned = network.token_embedding.weight[98].clone()
    embeddings = network.token_embedding(ids)
    embeddings[0, 4] = learned
    ids[0, 4] = 0
    assert torch.equal(network(ids, embeddings=embeddings), expected)
    assert torch.equal(network(ids, embeddings=embeddings.double()), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_learns(autocast):
    torch.manual_seed(0)
    network = TextEncoder(CONFIGS["short"])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        answer = network(torch.randint(0, 99, (2, 16)))
    (answer.float() * torch.randn(2, 16, 48)).sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.endswith("attention.k.bias")] == []  # softmax doesn't see a key's bias


def test_fresh_weights_are_those_of_clip():
    torch.manual_seed(0)
    network = TextEncoder(
        TextEncoderConfig(vocab_size=500, hidden_size=256, num_hidden_layers=2, num_attention_heads=4)
    )
    assert network.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.layers[1].attention.q.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert network.layers[1].fc2.weight.std().item() == pytest.approx(1 / 32, rel=0.05)
    assert not network.layers[0].fc1.bias.any()


def test_inputs_that_do_not_fit_are_named():
    network = TextEncoder(CONFIGS["short"])
    with pytest.raises(ValueError, match="17 tokens given; this text encoder takes at most 16"):
        network(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="token id 99 is outside the vocabulary of 99"):
        network(torch.full((1, 4), 99))
    with pytest.raises(ValueError, match="token id -1 is outside"):
        network(torch.full((1, 4), -1))
    with pytest.raises(ValueError, match=r"token ids of shape \(4,\) given"):
        network(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"embeddings of shape \(1, 4, 768\) given; .* takes \[N, T, 48\]"):
        network(torch.zeros(1, 4, dtype=torch.long), embeddings=torch.zeros(1, 4, 768))
    for skip in (-1, 4):
        with pytest.raises(ValueError, match=rf"clip_skip={skip} is outside 0\.\.3"):
            network(torch.zeros(1, 4, dtype=torch.long), clip_skip=skip)
