"""Compiled blocks: the same answers, code shared by kind, a bounded number of variants, and no hook passed over.

Most tests let dynamo trace the blocks and run what it traced plainly: the C++ compiler would take minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom.accelerate import compiled
from darkroom.accelerate.compiled import compile_blocks, is_compiled
from darkroom.adapters import Scaled, attached, init_lora
from darkroom.engine import Engine, Finished
from darkroom.kernels.packed import Hooks
from darkroom.models.config import UNetConfig
from darkroom.models.layers import Block, ResnetBlock
from darkroom.models.unet import UNet
from darkroom.pipeline import Pipeline
from darkroom.request import Request

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=(2, 2),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 2),
    cross_attention_dim=12,
    norm_num_groups=4,
)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Lets dynamo trace and nothing compile; counts the traces of each kind."""
    real, traces = torch.compile, Counter[str]()

    def quickly(function: Any, mode: str | None = None) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            traces[function.__name__] += 1
            return graph.forward

        return real(function, backend=backend)

    monkeypatch.setattr(torch, "compile", quickly)
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    yield traces
    compiled._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def twins() -> tuple[UNet, UNet]:
    """Two networks with the same weights."""
    torch.manual_seed(0)
    plain = UNet(CONFIG).eval().requires_grad_(False)
    other = UNet(CONFIG).eval().requires_grad_(False)
    other.load_state_dict(plain.state_dict())
    return plain, other


def question(rows: int, height: int = 8, width: int = 8, tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    x, text = torch.randn(rows, 4, height, width, generator=g), torch.randn(rows, tokens, 12, generator=g)
    return x, torch.linspace(20, 900, rows), text


@torch.no_grad()
def test_code_is_shared_and_variants_are_few(twins: tuple[UNet, UNet], traced: Counter[str]) -> None:
    plain, other = twins
    compile_blocks(other)
    assert is_compiled(other)
    assert not is_compiled(plain)
    blocks = [block for block in other.modules() if isinstance(block, Block)]
    first = question(2)
    torch.testing.assert_close(other(*first), plain(*first), rtol=1e-5, atol=1e-5)
    assert len(traced) < len(blocks)
    assert sum(traced.values()) <= len(traced) + 3  # where one kind has two sizes, it is compiled for both
    second, third = question(3, 10, 6, 9), question(5, 14, 18, 11)
    torch.testing.assert_close(other(*second), plain(*second), rtol=1e-5, atol=1e-5)
    assert max(traced.values()) <= 3
    before = traced.copy()
    torch.testing.assert_close(other(*third), plain(*third), rtol=1e-5, atol=1e-5)
    assert traced == before  # what was left open the second time serves any size


@torch.no_grad()
def test_hooks_are_not_passed_over(twins: tuple[UNet, UNet], traced: Counter[str]) -> None:
    plain, other = twins
    compile_blocks(other)
    lora = init_lora(plain, 3, 2.0, "attention")
    for up in lora.up:
        torch.nn.init.normal_(up, std=0.5)
    rows = [(Scaled(lora.adapter("unet")),), ()]
    inputs = question(2)
    without = other(*inputs)
    with attached(plain, "unet", rows):
        expected = plain(*inputs)
    with attached(other, "unet", rows):
        found = other(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[0] - without[0]).abs().max() > 0.01
    torch.testing.assert_close(other(*inputs), without)
    block = next(block for block in other.modules() if isinstance(block, ResnetBlock))
    assert not Hooks(other)
    handle = block.register_forward_pre_hook(lambda layer, given: (given[0] + 1, given[1]))
    assert Hooks(other)
    assert (other(*inputs) - without).abs().max() > 0.01
    handle.remove()
    torch.testing.assert_close(other(*inputs), without)


def test_gradients(traced: Counter[str]) -> None:
    torch.manual_seed(0)
    blocks = [ResnetBlock(4, 8, 2, 1e-6, 6) for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    compile_blocks(blocks[1])
    x, time = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    for block in blocks:
        block(x, time).square().sum().backward()
    assert sum(traced.values()) == 1
    for a, b in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_pictures_are_drawn_by_compiled_networks(tiny_folder: Any, traced: Counter[str]) -> None:
    import darkroom

    plain, other = darkroom.load(tiny_folder), darkroom.load(tiny_folder, compile=True)
    assert is_compiled(other.unet)
    assert is_compiled(other.autoencoder)
    drawn = [_drawn(pipe) for pipe in (plain, other)]
    assert any(kind.startswith("PixelAttention") for kind in traced)  # of the autoencoder
    assert any(kind.startswith("SpatialTransformer") for kind in traced)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)


def _drawn(pipe: Pipeline) -> Tensor:
    """A picture of an engine that promises the same bits [3, H, W]."""
    engine = Engine(pipe, deterministic=True)
    engine.add(Request(prompt="a red fox", steps=2, seed=3, width=64, height=64), output="pt")
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, Finished):
                return event.result  # type: ignore[return-value]
    raise AssertionError("nothing was drawn")


@torch.no_grad()
def test_inductor_compiles_a_block() -> None:
    """Really, with the C++ compiler: one small block."""
    torch.manual_seed(0)
    plain, other = (ResnetBlock(4, 4, 2, 1e-6).eval() for _ in range(2))
    other.load_state_dict(plain.state_dict())
    compile_blocks(other)
    torch._dynamo.utils.counters.clear()
    x = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(other(x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
