"""The configurations: published files read, written back, accepted by the peers, and counted on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from darkroom.models import presets
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from darkroom.models.layers import parameter_count
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

PRESETS = {
    name: value
    for name, value in vars(presets).items()
    if isinstance(value, (UNetConfig, AutoencoderConfig, TextEncoderConfig))
}
NETWORKS = {UNetConfig: UNet, AutoencoderConfig: Autoencoder, TextEncoderConfig: TextEncoder}

# `unet/config.json` as published, without the keys that only diffusers' own bookkeeping reads
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD15 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
SD21 = SD15 | {
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SD2_INPAINTING = SD21 | {
    "in_channels": 9,
    "sample_size": 64,
    "upcast_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
UPSCALER = SD15 | {
    "block_out_channels": [256, 512, 512, 1024],
    "cross_attention_dim": 1024,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
    "dual_cross_attention": False,
    "in_channels": 7,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP, "UpBlock2D"],
    "use_linear_projection": True,
}
LCM = SD15 | {
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": 256,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
    "use_linear_projection": False,
}
SDXL = LCM | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
    "use_linear_projection": True,
}
SDXL_REFINER = SDXL | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, "UpBlock2D"],
}
DISTILLED = SD15 | {  # a small model without a middle
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [CROSS_DOWN] * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
    "up_block_types": [CROSS_UP] * 3,
}
TESTING = {
    "block_out_channels": [32, 64],
    "cross_attention_dim": 32,
    "down_block_types": ["DownBlock2D", CROSS_DOWN],
    "sample_size": 32,
    "up_block_types": [CROSS_UP, "UpBlock2D"],
}
PUBLISHED = {
    "sd 1.5": (SD15, presets.SD15_UNET),
    "sd 2.1": (SD21, replace(presets.SD2_UNET, upcast_attention=True)),
    "sd 2 inpainting": (SD2_INPAINTING, replace(presets.SD2_UNET, in_channels=9, sample_size=64)),
    "x4 upscaler": (UPSCALER, presets.UPSCALER_UNET),
    "sdxl": (SDXL, presets.SDXL_UNET),
    "sdxl refiner": (SDXL_REFINER, presets.SDXL_REFINER_UNET),
    "lcm": (LCM, replace(presets.SD15_UNET, time_cond_proj_dim=256)),
    "instruct-pix2pix": (SD15 | {"in_channels": 8}, replace(presets.SD15_UNET, in_channels=8)),
    "distilled": (DISTILLED, None),
    "a test's": (TESTING, None),
}


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (presets.SD15_UNET, 859_520_964),
        (presets.SD15_AUTOENCODER, 83_653_863),
        (presets.SD15_TEXT_ENCODER, 123_060_480),
        (presets.SDXL_UNET, 2_567_463_684),
        (presets.SDXL_TEXT_ENCODER_2, 694_659_840),
    ],
)
def test_published_networks_have_their_size(preset, count):
    with torch.device("meta"):
        assert parameter_count(NETWORKS[type(preset)](preset)) == count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_peers_networks(name, peer):
    preset = PRESETS[name]
    with torch.device("meta"):
        other = peer(preset)
        assert parameter_count(NETWORKS[type(preset)](preset)) == sum(p.numel() for p in other.parameters())
    assert type(preset).from_diffusers(preset.to_diffusers()) == preset


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    published, expected = PUBLISHED[name]
    config = UNetConfig.from_diffusers(published)
    assert expected is None or config == expected
    assert UNetConfig.from_diffusers(config.to_diffusers()) == config
    with torch.device("meta"):
        other = UNet2DConditionModel.from_config(published)
        assert parameter_count(UNet(config)) == sum(p.numel() for p in other.parameters())


def test_defaults_are_those_of_the_peers(peer):
    """An absent key means what diffusers or transformers would take."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    with torch.device("meta"):
        unet = dict(UNet2DConditionModel().config)
        autoencoder = dict(AutoencoderKL().config)
    assert UNetConfig.from_diffusers({}) == UNetConfig.from_diffusers(unet)
    assert AutoencoderConfig.from_diffusers({}) == AutoencoderConfig.from_diffusers(autoencoder)
    assert TextEncoderConfig.from_diffusers({}) == replace(
        TextEncoderConfig.from_diffusers(CLIPTextConfig().to_dict()), pad_token_id=49407
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "'AttnDownBlock2D' is not one of"),
        ({"down_block_types": [[1]]}, r"\[1\] is not one of"),
        ({"up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP, "UpBlock2D"]}, "do not mirror"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image' is not supported"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8}, "needs both, any other neither"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "is not supported"),
        ({"cross_attention_dim": [768, 768, 768, 1024]}, "cross_attention_dim=.* is not supported"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"norm_num_groups": 33}, "norm_num_groups is 33; it must divide the width 320"),
        ({"attention_head_dim": 7}, "is 7; it must divide the width 320"),
        ({"attention_head_dim": [8, 8]}, r"heads is \(8, 8\); it needs one value for each of 4 levels"),
        ({"block_out_channels": [320, 640]}, "it needs one value for each of 2 levels"),
        ({"block_out_channels": []}, "block_out_channels is \\(\\); it is a list of 1 to 64"),
        ({"block_out_channels": "wide"}, "block_out_channels is"),
        ({"in_channels": 0}, "in_channels is 0; it is a whole number"),
        ({"in_channels": "4"}, "in_channels is '4'"),
        ({"in_channels": 10**12}, "in_channels is 1000000000000"),
        ({"layers_per_block": 100_000}, "at most 64"),
        ({"transformer_layers_per_block": [[1, 2], 1, 1, 1]}, r"transformer_layers is \(\[1, 2\], 1, 1, 1\)"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it is a number from 0 to 1"),
        ({"use_linear_projection": "yes"}, "use_linear_projection is 'yes'; it is true or false"),
        ({"freq_shift": 160}, "freq_shift is 160"),
        ({"sample_size": [64, "64"]}, "sample_size is"),
    ],
)
def test_what_we_cannot_build_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_diffusers(SD15 | change)


def test_other_networks_are_refused_too():
    with pytest.raises(ValueError, match="'AttnDownEncoderBlock2D'"):
        AutoencoderConfig.from_diffusers({"down_block_types": ["AttnDownEncoderBlock2D"]})
    with pytest.raises(ValueError, match="norm_num_groups is 32; it must divide the width 48"):
        AutoencoderConfig.from_diffusers({"block_out_channels": [48]})
    with pytest.raises(ValueError, match="down_block_types has 2 blocks for 1 levels"):
        AutoencoderConfig.from_diffusers({"block_out_channels": [64], "down_block_types": ["DownEncoderBlock2D"] * 2})
    for name, value in (
        ("scaling_factor", 0.0), ("scaling_factor", 1e30), ("scaling_factor", 10**400), ("shift_factor", -1e30),
        ("shift_factor", float("inf")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is .*; it is a number"):
            AutoencoderConfig.from_diffusers({name: value})
    with pytest.raises(ValueError, match=r"latents_std is .*; it is a number whose size is from 0.0001 to 10000"):
        AutoencoderConfig.from_diffusers({"latents_mean": [0.0] * 4, "latents_std": [1, 1, 0, 1]})
    with pytest.raises(ValueError, match="layer_norm_eps is 1e\\+30; it is a number from 0 to 1"):
        TextEncoderConfig.from_diffusers({"layer_norm_eps": 1e30})
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        TextEncoderConfig.from_diffusers({"hidden_act": "relu"})
    with pytest.raises(ValueError, match="num_attention_heads is 7; it must divide the width 768"):
        TextEncoderConfig(num_attention_heads=7)
    with pytest.raises(ValueError, match="an object"):
        TextEncoderConfig.from_diffusers([1, 2])


def test_sizes_given_as_height_and_width():
    assert UNetConfig.from_diffusers(SD15 | {"sample_size": [48, 80]}).sample_size == 80
    assert UNetConfig.from_diffusers(SD15 | {"cross_attention_dim": [768] * 4}) == presets.SD15_UNET


def test_published_text_encoder_and_autoencoder():
    """SD 1.5's files. Their token ids are historical: padding is the tokenizer's business, not this file's."""
    text = {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "vocab_size": 49408,
    }
    expected = replace(presets.SD15_TEXT_ENCODER, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    assert TextEncoderConfig.from_diffusers(text) == expected
    autoencoder = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    assert AutoencoderConfig.from_diffusers(autoencoder) == presets.SD15_AUTOENCODER


def test_a_field_is_declared_once():
    """What is checked, read and written follows from its declaration."""
    from dataclasses import dataclass

    from darkroom.models.config import SIZE, Config
    from darkroom.settings import setting

    @dataclass(frozen=True, slots=True)
    class Example(Config):
        width: int = setting(8, SIZE, "of a layer", file="their_width", absent=4)

    assert Example.from_diffusers({}).width == 4
    assert Example.from_diffusers({"their_width": 16}).to_diffusers() == {"their_width": 16}
    with pytest.raises(ValueError, match=r"width is 0; it is a whole number in 1\.\.1000000"):
        Example.from_diffusers({"their_width": 0})
