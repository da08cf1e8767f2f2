"""Adapters while they are trained: forward and gradients equal peft's, beginnings too; dropout, pausing, going on."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # for lora_files
import lora_files as files

import darkroom
from darkroom.adapters import Adapter, Scaled, TrainableLora, attached, init_lora
from darkroom.adapters.train import KINDS, WHICH
from darkroom.formats.lora_names import Home, Homes
from darkroom.formats.lora_save import save_lora
from darkroom.models.layers import set_checkpointing
from darkroom.pipeline import Pipeline

LAYERS = ["to_q", "to_v", "to_out.0", "conv1", "conv_shortcut", "downsamplers.0.conv", "proj_in", "ff.net.2"]
SLOTS = {"down": "lora_A", "up": "lora_B", "magnitude": "lora_magnitude_vector"}


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder, device="cpu")


def question() -> tuple[Tensor, Tensor, Tensor]:
    g = files.generator(9)
    return torch.randn(2, 4, 8, 8, generator=g), torch.linspace(20, 900, 2), torch.randn(2, 77, 32, generator=g)


def config(kind: str) -> Any:
    import peft

    if kind == "loha":
        return peft.LoHaConfig(target_modules=LAYERS, r=3, alpha=2)
    if kind == "lokr":
        return peft.LoKrConfig(target_modules=LAYERS, r=1, alpha=2, decompose_factor=4)
    return peft.LoraConfig(
        target_modules=LAYERS, r=3, lora_alpha=2, use_dora=kind == "dora", use_rslora=kind == "rslora"
    )


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "loha", "lokr"])
def test_one_steps_gradients_are_pefts(ours: Pipeline, tiny_reference: Any, tmp_path: Path, kind: str) -> None:
    """On the same weights: linear layers, 1x1, 3x3 and strided convolutions."""
    import peft

    torch.manual_seed(3)
    model = peft.get_peft_model(copy.deepcopy(tiny_reference.unet), config(kind))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = torch.randn_like(parameter) * 0.2
        elif parameter.requires_grad:
            parameter.data *= 1.2
    x, t, text = question()
    target = torch.randn(x.shape, generator=files.generator(2))
    theirs = (model(x, t, encoder_hidden_states=text).sample - target).square().mean()
    theirs.backward()
    model.save_pretrained(tmp_path / "a")

    lora = TrainableLora(ours.loras.get(tmp_path / "a").adapter.parts["unet"])
    with lora.attached(ours.unet):
        loss = (ours.unet(x, t, text) - target).square().mean()
        loss.backward()
    assert abs(loss.item() - theirs.item()) < 1e-5 * theirs.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    names = Homes({"unet": ours.unet}).names
    seen = 0
    for path, tensors in zip(lora.layers, lora.tensors, strict=True):
        for slot, parameter in tensors.items():
            start = f"base_model.model.{names[Home('unet', path)]}.{SLOTS.get(slot, slot)}.default"
            expected = gradients.pop(start if start in gradients else f"{start}.weight")
            assert parameter.grad is not None
            scale = expected.abs().max() + 1e-7
            assert (parameter.grad.reshape(-1) - expected.reshape(-1)).abs().max() < 1e-3 * scale, (path, slot)
            seen += 1
    assert seen > 20
    assert not gradients, "layers of theirs that ours has not"


def test_it_begins_as_pefts(tiny_reference: Any, ours: Pipeline) -> None:
    """Down uniform between -+ 1 / sqrt(inputs), up zero, and DoRA's magnitude the norm of each output's weights."""
    import peft

    model = peft.get_peft_model(copy.deepcopy(tiny_reference.unet), config("dora"))
    theirs = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    names = Homes({"unet": ours.unet}).names
    lora = init_lora(ours.unet, 3, 2.0, "all", kind="dora")
    for path, update in lora.updates().items():
        start = f"base_model.model.{names[Home('unet', path)]}"
        if f"{start}.lora_A.default.weight" not in theirs:
            continue
        magnitude, down = update.magnitude, update.factors["down"]
        assert magnitude is not None
        expected = theirs[f"{start}.lora_magnitude_vector.default.weight"]
        torch.testing.assert_close(magnitude.flatten(), expected.flatten())
        assert down.shape == theirs[f"{start}.lora_A.default.weight"].shape
        bound = 1 / math.sqrt(down[0].numel())
        assert 0.5 * bound < down.abs().max() <= bound
        assert theirs[f"{start}.lora_A.default.weight"].abs().max() <= bound
        assert not update.factors["up"].any()
        assert update.factor == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_nothing_at_first_and_is_drawn_with_as_it_was_trained(
    tiny_pipe: Pipeline, tmp_path: Path, kind: str
) -> None:
    """In both forms of file, and gone on with from each."""
    x, t, text = question()
    torch.manual_seed(0)
    lora = init_lora(tiny_pipe.unet, 4, 3.0, "all", kind=kind, conv_rank=2)
    with torch.no_grad(), lora.attached(tiny_pipe.unet):
        plain = tiny_pipe.unet(x, t, text)
    with torch.no_grad():
        assert torch.equal(tiny_pipe.unet(x, t, text), plain) or kind == "dora"
        torch.testing.assert_close(tiny_pipe.unet(x, t, text), plain)
    optimizer = torch.optim.SGD(lora.parameters(), 0.5)
    for _ in range(4):
        with lora.attached(tiny_pipe.unet):
            loss = (tiny_pipe.unet(x, t, text) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad(), lora.attached(tiny_pipe.unet):
        learned = tiny_pipe.unet(x, t, text)
    assert (learned - plain).abs().max() > 1e-3
    for form in ("diffusers", "kohya"):
        path = save_lora(tmp_path / f"{kind}-{form}.safetensors", lora.adapter(), {"unet": tiny_pipe.unet}, form)
        found = tiny_pipe.loras.get(path)
        again = TrainableLora(found.adapter.parts["unet"])
        with torch.no_grad(), attached(tiny_pipe.unet, "unet", [[Scaled(found.adapter)]]):
            torch.testing.assert_close(tiny_pipe.unet(x, t, text), learned, atol=1e-5, rtol=1e-4)
        with torch.no_grad(), again.attached(tiny_pipe.unet):
            torch.testing.assert_close(tiny_pipe.unet(x, t, text), learned, atol=1e-5, rtol=1e-4)


def test_kinds_of_layers(tiny_pipe: Pipeline) -> None:
    chosen = {which: set(init_lora(tiny_pipe.unet, 1, which=which).layers) for which in WHICH}
    assert chosen["attention"] < chosen["linear"] < chosen["all"]
    assert chosen["cross-attention"] < chosen["attention"]
    assert all(".attn2." in path for path in chosen["cross-attention"])
    assert chosen["convolutions"] | chosen["linear"] == chosen["all"]
    assert init_lora(tiny_pipe.text_encoder, 1).layers[0] == "layers.0.attention.q"
    ranks = {u.rank for u in init_lora(tiny_pipe.unet, 3, which="all", conv_rank=1).updates().values()}
    assert ranks == {1, 3}
    scaled = init_lora(tiny_pipe.unet, 4, 3.0, rslora=True)
    assert {u.factor for u in scaled.updates().values()} == {1.5}
    with pytest.raises(ValueError, match="which is 'atention'"):
        init_lora(tiny_pipe.unet, which="atention")
    with pytest.raises(ValueError, match="kind is 'lorra'"):
        init_lora(tiny_pipe.unet, kind="lorra")


def shaken(lora: TrainableLora) -> TrainableLora:
    for number, up in enumerate(lora.up):
        nn.init.normal_(up, std=0.2, generator=files.generator(number))
    return lora


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_a_function_of_seed_and_layer(tiny_pipe: Pipeline, kind: str) -> None:
    """So a layer computed again by gradient checkpointing drops the same; and only while training."""
    x, t, text = question()
    both = {"dropout": 0.3, "rank_dropout": 0.3}
    for options in ({"dropout": 0.3}, {"rank_dropout": 0.3}, both):
        torch.manual_seed(0)
        lora = shaken(init_lora(tiny_pipe.unet, 4, which="all", kind=kind, **options))  # type: ignore[arg-type]
        found = []
        for checkpointing in (False, True):
            set_checkpointing(tiny_pipe.unet, checkpointing)
            try:
                lora.zero_grad()
                lora.seed = 5
                with lora.attached(tiny_pipe.unet):
                    loss = (tiny_pipe.unet(x, t, text) - 1).square().mean()
                    loss.backward()
                found.append((loss.detach(), [p.grad for p in lora.parameters()]))
            finally:
                set_checkpointing(tiny_pipe.unet, False)
        (one, a), (two, b) = found
        assert torch.equal(one, two)
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True) if p is not None and q is not None)
        with lora.attached(tiny_pipe.unet):
            lora.seed = 6
            assert not torch.equal((tiny_pipe.unet(x, t, text) - 1).square().mean(), one)
        with torch.no_grad(), lora.attached(tiny_pipe.unet):
            without = tiny_pipe.unet(x, t, text)
            lora.seed = 7
            assert torch.equal(tiny_pipe.unet(x, t, text), without)
    with pytest.raises(ValueError, match="rank_dropout is"):
        init_lora(tiny_pipe.unet, kind="loha", rank_dropout=0.1)


def test_it_can_be_switched_off(tiny_pipe: Pipeline) -> None:
    x, t, text = question()
    lora = shaken(init_lora(tiny_pipe.unet, 2))
    with torch.no_grad():
        plain = tiny_pipe.unet(x, t, text)
        detach = lora.attach(tiny_pipe.unet)
        learned = tiny_pipe.unet(x, t, text)
        with lora.switched(False):
            assert torch.equal(tiny_pipe.unet(x, t, text), plain)
        assert torch.equal(tiny_pipe.unet(x, t, text), learned)
        assert not torch.equal(learned, plain)
        detach()
        assert torch.equal(tiny_pipe.unet(x, t, text), plain)


def test_a_copy_does_not_learn_on(tiny_pipe: Pipeline) -> None:
    lora = shaken(init_lora(tiny_pipe.unet, 2, kind="dora"))
    kept: Adapter = lora.adapter()
    tensors = [t for u in kept.parts["unet"].values() for t in (*u.factors.values(), u.magnitude) if t is not None]
    before = [tensor.clone() for tensor in tensors]
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
