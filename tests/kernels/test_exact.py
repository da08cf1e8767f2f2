"""What stands in for kernels whose bits vary, with the number of threads or of rows, computes the same."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darkroom.adapters.updates import pointwise
from darkroom.kernels.attention import attend
from darkroom.kernels.exact import MANY, GroupNorm, SameBits, attention, exact, group_norm, paired, same_bits, silu
from darkroom.kernels.packed import available, product
from darkroom.pipeline import Pipeline

needs_packing = pytest.mark.skipif(not available(torch.float32), reason="this build of torch has no oneDNN")


def test_it_is_of_its_thread_and_of_its_time() -> None:
    seen: list[bool] = []
    with SameBits():
        other = Thread(target=lambda: seen.append(exact()))
        other.start()
        other.join()
        with SameBits():
            pass
        assert exact()
    assert seen == [False]
    assert not exact()


@torch.no_grad()
def test_a_pointwise_convolution_is_a_linear_layer() -> None:
    x, weight, bias = torch.randn(2, 6, 5, 7), torch.randn(10, 6, 1, 1), torch.randn(10)
    expected = F.conv2d(x, weight, bias)
    assert torch.equal(pointwise(x, weight, bias), expected)
    with SameBits():
        torch.testing.assert_close(pointwise(x, weight, bias), expected)


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 64), (3, 16), (64, 4), (192, 48)])
def test_products_have_the_same_bits_in_any_company(inputs: int, outputs: int) -> None:
    weight, x = torch.randn(outputs, inputs), torch.randn(40, inputs)
    with SameBits():
        pair = product(x[:2], weight)
        assert all(torch.equal(product(x[:n], weight)[:2], pair) for n in range(2, 41))
        torch.testing.assert_close(pair, F.linear(x[:2], weight), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_short_attention_by_sums() -> None:
    q, k = torch.randn(2, 9, 48), torch.randn(2, 77, 48)
    expected = attend(q, k, k, 3)
    with SameBits():
        got = attend(q, k, k, 3)
        causal = attend(q, q, q, 3, causal=True)
    torch.testing.assert_close(got, expected)
    heads = [y.view(2, -1, 3, 16).transpose(1, 2) for y in (q, k, k)]
    assert torch.equal(got, attention(*heads).transpose(1, 2).reshape(2, 9, 48))
    assert torch.equal(causal, attend(q, q, q, 3, causal=True))


@needs_packing
@torch.no_grad()
def test_a_row_of_great_scores_leaves_the_others_their_kernel() -> None:
    """Powers overflow for it alone; the others are done by powers, as without it."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 800, 16), torch.randn(2, 800, 16)
    with SameBits():
        expected = attend(q, k, k, 1)
        q[1, 5], k[1, 700] = 300.0, 300.0
        got = attend(q, k, k, 1)
    assert torch.equal(got[0], expected[0])
    plain = F.scaled_dot_product_attention(q[1:, None], k[1:, None], k[1:, None])[:, 0]
    torch.testing.assert_close(got[1:], plain, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_normalisation_of_many_pixels() -> None:
    layer, x = GroupNorm(4, 8), torch.randn(2, 8, 32, 33)
    expected = layer(x)
    many = x.contiguous(memory_format=torch.channels_last)
    assert x[0, 0].numel() >= MANY
    with SameBits():
        assert torch.equal(layer(x), expected)
        torch.testing.assert_close(layer(many), expected)
        assert torch.equal(layer(many), group_norm(many, 4, layer.weight, layer.bias, layer.eps))
        assert torch.equal(layer(many[:1]), layer(many)[:1])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(3, 16, 5, 9), (5, 16, 7, 7), (3, 40), (7, 24, 41, 37), (2, 64, 32, 32), (0, 16, 5, 5)]
)
def test_silu_is_the_same_whatever_is_beside_it(shape: tuple[int, ...], threads: int) -> None:
    """Of numbers that don't fill a vector torch computes the exponential in another way."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for laid in [x] + ([x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else []):
            with SameBits():
                y = silu(laid)
                assert y.stride() == laid.stride() or not len(x)
                for row in range(len(x)):
                    assert torch.equal(y[row], silu(torch.cat([laid[row : row + 1]] * 2))[0]), row
            torch.testing.assert_close(y, F.silu(x))
    finally:
        torch.set_num_threads(before)


def test_one_row_is_asked_about_twice() -> None:
    one, two = torch.tensor([3]), torch.tensor([3, 4])
    assert torch.equal(paired(one), one)
    with SameBits():
        assert paired(one).tolist() == [3, 3]
        assert torch.equal(paired(two), two)


def test_a_whole_network_computes_the_same(tiny_pipe: Pipeline) -> None:
    z: Tensor = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = tiny_pipe.autoencoder.decode(z)
        with same_bits(tiny_pipe.autoencoder) as active:
            assert isinstance(active, SameBits)
            torch.testing.assert_close(tiny_pipe.autoencoder.decode(z), expected, rtol=1e-4, atol=1e-5)


def test_only_float32_is_touched() -> None:
    with same_bits(nn.Linear(2, 2, dtype=torch.bfloat16)) as active:
        assert active is None
