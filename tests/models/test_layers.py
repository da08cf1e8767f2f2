"""The shared layers: attention by its definition, and in the precisions where a network would hurt."""

from __future__ import annotations

import pytest
import torch

from darkroom.models.layers import Upsample, attend


def by_definition(q, k, v, heads, causal=False):
    """Attention one head and one query at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    d = q.shape[2] // heads
    rows = []
    for n in range(len(q)):
        columns = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            answers = []
            for i in range(q.shape[1]):
                seen = i + 1 if causal else k.shape[1]
                weights = (k[n, :seen, part] @ q[n, i, part] / d**0.5).softmax(0)
                answers.append(weights @ v[n, :seen, part])
            columns.append(torch.stack(answers))
        rows.append(torch.cat(columns, dim=1))
    return torch.stack(rows)


def random_inputs(length: int, tokens: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, width, generator=generator) for n in (length, tokens, tokens)]


@pytest.mark.parametrize(("tokens", "causal"), [(5, False), (9, False), (9, True)])
def test_attention_is_what_it_is_defined_to_be(tokens, causal):
    q, k, v = random_inputs(9, tokens, 12)
    expected = by_definition(q, k, v, 3, causal)
    assert torch.allclose(attend(q, k, v, 3, causal=causal).double(), expected, atol=1e-6)


@pytest.mark.parametrize(("tokens", "causal"), [(5, False), (9, False), (9, True)])
def test_attention_trains_in_bfloat16(tokens, causal, difference):
    """The way that training takes on a CPU has the answer and the gradients of float64."""
    exact = [x.double().requires_grad_() for x in random_inputs(9, tokens, 12)]
    expected = by_definition(*exact, 3, causal)
    half = [x.to(torch.bfloat16).requires_grad_() for x in random_inputs(9, tokens, 12)]
    answer = attend(*half, 3, causal=causal)
    assert answer.dtype == torch.bfloat16
    assert difference(answer.double(), expected) < 2e-2
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected.backward(pull)
    answer.backward(pull.to(torch.bfloat16))
    for ours, theirs in zip(half, exact, strict=True):
        assert difference(ours.grad.double(), theirs.grad) < 3e-2


def test_upcast_attention_survives_scores_that_float16_cannot_hold():
    q, k, v = random_inputs(4, 4, 64)
    q, k = q.sign() * 60, k.sign() * 60  # scores up to 230,400; float16 ends at 65,504
    expected = by_definition(q, k, v, 1)
    answer = attend(q.half(), k.half(), v.half(), 1, upcast=True)
    assert answer.dtype == torch.float16
    assert torch.allclose(answer.double(), expected, atol=1e-2)


@torch.no_grad()
def test_upsample_repeats_pixels_to_an_odd_size():
    layer = Upsample(1)
    layer.conv.weight.zero_()
    layer.conv.weight[0, 0, 1, 1] = 1
    layer.conv.bias.zero_()
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert layer(x)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert layer(x, (3, 4))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
