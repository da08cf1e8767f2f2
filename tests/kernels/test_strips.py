"""Autoencoding in strips equals the plain way, and holds less at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from darkroom.kernels import strips
from darkroom.kernels.exact import same_bits
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.models.presets import SD15_AUTOENCODER, UPSCALER_AUTOENCODER

TINY = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
CONFIGS = {
    "sd": replace(SD15_AUTOENCODER, block_out_channels=(8, 16, 24, 24), norm_num_groups=8),
    "upscaler": replace(UPSCALER_AUTOENCODER, block_out_channels=(8, 16, 16), norm_num_groups=4),
    "plain": replace(TINY, mid_block_attention=False, use_quant_conv=False, use_post_quant_conv=False),
    "flat": replace(TINY, block_out_channels=(8,), in_channels=1, out_channels=1),
    "wide": replace(TINY, latent_channels=16, layers_per_block=3),
}


def network(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Live(TorchDispatchMode):
    """The bytes of all tensors made in it that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:  # packed weights have no storage
                continue
            if (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return answer

    def gone(self, key: int, count: int) -> None:
        self.known.discard(key)
        self.now -= count


@pytest.mark.parametrize(("memory", "cached"), [(2e4, 600), (1e5, 1), (1e5, 6000), (4e5, 900)])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_plain_way(monkeypatch: pytest.MonkeyPatch, name: str, memory: float, cached: int) -> None:
    """Nothing, something and all can be kept: strips of a row, of some, and of many."""
    autoencoder, config = network(CONFIGS[name]), CONFIGS[name]
    monkeypatch.setattr(strips, "CACHED", cached)
    monkeypatch.setattr(strips, "STRIP", 1)
    f = config.downscale
    for height, width, more in ((3, 2, 0), (5, 3, f - 1)):
        pictures = torch.randn(1, config.in_channels, f * height + more, f * width)
        pictures[:, :, : f * 2] += 3.0  # statistics differ from strip to strip
        latents = torch.randn(2, config.latent_channels, height, width)
        latents[:, :, :2] *= 4
        before = latents.clone()
        monkeypatch.setattr(strips, "MANY", 2**60)
        encoded, decoded = autoencoder.encode(pictures), autoencoder.decode(latents)
        monkeypatch.setattr(strips, "MANY", 0)
        assert (autoencoder.encode(pictures, memory) - encoded).abs().max() < 1e-4 * max(encoded.abs().max(), 1)
        assert (autoencoder.decode(latents, memory) - decoded).abs().max() < 1e-4
        assert torch.equal(latents, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_numbers(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """And layers wide enough to be packed, where there is an enlarging convolution's quick form."""
    config = replace(TINY, block_out_channels=(16, 32))
    autoencoder = network(config).to(dtype)
    latents = torch.randn(1, 4, 21, 10, dtype=dtype)
    monkeypatch.setattr(strips, "MANY", 2**60)
    decoded = autoencoder.decode(latents)
    monkeypatch.setattr(strips, "MANY", 0)
    monkeypatch.setattr(strips, "CACHED", 5000)
    apart = (autoencoder.decode(latents) - decoded).norm() / decoded.norm()
    assert apart < (0.05 if dtype == torch.bfloat16 else 1e-10)


def test_computes_nothing_twice_and_holds_little_beside_the_largest_activation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths = (8, 12, 12, 12)  # too few to be packed: packed layers' work and tensors can't be counted
    autoencoder = network(replace(CONFIGS["sd"], block_out_channels=widths, norm_num_groups=4))
    latents = torch.randn(1, 4, 32, 16)
    largest = 12 * 256 * 128 * 4
    monkeypatch.setattr(strips, "CACHED", 12 * 8 * 128)
    peaks, work = [], []
    for many in (2**60, 0):
        monkeypatch.setattr(strips, "MANY", many)
        with Live() as live:
            autoencoder.decode(latents)
        with FlopCounterMode(display=False) as counted:
            autoencoder.decode(latents)
        peaks.append(live.most / largest)
        work.append(counted.get_total_flops())
    assert peaks[0] > 2  # the plain way: so that is what is counted
    assert peaks[1] < 1.5
    assert work[1] <= work[0] * 1.02


def test_a_layer_that_somebody_listens_to_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = network(TINY)
    monkeypatch.setattr(strips, "MANY", 0)
    heard: list[Tensor] = []
    autoencoder.decoder.conv_out.register_forward_hook(lambda _layer, _inputs, answer: heard.append(answer))
    answer = autoencoder.decode(torch.randn(1, 4, 3, 3))
    assert torch.equal(heard[0], answer)


def test_gradients_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "MANY", 0)
    with torch.enable_grad():
        latents = torch.randn(1, 4, 3, 3, requires_grad=True)
        network(TINY).decode(latents, memory=1).sum().backward()  # type: ignore[no-untyped-call]
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = network(replace(CONFIGS["sd"], block_out_channels=(32, 64, 64, 64)))
    monkeypatch.setattr(strips, "MANY", 0)
    latents, before = torch.randn(1, 4, 16, 24), torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with same_bits(autoencoder):
                answers.append(autoencoder.decode(latents))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_strip_is_a_share_of_the_memory_and_fits_a_processors_cache() -> None:
    assert strips.strip_of("cuda", 9e9, 2) == 50_000_000  # a ninetieth of the bytes
    assert strips.strip_of("cuda", 9e9, 4) == 25_000_000
    assert strips.strip_of("cpu", 9e9, 4) == 2**21
    assert strips.strip_of("cpu", 9e6, 4) == 25_000
