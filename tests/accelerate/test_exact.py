"""What stands in for kernels whose bits vary with the number of threads computes the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from darkroom.accelerate.exact import SameBits, attention, conv1x1, same_bits
from darkroom.pipeline import Pipeline


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_a_linear_layer(bias: bool) -> None:
    conv, x = nn.Conv2d(6, 10, 1, bias=bias), torch.randn(2, 6, 5, 7)
    expected = conv(x)
    with SameBits():
        got = conv(x)
    torch.testing.assert_close(got, expected)
    assert torch.equal(got, conv1x1(x, conv.weight, conv.bias))
    assert got.is_contiguous()


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1, groups=2)],
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 8, 8)
    expected = conv(x)
    with SameBits():
        assert torch.equal(conv(x), expected)


def test_short_attention_by_sums() -> None:
    q, k, v = torch.randn(2, 3, 9, 16), torch.randn(2, 3, 77, 16), torch.randn(2, 3, 77, 16)
    expected = F.scaled_dot_product_attention(q, k, v)
    with SameBits():
        got = F.scaled_dot_product_attention(q, k, v)
        causal = F.scaled_dot_product_attention(q, k[:, :, :9], v[:, :, :9], is_causal=True)
    torch.testing.assert_close(got, expected)
    assert torch.equal(got, attention(q, k, v))
    assert torch.equal(causal, F.scaled_dot_product_attention(q, k[:, :, :9], v[:, :, :9], is_causal=True))


def test_a_whole_network_computes_the_same(tiny_pipe: Pipeline) -> None:
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = tiny_pipe.autoencoder.decode(z)
        with same_bits(tiny_pipe.autoencoder) as active:
            assert isinstance(active, SameBits)
            torch.testing.assert_close(tiny_pipe.autoencoder.decode(z), expected, rtol=1e-4, atol=1e-5)


def test_only_float32_is_touched() -> None:
    with same_bits(nn.Linear(2, 2, dtype=torch.bfloat16)) as active:
        assert active is None
