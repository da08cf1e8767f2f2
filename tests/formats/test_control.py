"""ControlNets' files: rules against diffusers' own networks and conversion, reading, writing, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom.errors import CheckpointError
from darkroom.formats.control import PART, is_controlnet, open_controlnet, save_controlnet
from darkroom.formats.layouts import table
from darkroom.formats.rules import native_shapes
from darkroom.formats.tensors import Glance
from darkroom.formats.weights import native_state
from darkroom.models.config import ControlNetConfig, UNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.models.presets import SD2_UNET, SD15_UNET


def control(base: UNetConfig, **values) -> ControlNetConfig:
    return ControlNetConfig(**{field.name: getattr(base, field.name) for field in fields(UNetConfig)} | values)


SD1, SD2 = control(SD15_UNET), control(SD2_UNET, sample_size=64)
UNEVEN = ControlNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=(3, 3, 3),
    attention_levels=(False, True, False),
    only_cross_attention=(False, True, False),
    transformer_layers=(1, 2, 1),
    heads=(1, 2, 3),
    cross_attention_dim=48,
    hint_widths=(8, 24),
    hint_channels=4,
)
TINY = ControlNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=(1, 1),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(8, 8),
    cross_attention_dim=24,
)


@pytest.fixture(scope="module")
def net() -> ControlNet:
    torch.manual_seed(0)
    net = ControlNet(TINY)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.normal_()
    return net


def loaded(path: Path, config: ControlNetConfig = TINY) -> dict[str, torch.Tensor]:
    file = open_controlnet(path)
    assert file.controlnet_config == config
    return native_state(file, PART, native_shapes(config))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("config", [SD1, SD2, UNEVEN], ids=["sd1", "sd2", "uneven"])
def test_names_and_shapes_are_diffusers(config: ControlNetConfig) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    native = native_shapes(config)
    with torch.device("meta"):
        peer = ControlNetModel.from_config(config.to_diffusers())
    theirs = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    assert {place.name: native[name] for name, place in table(PART, "diffusers", native, config).items()} == theirs


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("start", ["control_model.", ""])
def test_original_names_are_those_that_diffusers_converts(config: ControlNetConfig, start: str) -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    native = native_shapes(config)
    places = table(PART, "ldm", native, config)
    assert all(place.name.startswith("control_model.") for place in places.values())
    numbers = {name: torch.tensor(float(k)).expand(native[name]) for k, name in enumerate(native)}
    original = {start + place.name.removeprefix("control_model."): numbers[name] for name, place in places.items()}
    converted = convert_controlnet_checkpoint(original, config.to_diffusers())
    expected = {place.name: numbers[name] for name, place in table(PART, "diffusers", native, config).items()}
    assert converted.keys() == expected.keys()
    assert all(converted[name].flatten()[0] == expected[name].flatten()[0] for name in expected)
    assert all(converted[name].shape == expected[name].shape for name in expected)


@pytest.mark.parametrize("name", ["net", "net.safetensors"])
def test_written_is_read_again(net: ControlNet, tmp_path: Path, name: str) -> None:
    path = save_controlnet(tmp_path / name, net.state_dict(), TINY)
    assert is_controlnet(Glance(path))
    assert same(loaded(path), net.state_dict())
    half = save_controlnet(tmp_path / f"half-{name}", net.state_dict(), TINY, dtype=torch.float16)
    state = loaded(half)
    assert all(state[key].dtype == torch.float16 for key in state)
    assert open_controlnet(path).hash() != open_controlnet(half).hash()


def test_diffusers_opens_what_we_write_and_we_what_it_writes(net: ControlNet, tmp_path: Path) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    save_controlnet(tmp_path / "ours", net.state_dict(), TINY)
    peer = ControlNetModel.from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    assert same(loaded(tmp_path / "theirs"), net.state_dict())
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    (tmp_path / "theirs").rename(pipeline / "controlnet")
    assert same(loaded(pipeline), net.state_dict())


def original_state(net: ControlNet, start: str = "control_model.") -> dict[str, torch.Tensor]:
    state = net.state_dict()
    places = table(PART, "ldm", state, net.config)
    return {start + places[name].name.removeprefix("control_model."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("start", ["control_model.", ""])
@pytest.mark.parametrize("ending", ["safetensors", "pth", "ckpt"])
def test_files_without_a_configuration(net: ControlNet, tmp_path: Path, start: str, ending: str) -> None:
    """Original files as published, whose shapes alone tell what they are."""
    path = tmp_path / f"control_sd15_canny.{ending}"
    state = original_state(net, start)
    if ending == "safetensors":
        save_file(state, path)
    else:
        if start:
            state |= {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3), "betas": torch.zeros(4)}
        torch.save({"state_dict": state}, path)
    assert open_controlnet(path).kind == "original file"
    assert same(loaded(path), net.state_dict())


def test_a_diffusers_file_without_a_configuration(net: ControlNet, tmp_path: Path) -> None:
    folder = save_controlnet(tmp_path / "net", net.state_dict(), TINY)
    weights = folder / "diffusion_pytorch_model.safetensors"
    assert same(loaded(weights), net.state_dict())  # by the config.json beside it
    alone = tmp_path / "alone.safetensors"
    weights.rename(alone)
    assert open_controlnet(alone).kind == "diffusers file"
    assert same(loaded(alone), net.state_dict())


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("config", [SD1, SD2, UNEVEN], ids=["sd1", "sd2", "uneven"])
def test_shapes_tell_the_configuration(config: ControlNetConfig, layout, tmp_path: Path) -> None:
    from darkroom.formats import control as room
    from darkroom.formats.tensors import TensorFile

    native = native_shapes(config)
    places = table(PART, layout, native, config)
    shapes = {place.name.removeprefix("control_model."): tuple(native[name]) for name, place in places.items()}
    found = room._config(TensorFile(tmp_path / "x", []), tmp_path / "x", shapes, layout)
    if config is UNEVEN:  # no shape tells heads, nor what a level without attention would have
        untold = {name: getattr(config, name) for name in ("heads", "only_cross_attention", "transformer_layers")}
        found = replace(found, **untold)
    assert found == config


def test_what_is_no_controlnet(net: ControlNet, tmp_path: Path, sd1) -> None:
    model = sd1.save(tmp_path / "model.safetensors")
    folder = sd1.save(tmp_path / "model")
    assert not is_controlnet(Glance(model))
    assert not is_controlnet(Glance(folder))
    assert not is_controlnet(Glance(tmp_path / "none"))
    for source, sentence in (
        (model, "is no ControlNet but a whole model: give it with --model"),
        (folder, "is no ControlNet but a whole model"),
        (folder / "unet", "is of a U-Net; a ControlNet's is of a ControlNetModel"),
        (folder / "unet" / "diffusion_pytorch_model.safetensors", "is no ControlNet but a U-Net"),
        (folder / "tokenizer", "is no ControlNet: it has no config.json"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            open_controlnet(source)
    from darkroom.formats.checkpoint import open_checkpoint

    path = save_controlnet(tmp_path / "net.safetensors", net.state_dict(), TINY)
    with pytest.raises(CheckpointError, match="is a ControlNet, not a whole model: give it with --control"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="ControlNet"):
        open_checkpoint(save_controlnet(tmp_path / "net", net.state_dict(), TINY))


def test_broken_files(net: ControlNet, tmp_path: Path) -> None:
    path = save_controlnet(tmp_path / "net.safetensors", net.state_dict(), TINY)
    state = load_file(path)

    def broken(name: str, **changes: torch.Tensor | None) -> Path:
        changed = {k: v for k, v in {**state, **changes}.items() if v is not None}
        save_file(changed, tmp_path / name)
        return tmp_path / name

    conv = "control_model.zero_convs.1.0.weight"
    with pytest.raises(CheckpointError, match=f"1 key is missing \\({conv}\\)"):
        loaded(broken("missing.safetensors", **{conv: None}))
    with pytest.raises(CheckpointError, match=r"1 unknown keys? \(what.is.this\)"):
        loaded(broken("extra.safetensors", **{"what.is.this": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 key is unknown \(control_model.more\)"):
        loaded(broken("more.safetensors", **{"control_model.more": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"not finite|NaN"):
        loaded(broken("nan.safetensors", **{conv: torch.full_like(state[conv], torch.nan)}))
    with pytest.raises(CheckpointError, match="wrong shape"):
        loaded(broken("shape.safetensors", **{conv: torch.zeros(5, 5, 1, 1)}))
    with pytest.raises(CheckpointError, match="holds parts of a ControlNet only"):
        open_controlnet(broken_parts(tmp_path))
    with pytest.raises(CheckpointError, match="Darkroom writes no pickles"):
        save_controlnet(tmp_path / "net.pth", net.state_dict(), TINY)


def broken_parts(tmp_path: Path) -> Path:
    save_file({"control_model.zero_convs.0.0.weight": torch.zeros(4, 4, 1, 1)}, tmp_path / "parts.safetensors")
    return tmp_path / "parts.safetensors"
