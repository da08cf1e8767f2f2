"""LoRA against diffusers and peft: the same file, the same networks, the same answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for lora_files
import lora_files as files

import darkroom
from darkroom.adapters import Adapter, Merged, Scaled, Update, attached
from darkroom.formats.lora_save import Form, save_lora
from darkroom.pipeline import Pipeline

FORMS = {
    "peft": files.peft,
    "dotted": files.dotted,
    "processors": files.processors,
    "linear_layer": files.linear_layer,
}


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder, device="cpu")


@pytest.fixture
def theirs(tiny_reference: Any) -> Iterator[Any]:
    yield tiny_reference
    tiny_reference.unload_lora_weights()


def question(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = files.generator(9)
    text = torch.randn(rows, 77, 32, generator=g)
    return torch.randn(rows, 4, 8, 8, generator=g), torch.linspace(20, 900, rows), text


IDS = torch.arange(77)[None] % 90


@torch.no_grad()
def their_answers(theirs: Any) -> tuple[Tensor, Tensor]:
    x, t, text = question()
    return theirs.unet(x, t, encoder_hidden_states=text).sample, theirs.text_encoder(IDS)[0]


@torch.no_grad()
def our_answers(ours: Pipeline, *loras: Scaled) -> tuple[Tensor, Tensor]:
    x, t, text = question()
    with attached(ours.unet, "unet", [loras]), attached(ours.text_encoder, "text_encoder", [loras]):
        return ours.unet(x, t, text), ours.text_encoder(IDS)


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def load(theirs: Any, path: Path, name: str = "a") -> None:
    theirs.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_diffusers(ours: Pipeline, theirs: Any, tmp_path: Path, form: str) -> None:
    before = our_answers(ours)
    same(before, their_answers(theirs))
    path = files.renamed(theirs, tmp_path / "a.safetensors", FORMS[form])
    load(theirs, path)
    expected = their_answers(theirs)
    assert all((a - b).abs().max() > 0.01 * b.abs().max() for a, b in zip(expected, before, strict=True))
    same(our_answers(ours, ours.loras.get(path)), expected)


@pytest.mark.parametrize("alpha", [None, 2.0, 3.0])
def test_kohyas_form_and_alpha(ours: Pipeline, theirs: Any, tmp_path: Path, alpha: float | None) -> None:
    path = files.kohya(theirs, tmp_path / "a.safetensors", alpha=alpha)
    load(theirs, path)
    same(our_answers(ours, ours.loras.get(path)), their_answers(theirs))


def test_convolutions_and_all_linear_layers(ours: Pipeline, theirs: Any, tmp_path: Path) -> None:
    """Every layer of both networks, in PEFT's form: 1x1, 3x3 and strided convolutions among them."""
    tensors: dict[str, Tensor] = {}
    for part, name, layer in files.layers(theirs, None):
        down, up = files.factors(layer, 2, files.generator(len(tensors)))
        tensors[f"{part}.{name}.lora_A.weight"], tensors[f"{part}.{name}.lora_B.weight"] = down, up
    files.save_file(tensors, tmp_path / "a.safetensors")
    load(theirs, tmp_path / "a.safetensors")
    lora = ours.loras.get(tmp_path / "a.safetensors")
    assert sum(map(len, lora.adapter.parts.values())) == len(tensors) // 2
    expected = their_answers(theirs)
    same(our_answers(ours, lora), expected, 2e-5)
    with Merged(ours.loras.networks, [lora]):
        same(our_answers(ours), expected, 2e-5)


def test_several_at_once_with_weights(ours: Pipeline, theirs: Any, tmp_path: Path) -> None:
    one = files.kohya(theirs, tmp_path / "one.safetensors", seed=1)
    two = files.renamed(theirs, tmp_path / "two.safetensors", files.peft, seed=2, rank=5)
    load(theirs, one, "one")
    load(theirs, two, "two")
    theirs.set_adapters(["one", "two"], [0.7, -1.3])
    pair = [ours.loras.get(darkroom.Lora(one, 0.7)), ours.loras.get(darkroom.Lora(two, -1.3))]
    expected = their_answers(theirs)
    same(our_answers(ours, *pair), expected)
    with Merged(ours.loras.networks, pair):
        same(our_answers(ours), expected)


def test_dora_of_diffusers(ours: Pipeline, theirs: Any, tmp_path: Path) -> None:
    """In the U-Net: transformers' text encoders lose the magnitudes on the way (their load report says so)."""
    tensors: dict[str, Tensor] = {}
    g = files.generator(4)
    for part, name, layer in files.layers(theirs):
        if part == "unet":
            down, up = files.factors(layer, 3, g)
            tensors[f"unet.{name}.lora_A.weight"], tensors[f"unet.{name}.lora_B.weight"] = down, up
            tensors[f"unet.{name}.lora_magnitude_vector"] = torch.rand(len(up), generator=g) + 0.5
    files.save_file(tensors, tmp_path / "a.safetensors")
    load(theirs, tmp_path / "a.safetensors")
    theirs.set_adapters(["a"], [0.6])
    same(our_answers(ours, ours.loras.get(darkroom.Lora(tmp_path / "a.safetensors", 0.6))), their_answers(theirs))


def config(kind: str) -> Any:
    import peft

    layers = ["to_q", "to_k", "conv1", "conv_shortcut", "downsamplers.0.conv", "proj_in", "ff.net.2"]
    options = {"target_modules": layers, "r": 4, "init_weights": False}
    if kind == "loha":
        return peft.LoHaConfig(alpha=3, **options)
    if kind == "loha cp":
        return peft.LoHaConfig(alpha=3, use_effective_conv2d=True, **options)
    if kind == "lokr":
        return peft.LoKrConfig(alpha=2, decompose_both=True, decompose_factor=4, **options)
    if kind == "lokr cp":
        return peft.LoKrConfig(alpha=2, use_effective_conv2d=True, **options)
    options["init_lora_weights"] = options.pop("init_weights")
    return peft.LoraConfig(lora_alpha=6, use_dora=kind == "dora", use_rslora=kind == "rslora", **options)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "loha", "loha cp", "lokr", "lokr cp"])
def test_pefts_own_layers(ours: Pipeline, tiny_reference: Any, tmp_path: Path, kind: str) -> None:
    """What peft itself injects, saved by peft with its configuration beside it."""
    import copy

    import peft

    torch.manual_seed(3)
    model = peft.get_peft_model(copy.deepcopy(tiny_reference.unet), config(kind))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.3
        elif "lora_" in name or "hada_" in name or "lokr_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    x, t, text = question()
    with torch.no_grad():
        expected = model(x, t, encoder_hidden_states=text).sample
        plain = tiny_reference.unet(x, t, encoder_hidden_states=text).sample
    assert (expected - plain).abs().max() > 0.01 * plain.abs().max()
    model.save_pretrained(tmp_path / "ink")
    lora = ours.loras.get(tmp_path / "ink")
    assert lora.adapter.name == "ink"
    same((our_answers(ours, lora)[0],), (expected,))
    with Merged(ours.loras.networks, [lora]):
        same((our_answers(ours)[0],), (expected,), 2e-5)


def test_pictures_equal_diffusers(ours: Pipeline, theirs: Any, tmp_path: Path) -> None:
    path = files.kohya(theirs, tmp_path / "a.safetensors")
    load(theirs, path)
    theirs.set_adapters(["a"], [0.8])
    noise = torch.randn(1, 4, 8, 8, generator=files.generator(5))
    options: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "car"}
    expected = theirs("a red fox", num_inference_steps=6, latents=noise.clone(), output_type="pt", **options).images
    drawn = ours.generate("a red fox", steps=6, latents=noise, loras=[darkroom.Lora(path, 0.8)], output="pt", **options)
    assert (drawn.images - expected).abs().max() < 1e-3  # type: ignore[operator]
    plain = ours.generate("a red fox", steps=6, latents=noise, output="pt", **options)
    assert (plain.images - expected).abs().max() > 1e-2  # type: ignore[operator]


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_what_we_save_diffusers_reads(ours: Pipeline, theirs: Any, tmp_path: Path, form: Form) -> None:
    """Alpha other than the rank, layers of different ranks and alphas, text encoder included."""

    lora = ours.loras.get(files.kohya(theirs, tmp_path / "a.safetensors", rank=4, alpha=3.0)).adapter
    parts = {part: dict(updates) for part, updates in lora.parts.items()}
    for part in parts.values() if form == "diffusers" else ():  # diffusers takes one alpha for all from kohya's files
        first = next(iter(part))
        update = part[first]
        part[first] = Update({"down": update.factors["down"][:2], "up": update.factors["up"][:, :2]}, 2.5)
    save_lora(tmp_path / "b.safetensors", Adapter(parts), ours.loras.networks, form)
    load(theirs, tmp_path / "b.safetensors")
    expected = their_answers(theirs)
    same(our_answers(ours, Scaled(Adapter(parts))), expected)
    same(our_answers(ours, ours.loras.get(tmp_path / "b.safetensors")), expected)
