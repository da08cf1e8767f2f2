"""Adapters on networks: rows of their own, nothing left behind, merging undone to the bit."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # for lora_files
import lora_files as files

from darkroom.adapters import Adapter, Merged, Scaled, Update, attached, init_lora
from darkroom.diffusion.condition import Condition
from darkroom.engine import Engine, Finished, Inputs
from darkroom.pipeline import Pipeline
from darkroom.request import Request


def adapter(pipe: Pipeline, seed: int = 0, which: str = "all", name: str = "ink") -> Adapter:
    """A random LoRA for both networks."""
    parts = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, network in pipe.loras.networks.items():
            lora = init_lora(network, 3, 2.0, which)
            for up in lora.up:
                nn.init.normal_(up, std=0.2)
            parts |= lora.adapter(part).parts
    return Adapter(parts, name=name)


def bits(pipe: Pipeline) -> dict[str, Tensor]:
    return {f"{p}.{k}": t.clone() for p, n in pipe.loras.networks.items() for k, t in n.state_dict().items()}


def untouched(pipe: Pipeline, before: dict[str, Tensor]) -> bool:
    hooks = any(module._forward_hooks for n in pipe.loras.networks.values() for module in n.modules())
    now = bits(pipe)
    return not hooks and now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)


def question(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    g = files.generator(9)
    text = torch.randn(rows, 77, 32, generator=g)
    return torch.randn(rows, 4, 8, 8, generator=g), torch.linspace(20, 900, rows), text


@torch.no_grad()
def test_each_row_has_its_own(tiny_pipe: Pipeline) -> None:
    a, b = adapter(tiny_pipe, 1), adapter(tiny_pipe, 2, "attention")
    rows = [(), (Scaled(a),), (Scaled(b, -0.7), Scaled(a, 0.3)), (Scaled(a, 0.5), Scaled(a, 0.5)), (Scaled(b, 0.0),)]
    x, t, text = question(len(rows))
    with attached(tiny_pipe.unet, "unet", rows):
        together = tiny_pipe.unet(x, t, text)
    for i, row in enumerate(rows):
        with Merged(tiny_pipe.loras.networks, row):
            alone = tiny_pipe.unet(x[i : i + 1], t[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    plain = tiny_pipe.unet(x, t, text)
    assert not torch.allclose(together[1], plain[1], atol=1e-2)
    torch.testing.assert_close(together[4], plain[4])


@torch.no_grad()
def test_nothing_is_left_behind(tiny_pipe: Pipeline) -> None:
    before, x, lora = bits(tiny_pipe), question(2), Scaled(adapter(tiny_pipe))
    plain = tiny_pipe.unet(*x)
    with pytest.raises(ValueError, match="text"), attached(tiny_pipe.unet, "unet", [[lora], [lora]]):
        tiny_pipe.unet(*x[:2], torch.zeros(2, 77, 5))
    broken = Adapter({"unet": {**lora.adapter.parts["unet"], "nowhere": Update()}})
    with pytest.raises(AttributeError), attached(tiny_pipe.unet, "unet", [[Scaled(broken)]]):
        pass
    with Merged(tiny_pipe.loras.networks, [lora]):
        assert not torch.equal(tiny_pipe.unet(*x), plain)
    with pytest.raises(AttributeError):
        Merged(tiny_pipe.loras.networks, [Scaled(broken)])
    assert untouched(tiny_pipe, before)
    assert torch.equal(tiny_pipe.unet(*x), plain)


@torch.no_grad()
def test_another_thread_notices_nothing(tiny_pipe: Pipeline) -> None:
    x, lora = question(1), Scaled(adapter(tiny_pipe))
    plain = tiny_pipe.unet(*x)
    found: list[Tensor] = []

    def ask() -> None:
        with torch.no_grad():
            found.append(tiny_pipe.unet(*x))

    with attached(tiny_pipe.unet, "unet", [[lora]]):
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        assert not torch.equal(tiny_pipe.unet(*x), plain)
    assert torch.equal(found[0], plain)


def draw(engine: Engine, wanted: list[tuple[Request, Inputs]]) -> list[Tensor]:
    ids = [engine.add(request, inputs, output="latent") for request, inputs in wanted]
    found: dict[str, Any] = {}
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, Finished):
                found[event.id] = event.result
    return [found[id] for id in ids]


def test_different_loras_share_a_call(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures with three sets of LoRAs in one U-Net call; each as if it were alone."""
    a, b = adapter(tiny_pipe, 1), adapter(tiny_pipe, 2)
    request = Request(prompt="a red fox", steps=3, seed=1)
    wanted = [
        (request, Inputs()),
        (request, Inputs(loras=(Scaled(a, 0.8, 0.0),))),
        (request, Inputs(loras=(Scaled(b), Scaled(a, -0.5, -0.5)))),
    ]
    calls: list[int] = []
    denoise = tiny_pipe.denoiser._network
    monkeypatch.setattr(tiny_pipe.denoiser, "_network", lambda x, *r: calls.append(len(x)) or denoise(x, *r))
    together = draw(Engine(tiny_pipe), wanted)
    assert calls == [6, 6, 6]
    alone = [draw(Engine(tiny_pipe, deterministic=True), [one])[0] for one in wanted]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=0.05)
    # and with `deterministic` the bits do not depend on the company
    again = draw(Engine(tiny_pipe, deterministic=True), wanted)
    assert all(torch.equal(one, other) for one, other in zip(again, alone, strict=True))


def test_a_text_encoders_lora_is_in_the_cache_key(tiny_pipe: Pipeline) -> None:
    a = adapter(tiny_pipe)
    plain = tiny_pipe.prompts.encode("a red fox")
    with_lora = tiny_pipe.prompts.encode("a red fox", loras=[Scaled(a)])
    half = tiny_pipe.prompts.encode("a red fox", loras=[Scaled(a, 1.0, 0.5)])
    assert not torch.allclose(plain, with_lora, atol=1e-3)
    assert not torch.allclose(half, with_lora, atol=1e-3)
    assert torch.equal(tiny_pipe.prompts.encode("a red fox"), plain)
    assert torch.equal(tiny_pipe.prompts.encode("a red fox", loras=[Scaled(a, 3.0)]), with_lora)
    with Merged(tiny_pipe.loras.networks, [Scaled(a)]):
        tiny_pipe.prompts.clear()
        torch.testing.assert_close(tiny_pipe.prompts.encode("a red fox"), with_lora, rtol=1e-4, atol=1e-5)
    tiny_pipe.prompts.clear()


def test_jobs_with_loras_travel(tiny_pipe: Pipeline) -> None:
    import pickle

    inputs = Inputs(loras=(Scaled(adapter(tiny_pipe)),))
    request = Request(prompt="a car", steps=2, seed=4)
    expected = draw(Engine(tiny_pipe, deterministic=True), [(request, inputs)])[0]
    first = Engine(tiny_pipe, deterministic=True)
    id = first.add(request, inputs, output="latent")
    first.step()
    second = Engine(tiny_pipe, deterministic=True)
    second.resume(pickle.loads(pickle.dumps(first.jobs[id])))
    (found,) = [e.result for _ in range(2) for e in second.step() if isinstance(e, Finished)]
    assert torch.equal(found, expected)


def test_threads_do_not_change_the_bits(tiny_pipe: Pipeline) -> None:
    wanted = [(Request(prompt="a", steps=1, seed=1), Inputs(loras=(Scaled(adapter(tiny_pipe)),)))]
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            tiny_pipe.prompts.clear()
            found.append(draw(Engine(tiny_pipe, deterministic=True), wanted)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_training_reaches_the_factors_alone(tiny_pipe: Pipeline) -> None:
    lora = init_lora(tiny_pipe.unet, rank=2)
    x, t, text = question(2)
    plain = tiny_pipe.unet(x, t, text)
    optimizer = torch.optim.Adam(lora.parameters(), 0.01)
    losses = []
    for _ in range(6):
        with lora.attached(tiny_pipe.unet):
            batch = [Condition(row) for row in text]
            answer = tiny_pipe.denoiser.raw(x, 1.0, batch, t)
        loss = (answer - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in tiny_pipe.unet.parameters())
    assert torch.equal(tiny_pipe.unet(x, t, text), plain)
    learned = lora.adapter("unet")
    with torch.no_grad(), attached(tiny_pipe.unet, "unet", [[Scaled(learned)]]):
        assert not torch.equal(tiny_pipe.unet(x, t, text), plain)
    with pytest.raises(ValueError, match="no layer"):
        init_lora(tiny_pipe.unet, which=lambda path: False)
    with pytest.raises(ValueError, match="rank is 0"):
        init_lora(tiny_pipe.unet, 0)


def test_compiled_networks_have_them_too(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that was compiled before a hook came would pass over it, so `forward` itself is called."""
    monkeypatch.setattr(tiny_pipe.unet, "_compiled_call_impl", lambda *a, **k: pytest.fail("compiled code was called"))
    lora = Scaled(adapter(tiny_pipe))
    x, _, text = question(1)
    with torch.no_grad():
        found = tiny_pipe.denoiser(x, 2.0, [Condition(text[0], loras=(lora,))])
    monkeypatch.undo()
    with torch.no_grad(), Merged(tiny_pipe.loras.networks, [lora]):
        torch.testing.assert_close(found, tiny_pipe.denoiser(x, 2.0, [Condition(text[0])]), rtol=1e-4, atol=1e-4)
