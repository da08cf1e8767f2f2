"""Recorded calls: rows padded, answers cut, the oldest forgotten, and everything else called as it is.

The recorder here is honest but for the speed: it makes the answer again in the same memory, from the same buffers.
CUDA's own is tested where there is CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom.accelerate.graphs import RowGraphs, bucket
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=(1, 1),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 2),
    cross_attention_dim=12,
    norm_num_groups=4,
    num_class_embeds=5,
)


class Recorder:
    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        output = call()

        def replay() -> None:
            self.played += 1
            output.copy_(call())

        return output, replay


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval().requires_grad_(False)


def question(rows: int, side: int = 8, tokens: int = 7, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    x, text = torch.randn(rows, 4, side, side, generator=g), torch.randn(rows, tokens, 12, generator=g)
    return (x, torch.linspace(20, 900, rows), text), {"class_labels": torch.arange(rows) % 5, "time_cond": None}


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 33, 49)] == [
        *(1, 2, 4, 4, 6, 6, 8, 8, 12, 12, 16, 16, 24, 48, 64)
    ]
    for n in range(1, 3000):
        assert n <= bucket(n) < 1.5 * n + 1
        assert bucket(bucket(n)) == bucket(n)
    assert len({bucket(n) for n in range(1, 1025)}) == 19


@torch.no_grad()
def test_rows_are_padded_and_cut(unet: UNet) -> None:
    recorder = Recorder()
    graphs = RowGraphs(unet, recorder)
    kept = []
    for number, rows in enumerate((3, 4, 1, 3, 7, 4)):
        inputs, named = question(rows, seed=number)
        found = graphs(*inputs, **named)
        torch.testing.assert_close(found, unet(*inputs, **named), rtol=1e-5, atol=1e-5)
        kept.append((found, found.clone()))
    assert (recorder.recorded, recorder.played) == (3, 6)  # for 4, 1 and 8 rows
    assert [key[0] for key in graphs.recordings] == [1, 8, 4]  # type: ignore[index]
    for found, then in kept:
        assert torch.equal(found, then)  # an answer is nobody else's memory


@torch.no_grad()
def test_another_shape_is_another_recording_and_few_are_kept(unet: UNet) -> None:
    recorder = Recorder()
    graphs = RowGraphs(unet, recorder, most=2)
    a, b, c = question(2), question(2, side=12), question(2, tokens=9)
    for inputs, named in (a, b, a, c, a, b):  # c takes the place of b, and b that of c
        torch.testing.assert_close(graphs(*inputs, **named), unet(*inputs, **named), rtol=1e-5, atol=1e-5)
    assert recorder.recorded == 4
    assert len(graphs.recordings) == 2


@torch.no_grad()
def test_weights_that_change_are_seen(unet: UNet) -> None:
    recorder = Recorder()
    graphs = RowGraphs(unet, recorder)
    inputs, named = question(2)
    before = graphs(*inputs, **named)
    unet.conv_out.weight.mul_(2)  # in place, as merged LoRAs are
    assert not torch.allclose(graphs(*inputs, **named), before)
    assert recorder.recorded == 1
    unet.load_state_dict({name: tensor.clone() for name, tensor in unet.state_dict().items()}, assign=True)
    torch.testing.assert_close(graphs(*inputs, **named), unet(*inputs, **named), rtol=1e-5, atol=1e-5)
    assert (recorder.recorded, len(graphs.recordings)) == (2, 1)


def test_what_cannot_be_recorded_is_called(unet: UNet) -> None:
    recorder = Recorder()
    graphs = RowGraphs(unet, recorder)
    inputs, named = question(2)
    with torch.no_grad():
        skips, _ = unet.encode(unet.conv_in(inputs[0]), torch.zeros(2, 32), inputs[2])
        residuals = {"down_residuals": [torch.ones_like(s) for s in skips], "mid_residual": torch.ones_like(skips[-1])}
        identity = {"identity": {"down.0": torch.tensor([True, False])}}
        for extra in (residuals, identity):
            assert torch.equal(graphs(*inputs, **named, **extra), unet(*inputs, **named, **extra))
        hook = unet.conv_out.register_forward_hook(lambda layer, given, answer: answer + 1)
        assert torch.equal(graphs(*inputs, **named), unet(*inputs, **named))
        hook.remove()
    learned = inputs[0].requires_grad_()
    graphs(*inputs, **named).sum().backward()
    assert learned.grad is not None
    assert recorder.recorded == 0


def test_recorded_in_inference_mode_and_played_outside(unet: UNet) -> None:
    graphs = RowGraphs(unet, Recorder())
    with torch.inference_mode():
        inputs, named = question(3)
        first = graphs(*inputs, **named)
    with torch.no_grad():
        torch.testing.assert_close(first, unet(*inputs, **named), rtol=1e-5, atol=1e-5)
        inputs, named = question(4, seed=1)
        torch.testing.assert_close(graphs(*inputs, **named), unet(*inputs, **named), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        inputs, named = question(2, seed=2)
        torch.testing.assert_close(graphs(*inputs, **named), unet(*inputs, **named), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_out_of_memory_gives_all_recordings_back(unet: UNet) -> None:
    recorder = Recorder()

    def record(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        if recorder.recorded == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recorder(call)

    graphs = RowGraphs(unet, record)
    inputs, named = question(2)
    graphs(*inputs, **named)
    inputs, named = question(8)
    with pytest.raises(torch.OutOfMemoryError):
        graphs(*inputs, **named)
    assert not graphs.recordings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_cuda(unet: UNet, dtype: torch.dtype) -> None:
    unet.to("cuda", dtype)
    graphs = RowGraphs(unet)
    for number, rows in enumerate((3, 4, 1, 8, 3)):
        inputs, named = question(rows, seed=number)
        inputs = tuple(t.to("cuda", dtype if t.ndim > 1 else torch.float32) for t in inputs)
        named["class_labels"] = named["class_labels"].to("cuda")
        plain = unet(*inputs, **named)
        apart = (graphs(*inputs, **named) - plain).norm() / plain.norm()
        assert apart < (1e-4 if dtype == torch.float32 else 3e-2)
    assert len(graphs.recordings) == 3


def test_any_network_of_rows() -> None:
    linear = nn.Linear(3, 2).requires_grad_(False)
    graphs = RowGraphs(linear, Recorder())
    x = torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(graphs(x), linear(x))
