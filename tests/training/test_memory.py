"""The estimate of memory: parts that can be counted by hand, and a step that is really made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from darkroom import embedded
from darkroom.errors import TrainingError
from darkroom.models.layers import set_checkpointing
from darkroom.training import memory
from darkroom.training.finetune import finetune
from darkroom.training.kinds import KINDS
from darkroom.training.lora import lora as lora_recipe
from darkroom.training.recipe import LoopConfig
from darkroom.training.run import estimate

CONFIG = LoopConfig(steps=1, batch_size=1, lr=0.1, optimizer="adamw", precision="float32")


def test_what_lives_is_counted_at_its_most() -> None:
    with memory.Live() as live:
        a = torch.zeros(1000)
        b = a + 1
        c = b.view(10, 100)  # no memory of its own
        del b
        assert live.now == 8000
        del c
        assert live.now == 4000
        a.add_(1)
    assert (live.now, live.most) == (4000, 8000)


def test_the_parts_are_those_that_can_be_counted() -> None:
    with memory.Sketch().inside():
        frozen = nn.Linear(100, 100, bias=False).requires_grad_(False)
        learns = nn.Linear(100, 10, bias=False)
        x = torch.zeros(50, 100)
        found = memory.estimate(CONFIG, {"learns": learns}, [frozen], lambda: learns(frozen(x)).square().mean())
    assert found.weights == 4 * (10_000 + 1000)
    assert found.gradients == found.average == 4000
    assert 8000 <= found.optimizer <= 8100
    # frozen(x), what it becomes, its square, and on the way back their gradients
    assert 4 * 50 * 110 <= found.activations <= 4 * (50 * 110 + 6 * 500 + 1000)
    assert found.total > memory.PROCESS


@pytest.mark.parametrize(("optimizer", "least", "most"), [("adamw", 8, 8.1), ("adamw8bit", 2, 2.3), ("muon", 4, 8)])
def test_an_optimizer_shows_what_it_keeps(optimizer: str, least: float, most: float) -> None:
    kept, of_all, of_largest = memory.cost(optimizer)
    assert least <= kept <= most
    assert (
        0 <= of_all <= (20 if optimizer == "muon" else 0.5)
    )  # those of 8 bits and fused ones go parameter by parameter
    assert of_largest >= 0


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor"])
def test_an_optimizer_is_looked_at_with_values_wherever_the_question_comes_from(optimizer: str) -> None:
    from darkroom.training import optim

    optim.table.cache_clear()
    with memory.Sketch().inside():
        inside = memory.cost(optimizer)
    assert inside == memory.cost(optimizer)
    assert type(optim.table(True)) is torch.Tensor


def test_the_estimate_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the same network with values holds as much, with checkpointing and without."""
    from darkroom.models.config import UNetConfig
    from darkroom.models.unet import UNet

    config = UNetConfig(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=(1, 1), attention_levels=(False, True),
        only_cross_attention=(False, False), transformer_layers=(1, 1), heads=(2, 2), cross_attention_dim=24,
        norm_num_groups=8,
    )  # fmt: skip
    found = {}
    for checkpointing in (False, True):
        recipe = replace(CONFIG, checkpointing=checkpointing)
        with memory.Sketch().inside():
            unet = UNet(config)
            inputs = torch.zeros(4, 4, 16, 16), torch.zeros(4), torch.zeros(4, 7, 24)
            found[checkpointing] = memory.estimate(
                recipe, {"unet": unet}, [], lambda unet=unet, inputs=inputs: unet(*inputs).square().mean()
            ).activations
        real, shown = UNet(config), (torch.randn(4, 4, 16, 16), torch.zeros(4), torch.randn(4, 7, 24))
        set_checkpointing(real, checkpointing)
        for p in real.parameters():
            p.grad = torch.zeros_like(p)
        known = [t for p in real.parameters() for t in (p, p.grad) if t is not None]
        with memory.Live(known) as live:
            real(*shown).square().mean().backward()
        assert found[checkpointing] == pytest.approx(live.most, rel=0.1)
    assert found[True] < 0.6 * found[False]


def test_shards_share_what_learns() -> None:
    with memory.Sketch().inside():
        network, x = nn.Linear(64, 64), torch.zeros(1, 64)
        sharded = replace(CONFIG, sharding="fsdp")
        whole, half = (memory.estimate(sharded, {"n": network}, [], lambda: network(x).mean(), world=w) for w in (1, 2))
    for part in ("weights", "gradients", "optimizer", "average"):
        assert getattr(half, part) == pytest.approx(getattr(whole, part) / 2, abs=1)


def test_a_lora_takes_less_than_the_whole_model() -> None:
    lora = estimate(lora_recipe())
    full = estimate(replace(finetune(), batch_size=lora_recipe().batch_size))
    assert lora.gradients < 0.1 * full.gradients
    assert lora.total < full.total
    assert "activations" in str(lora)


def test_long_captions_take_more() -> None:
    recipe = replace(finetune(), train="both")
    first, second = (estimate(replace(recipe, chunks=chunks)) for chunks in (1, 3))
    assert second.activations > 1.1 * first.activations
    assert replace(second, activations=0) == replace(first, activations=0)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_estimated(name: str) -> None:
    found = estimate(KINDS[name].recipe_of())
    learns = found.gradients
    assert found.weights >= learns > 0
    assert found.average >= learns
    assert min(found.optimizer, found.update + 1) > 0
    assert found.activations > 10**6


def test_a_distillation_into_a_lora_is_estimated() -> None:
    recipe = KINDS["distill"].recipe_of()
    whole = estimate(recipe)
    alone, aimed = (estimate(replace(recipe, student="lora", target_ema=ema)) for ema in (0.0, 0.9))
    assert 0 < alone.gradients == aimed.gradients < whole.gradients
    assert 0 < alone.average < aimed.average


def test_a_lora_that_goes_on_from_a_file_is_estimated() -> None:
    recipe = KINDS["lora"].recipe_of()
    file = embedded.place_of("embedded:sepia")
    found = estimate(replace(recipe, init=str(file), train="both"))
    assert found.gradients > 0
    assert found.activations > 10**6


def test_targets_that_are_no_layer_are_named_by_an_estimate() -> None:
    with pytest.raises(TrainingError, match=r"targets is '\*\.nothing\.\*', which is no layer of the unet"):
        estimate(replace(KINDS["lora"].recipe_of(), targets=("*.nothing.*",)))
