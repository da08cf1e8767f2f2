"""Networks that enlarge, against spandrel's of the same weights, and in tiles against the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from enlargers import architecture
from torch import nn

from darkroom.kernels.tiles import tiles
from darkroom.models.upscaler import CLASSES, CompactConfig, RRDBConfig, SpanConfig, UpscalerConfig

SMALL: list[UpscalerConfig] = [
    *(RRDBConfig(width=8, growth=4, blocks=2, doublings=n) for n in range(4)),
    RRDBConfig(width=8, growth=4, blocks=2, doublings=2, unshuffle=2),
    RRDBConfig(width=8, growth=4, blocks=2, doublings=2, unshuffle=4),
    RRDBConfig(width=8, growth=4, blocks=2, doublings=1, plus=True),
    CompactConfig(width=8, layers=4, scale=3),
    CompactConfig(width=8, layers=4, scale=1),
    SpanConfig(width=8, scale=2),
]


def built(config: UpscalerConfig) -> Any:
    torch.manual_seed(0)
    network: nn.Module = CLASSES[type(config)](config)
    return network.eval()


@pytest.mark.parametrize("config", SMALL, ids=str)
@torch.no_grad()
def test_in_tiles_it_is_the_same_picture(config: UpscalerConfig) -> None:
    network = built(config)
    x = torch.rand(1, 3, 61, 85)
    whole = network(x)
    assert whole.shape == (1, 3, 61 * config.scale, 85 * config.scale)
    seen: list[int] = []
    parts = network(x, tiles(0, lambda: seen.append(1)))
    assert len(seen) > 4
    assert (parts - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("config", SMALL, ids=str)
@torch.no_grad()
def test_any_size_is_enlarged(config: UpscalerConfig) -> None:
    network = built(config)
    for height, width in ((1, 1), (2, 3), (7, 5)):
        assert network(torch.rand(1, 3, height, width)).shape[-2:] == (config.scale * height, config.scale * width)


@torch.no_grad()
def test_compact_is_spandrels() -> None:
    theirs = architecture("Compact").Compact(num_feat=8, num_conv=4, upscale=3).eval()
    ours = built(CompactConfig(width=8, layers=4, scale=3))
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 13, 10)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("normalised", [True, False])
@torch.no_grad()
def test_span_is_spandrels(normalised: bool) -> None:
    theirs = architecture("SPAN").SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2, norm=normalised).eval()
    ours = built(SpanConfig(width=8, scale=2, normalised=normalised))
    state = {k: v for k, v in theirs.state_dict().items() if "eval_conv" not in k and k != "no_norm"}
    ours.load_state_dict(state)
    x = torch.rand(1, 3, 13, 10)
    wanted = theirs(x)
    assert (ours(x) - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)


def test_what_can_not_be_built_is_refused() -> None:
    for wrong in (
        lambda: CompactConfig(scale=17),
        lambda: CompactConfig(layers=100_000),
        lambda: RRDBConfig(doublings=5),
        lambda: RRDBConfig(doublings=1, unshuffle=4),
        lambda: RRDBConfig(blocks=100_000),
        lambda: SpanConfig(in_channels=1),
    ):
        with pytest.raises(ValueError, match="is "):
            wrong()
