"""The rules against diffusers' and transformers' own networks and diffusers' own conversion, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from darkroom.formats.layouts import canonical, is_ignored, table
from darkroom.models import presets
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

UNEVEN_UNET = presets.UNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=(1, 3, 2),
    attention_levels=(False, True, False),
    only_cross_attention=(False, True, False),
    transformer_layers=(1, 2, 1),
    heads=(1, 2, 3),
    cross_attention_dim=48,
)
UNETS = {
    "sd1": presets.SD15_UNET,
    "inpainting": presets.INPAINTING_UNET,
    "sd2": presets.SD2_UNET,
    "upscaler": presets.UPSCALER_UNET,
    "one level": presets.UNetConfig(
        block_out_channels=(32,),
        layers_per_block=(1,),
        attention_levels=(True,),
        only_cross_attention=(False,),
        transformer_layers=(1,),
        heads=(1,),
        cross_attention_dim=8,
    ),
    "uneven": UNEVEN_UNET,
}
AUTOENCODERS = {
    "sd": presets.SD15_AUTOENCODER,
    "upscaler": presets.UPSCALER_AUTOENCODER,
    "bare": presets.AutoencoderConfig(use_quant_conv=False, use_post_quant_conv=False, mid_block_attention=False),
}
TEXT_ENCODERS = {"sd1": presets.SD15_TEXT_ENCODER, "sd2": presets.SD2_TEXT_ENCODER}
Shapes = dict[str, torch.Size]


def shapes(module: torch.nn.Module) -> Shapes:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def on_meta(build: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return build(*arguments, **options)


def in_file(native: Shapes, part: Any, layout: Any, config: Any) -> Shapes:
    """The shapes of the file that a table describes."""
    result: dict[str, list[int]] = {}
    for name, place in table(part, layout, native, config).items():
        shape = list(native[name])
        if place.as_convolution and len(shape) == 2:
            shape += [1, 1]
        if place.third is not None:
            shape[0] *= 3
        assert place.name not in result or place.third is not None, place.name
        result[place.name] = shape
    return {name: torch.Size(shape) for name, shape in result.items()}


def tagged(file: Shapes) -> dict[str, torch.Tensor]:
    """Real tensors of those shapes without their memory: each is one number, broadcast, that tells which it is."""
    return {name: torch.tensor(float(k)).expand(shape) for k, (name, shape) in enumerate(file.items())}


@pytest.mark.parametrize("name", UNETS)
def test_unet_names_and_shapes_are_diffusers(name: str) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = UNETS[name]
    theirs = on_meta(UNet2DConditionModel.from_config, config.to_diffusers())
    assert in_file(shapes(on_meta(UNet, config)), "unet", "diffusers", config) == shapes(theirs)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_names_and_shapes_are_diffusers(name: str) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config = AUTOENCODERS[name]
    theirs = on_meta(AutoencoderKL.from_config, config.to_diffusers())
    assert in_file(shapes(on_meta(Autoencoder, config)), "autoencoder", "diffusers", config) == shapes(theirs)


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_text_encoder_names_and_shapes_are_transformers(name: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = TEXT_ENCODERS[name]
    theirs = shapes(on_meta(CLIPTextModel, CLIPTextConfig(**config.to_diffusers())))
    theirs = {canonical("text_encoder", "diffusers", key): shape for key, shape in theirs.items()}
    theirs = {key: shape for key, shape in theirs.items() if not is_ignored("text_encoder", "diffusers", key)}
    assert in_file(shapes(on_meta(TextEncoder, config)), "text_encoder", "diffusers", config) == theirs


def follow(native: Shapes, part: Any, layout: Any, config: Any, file: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """native name -> the tag of the tensor it is read from."""
    return {n: float(file[p.name].flatten()[0]) for n, p in table(part, layout, native, config).items()}


@pytest.mark.parametrize("name", ["sd1", "inpainting", "sd2", "upscaler"])
def test_ldm_unet_is_what_diffusers_converts(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = UNETS[name]
    native = shapes(on_meta(UNet, config))
    file = tagged(in_file(native, "unet", "ldm", config))
    theirs = convert_ldm_unet_checkpoint(dict(file), {**config.to_diffusers(), "layers_per_block": 2})
    assert {k: v.shape for k, v in theirs.items()} == in_file(native, "unet", "diffusers", config)
    assert follow(native, "unet", "ldm", config, file) == follow(native, "unet", "diffusers", config, theirs)


@pytest.mark.parametrize("name", ["sd", "upscaler"])
def test_ldm_autoencoder_is_what_diffusers_converts(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = AUTOENCODERS[name]
    native = shapes(on_meta(Autoencoder, config))
    file = tagged(in_file(native, "autoencoder", "ldm", config))
    theirs = convert_ldm_vae_checkpoint(dict(file), config.to_diffusers())
    assert {k: v.shape for k, v in theirs.items()} == in_file(native, "autoencoder", "diffusers", config)
    assert follow(native, "autoencoder", "ldm", config, file) == follow(
        native, "autoencoder", "diffusers", config, theirs
    )


def test_ldm_clip_is_what_diffusers_converts() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    config = presets.SD15_TEXT_ENCODER
    native = shapes(on_meta(TextEncoder, config))
    file = tagged(in_file(native, "text_encoder", "ldm", config))
    theirs = convert_ldm_clip_checkpoint(dict(file))
    assert {k: v.shape for k, v in theirs.items()} == in_file(native, "text_encoder", "diffusers", config)
    ours = follow(native, "text_encoder", "ldm", config, file)
    assert ours == follow(native, "text_encoder", "diffusers", config, theirs)


def test_open_clip_is_what_diffusers_converts() -> None:
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    config = presets.TextEncoderConfig(
        vocab_size=50, hidden_size=12, intermediate_size=48, num_hidden_layers=3, hidden_act="gelu"
    )
    native = shapes(on_meta(TextEncoder, config))
    places = table("text_encoder", "openclip", native, config)
    file = {n: torch.randn(s) for n, s in in_file(native, "text_encoder", "openclip", config).items()}
    theirs = convert_open_clip_checkpoint(SimpleNamespace(config=SimpleNamespace(hidden_size=12)), dict(file))
    diffusers = table("text_encoder", "diffusers", native, config)
    assert set(theirs) == {place.name for place in diffusers.values()}
    for name, place in places.items():
        ours = file[place.name] if place.third is None else file[place.name].chunk(3)[place.third]
        assert torch.equal(ours, theirs[diffusers[name].name]), name


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_tensor_has_a_place_of_its_own_in_ldm(name: str) -> None:
    native = shapes(on_meta(UNet, UNETS[name]))
    places = {place.name for place in table("unet", "ldm", native, UNETS[name]).values()}
    assert len(places) == len(native)


def test_known_ldm_names() -> None:
    config = presets.SD15_UNET
    native = shapes(on_meta(UNet, config))
    places = {n: p.name.removeprefix("model.diffusion_model.") for n, p in table("unet", "ldm", native, config).items()}
    assert places["down.1.resnets.0.shortcut.weight"] == "input_blocks.4.0.skip_connection.weight"
    assert places["down.2.downsample.bias"] == "input_blocks.9.0.op.bias"
    assert places["up.0.upsample.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert places["up.1.upsample.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert places["up.3.attentions.2.blocks.0.attn2.k.weight"] == (
        "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"
    )


def test_a_name_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"down\.0\.unknown\.weight"):
        table("unet", "ldm", ["down.0.unknown.weight"], presets.SD15_UNET)
    with pytest.raises(KeyError, match="conv_input"):
        table("unet", "ldm", ["conv_input.weight"], presets.SD15_UNET)
