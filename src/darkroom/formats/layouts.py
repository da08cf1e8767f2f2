"""The layouts of Stable Diffusion's files, as rules: diffusers folders and the single files of the original LDM code.

Checked in the tests against diffusers' and transformers' own networks and against diffusers' own conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from ..models.config import AutoencoderConfig, ControlNetConfig, UNetConfig
from ..models.upscaler import RRDBConfig
from .rules import Config, Place, Rule, restore, translate

Part: TypeAlias = Literal[
    "unet",
    "autoencoder",
    "text_encoder",
    "text_encoder_2",
    "image_encoder",
    "controlnet",
    "inception",
    "lpips",
    "upscaler",
]
Layout: TypeAlias = Literal[
    "diffusers", "ldm", "openclip", "sdxl_clip", "sdxl_openclip", "taesd", "torchvision", "basicsr", "esrgan", "bsrgan"
]
# openclip: the text encoder of an SD 2.x single file; sdxl_...: those of an SDXL single file; taesd: the original tiny
# autoencoder, its two files as one; torchvision: its classifiers, and what was made of them; basicsr: networks that
# enlarge, as Real-ESRGAN names them; esrgan and bsrgan: by the names of ESRGAN's first edition and of BSRGAN

PARTS: tuple[Part, ...] = ("unet", "autoencoder", "text_encoder")  # what every model has; SDXL has a fourth
TITLES: Mapping[Part, str] = {
    "unet": "U-Net",
    "autoencoder": "autoencoder (VAE)",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "image_encoder": "image encoder",
    "controlnet": "ControlNet",
    "inception": "Inception network",
    "lpips": "LPIPS network",
    "upscaler": "upscaler",
}


def _same(*names: str, pointwise: bool = False) -> tuple[Rule, ...]:
    return tuple(Rule(name, name, pointwise=pointwise) for name in names)


# --- numbers that need arithmetic ----------------------------------------------------------------------------------
# In an LDM U-Net the blocks of all levels are counted through: a level has its resnets and then a downsampler going
# down; going up it has one resnet more, and the upsampler lies in the last one's block, after the attention if any.


def _down(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, UNetConfig)
    return {"n": 1 + sum(count + 1 for count in config.layers_per_block[:l]) + i}


def _downsample(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, UNetConfig)
    return _down(config, l, config.layers_per_block[l])


def _up(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, UNetConfig)
    return {"n": sum(count + 1 for count in config.layers_per_block[::-1][:l]) + i}


def _upsample(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, UNetConfig)
    place = 2 if config.attention_levels[::-1][l] else 1
    return {**_up(config, l, config.layers_per_block[::-1][l]), "place": place}


def _finest_first(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, AutoencoderConfig)
    return {"n": len(config.block_out_channels) - 1 - l}


# --- U-Net ---------------------------------------------------------------------------------------------------------

_ATTENTION = (Rule("q", "to_q"), Rule("k", "to_k"), Rule("v", "to_v"), Rule("out", "to_out.0"))
_BLOCK = (
    *_same("norm1", "norm2", "norm3"),
    Rule("attn1", "attn1", _ATTENTION),
    Rule("attn2", "attn2", _ATTENTION),
    Rule("ff.proj", "ff.net.0.proj"),
    Rule("ff.out", "ff.net.2"),
)
_TRANSFORMER = (  # the same in both layouts
    *_same("norm"),
    *_same("proj_in", "proj_out", pointwise=True),
    Rule("blocks.{j}", "transformer_blocks.{j}", _BLOCK),
)
_CONVOLUTIONS = _same("norm1", "conv1", "norm2", "conv2")
_RESNET = (*_CONVOLUTIONS, Rule("time", "time_emb_proj"), Rule("shortcut", "conv_shortcut"))
_UNET = (
    *_same("conv_in", "conv_out"),
    Rule("norm_out", "conv_norm_out"),
    Rule("time_embed.linear1", "time_embedding.linear_1"),
    Rule("time_embed.linear2", "time_embedding.linear_2"),
    Rule("time_embed.cond", "time_embedding.cond_proj"),
    Rule("class_embed", "class_embedding"),
    Rule("size_embed.linear1", "add_embedding.linear_1"),
    Rule("size_embed.linear2", "add_embedding.linear_2"),
    Rule("down.{l}.resnets.{i}", "down_blocks.{l}.resnets.{i}", _RESNET),
    Rule("down.{l}.attentions.{i}", "down_blocks.{l}.attentions.{i}", _TRANSFORMER),
    Rule("down.{l}.downsample", "down_blocks.{l}.downsamplers.0.conv"),
    Rule("mid.resnet1", "mid_block.resnets.0", _RESNET),
    Rule("mid.attention", "mid_block.attentions.0", _TRANSFORMER),
    Rule("mid.resnet2", "mid_block.resnets.1", _RESNET),
    Rule("up.{l}.resnets.{i}", "up_blocks.{l}.resnets.{i}", _RESNET),
    Rule("up.{l}.attentions.{i}", "up_blocks.{l}.attentions.{i}", _TRANSFORMER),
    Rule("up.{l}.upsample.conv", "up_blocks.{l}.upsamplers.0.conv"),
)
_LDM_RESNET = (
    Rule("norm1", "in_layers.0"),
    Rule("conv1", "in_layers.2"),
    Rule("time", "emb_layers.1"),
    Rule("norm2", "out_layers.0"),
    Rule("conv2", "out_layers.3"),
    Rule("shortcut", "skip_connection"),
)
_LDM_UNET = (
    Rule("conv_in", "input_blocks.0.0"),
    Rule("norm_out", "out.0"),
    Rule("conv_out", "out.2"),
    Rule("time_embed.linear1", "time_embed.0"),
    Rule("time_embed.linear2", "time_embed.2"),
    Rule("time_embed.cond", "time_embed.cond_proj"),
    Rule("class_embed", "label_emb"),
    Rule("size_embed.linear1", "label_emb.0.0"),
    Rule("size_embed.linear2", "label_emb.0.2"),
    Rule("down.{l}.resnets.{i}", "input_blocks.{n}.0", _LDM_RESNET, _down),
    Rule("down.{l}.attentions.{i}", "input_blocks.{n}.1", _TRANSFORMER, _down),
    Rule("down.{l}.downsample", "input_blocks.{n}.0.op", numbers=_downsample),
    Rule("mid.resnet1", "middle_block.0", _LDM_RESNET),
    Rule("mid.attention", "middle_block.1", _TRANSFORMER),
    Rule("mid.resnet2", "middle_block.2", _LDM_RESNET),
    Rule("up.{l}.resnets.{i}", "output_blocks.{n}.0", _LDM_RESNET, _up),
    Rule("up.{l}.attentions.{i}", "output_blocks.{n}.1", _TRANSFORMER, _up),
    Rule("up.{l}.upsample.conv", "output_blocks.{n}.{place}.conv", numbers=_upsample),
)

# --- ControlNet: the first half of a U-Net, and three things more ---------------------------------------------------


def _after_hints(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, ControlNetConfig)
    return {"n": 2 * (2 * len(config.hint_widths) - 1)}


def _hint(config: Config, l: int, i: int) -> Mapping[str, int]:
    return {"n": 2 * (l + 1)}


_CONTROLNET = (
    *_UNET,
    Rule("hint.conv_in", "controlnet_cond_embedding.conv_in"),
    Rule("hint.blocks.{l}", "controlnet_cond_embedding.blocks.{l}"),
    Rule("hint.conv_out", "controlnet_cond_embedding.conv_out"),
    Rule("zero_convs.{i}", "controlnet_down_blocks.{i}", pointwise=True),
    Rule("zero_mid", "controlnet_mid_block", pointwise=True),
)
_LDM_CONTROLNET = (
    *_LDM_UNET,
    Rule("hint.conv_in", "input_hint_block.0"),
    Rule("hint.blocks.{l}", "input_hint_block.{n}", numbers=_hint),
    Rule("hint.conv_out", "input_hint_block.{n}", numbers=_after_hints),
    Rule("zero_convs.{i}", "zero_convs.{i}.0", pointwise=True),
    Rule("zero_mid", "middle_block_out.0", pointwise=True),
)

# --- autoencoder ---------------------------------------------------------------------------------------------------

_VAE_RESNET = (*_CONVOLUTIONS, Rule("shortcut", "conv_shortcut"))
_VAE_HALF = (
    *_same("conv_in", "conv_out"),
    Rule("norm_out", "conv_norm_out"),
    Rule("down.{l}.resnets.{i}", "down_blocks.{l}.resnets.{i}", _VAE_RESNET),
    Rule("down.{l}.downsample", "down_blocks.{l}.downsamplers.0.conv"),
    Rule("mid.resnet1", "mid_block.resnets.0", _VAE_RESNET),
    Rule(
        "mid.attention",
        "mid_block.attentions.0",
        (Rule("norm", "group_norm"), *(replace(rule, pointwise=True) for rule in _ATTENTION)),
    ),
    Rule("mid.resnet2", "mid_block.resnets.1", _VAE_RESNET),
    Rule("up.{l}.resnets.{i}", "up_blocks.{l}.resnets.{i}", _VAE_RESNET),
    Rule("up.{l}.upsample.conv", "up_blocks.{l}.upsamplers.0.conv"),
)
_LDM_VAE_RESNET = (*_CONVOLUTIONS, Rule("shortcut", "nin_shortcut"))
_LDM_VAE_ATTENTION = (
    *_same("norm"),
    *(Rule(n, n, pointwise=True, as_convolution=True) for n in "qkv"),
    Rule("out", "proj_out", pointwise=True, as_convolution=True),
)
_LDM_VAE_HALF = (
    *_same("conv_in", "conv_out", "norm_out"),
    Rule("down.{l}.resnets.{i}", "down.{l}.block.{i}", _LDM_VAE_RESNET),
    Rule("down.{l}.downsample", "down.{l}.downsample.conv"),
    Rule("mid.resnet1", "mid.block_1", _LDM_VAE_RESNET),
    Rule("mid.attention", "mid.attn_1", _LDM_VAE_ATTENTION),
    Rule("mid.resnet2", "mid.block_2", _LDM_VAE_RESNET),
    Rule("up.{l}.resnets.{i}", "up.{n}.block.{i}", _LDM_VAE_RESNET, _finest_first),
    Rule("up.{l}.upsample.conv", "up.{n}.upsample.conv", numbers=_finest_first),
)


def _both_halves(half: tuple[Rule, ...]) -> tuple[Rule, ...]:
    quant = (Rule("quant", "quant_conv"), Rule("post_quant", "post_quant_conv"))
    return (Rule("encoder", "encoder", half), Rule("decoder", "decoder", half), *quant)


def _after_clamp(config: Config, l: int, i: int) -> Mapping[str, int]:
    return {"n": l + 1}


_TINY = (Rule("encoder.{i}", "encoder.layers.{i}"), Rule("decoder.{i}", "decoder.layers.{i}"))
_TAESD = (Rule("encoder.{l}", "encoder.{l}"), Rule("decoder.{l}", "decoder.{n}", numbers=_after_clamp))

# --- text and image encoder ----------------------------------------------------------------------------------------

_CLIP_LAYER = (
    Rule("norm1", "layer_norm1"),
    Rule("norm2", "layer_norm2"),
    *(Rule(f"attention.{n}", f"self_attn.{n}_proj") for n in ("q", "k", "v", "out")),
    Rule("fc1", "mlp.fc1"),
    Rule("fc2", "mlp.fc2"),
)
_CLIP = (
    Rule("token_embedding", "embeddings.token_embedding"),
    Rule("position_embedding", "embeddings.position_embedding"),
    Rule("final_norm", "final_layer_norm"),
    Rule("layers.{i}", "encoder.layers.{i}", _CLIP_LAYER),
)
_CLIP_PROJECTED = (
    *(Rule(rule.native, f"text_model.{rule.foreign}", rule.inside) for rule in _CLIP),
    Rule("projection", "text_projection"),
)
_CLIP_VISION = (
    Rule("class_embedding", "vision_model.embeddings.class_embedding"),
    Rule("patch_embedding", "vision_model.embeddings.patch_embedding"),
    Rule("position_embedding", "vision_model.embeddings.position_embedding"),
    Rule("pre_norm", "vision_model.pre_layrnorm"),  # so it is spelled
    Rule("final_norm", "vision_model.post_layernorm"),
    Rule("layers.{i}", "vision_model.encoder.layers.{i}", _CLIP_LAYER),
    Rule("projection", "visual_projection"),
)
_OPEN_CLIP = (
    *_same("token_embedding"),
    Rule("projection.weight", "text_projection", transposed=True),
    Rule("position_embedding.weight", "positional_embedding"),
    Rule("final_norm", "ln_final"),
    Rule(
        "layers.{i}",
        "transformer.resblocks.{i}",
        (
            Rule("norm1", "ln_1"),
            Rule("norm2", "ln_2"),
            *(Rule(f"attention.{n}.weight", "attn.in_proj_weight", third=k) for k, n in enumerate("qkv")),
            *(Rule(f"attention.{n}.bias", "attn.in_proj_bias", third=k) for k, n in enumerate("qkv")),
            Rule("attention.out", "attn.out_proj"),
            Rule("fc1", "mlp.c_fc"),
            Rule("fc2", "mlp.c_proj"),
        ),
    ),
)

# --- networks that judge -------------------------------------------------------------------------------------------

_INCEPTION = (
    *(Rule(f"conv{name[:2]}", f"Conv2d_{name}") for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
    *(Rule(f"mixed{n}", f"Mixed_{n}") for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")),
)
_LPIPS = (Rule("layers.{i}", "features.{i}"), Rule("heads.{i}", "lin{i}.model.1"))

# --- networks that enlarge pictures --------------------------------------------------------------------------------


def _next(config: Config, l: int, i: int) -> Mapping[str, int]:
    return {"n": l + 1}


def _esrgan_up(config: Config, l: int, i: int) -> Mapping[str, int]:
    """Each doubling, its convolution and its activation count as three of one long chain."""
    return {"n": 3 * (l + 1)}


def _esrgan_end(config: Config, l: int, i: int) -> Mapping[str, int]:
    assert isinstance(config, RRDBConfig)
    return {"n": 3 * config.doublings + 2, "m": 3 * config.doublings + 4, "b": config.blocks}


def _blocks(dense: str, conv: str) -> tuple[Rule, ...]:
    layers = tuple(Rule(f"conv{k}", conv.format(k)) for k in range(1, 6))
    inside = (*layers, *_same("conv1x1"))
    return tuple(Rule(f"rdb{k}", dense.format(k), inside) for k in range(1, 4))


_SPAN_CONV = _same("sk", "conv.{i}")
_UPSCALER = (
    Rule("body.{i}", "body.{i}", _blocks("rdb{}", "conv{}")),
    *_same("body.{i}", "conv_first", "conv_body", "conv_hr", "conv_last", "conv_cat", "upsampler.{i}"),
    Rule("up.{l}", "conv_up{n}", numbers=_next),
    Rule("conv_1", "conv_1", _SPAN_CONV),
    Rule("conv_2", "conv_2", _SPAN_CONV),
    *(
        Rule(f"block_{k}", f"block_{k}", tuple(Rule(c, c, _SPAN_CONV) for c in ("c1_r", "c2_r", "c3_r")))
        for k in range(1, 7)
    ),
)
_BSRGAN = (
    Rule("body.{i}", "RRDB_trunk.{i}", _blocks("RDB{}", "conv{}")),
    *_same("conv_first", "conv_last"),
    Rule("conv_body", "trunk_conv"),
    Rule("up.{l}", "upconv{n}", numbers=_next),
    Rule("conv_hr", "HRconv"),
)
_ESRGAN = (
    Rule("body.{i}", "model.1.sub.{i}", _blocks("RDB{}", "conv{}.0")),
    Rule("conv_first", "model.0"),
    Rule("conv_body", "model.1.sub.{b}", numbers=_esrgan_end),
    Rule("up.{l}", "model.{n}", numbers=_esrgan_up),
    Rule("conv_hr", "model.{n}", numbers=_esrgan_end),
    Rule("conv_last", "model.{m}", numbers=_esrgan_end),
)

# --- all of them ---------------------------------------------------------------------------------------------------

# part, layout -> what all its keys begin with, and its rules
_RULES: Mapping[tuple[Part, Layout], tuple[str, tuple[Rule, ...]]] = {
    ("unet", "diffusers"): ("", _UNET),
    ("unet", "ldm"): ("model.diffusion_model.", _LDM_UNET),
    ("controlnet", "diffusers"): ("", _CONTROLNET),
    ("controlnet", "ldm"): ("control_model.", _LDM_CONTROLNET),
    ("autoencoder", "diffusers"): ("", (*_both_halves(_VAE_HALF), *_TINY)),
    ("autoencoder", "taesd"): ("", _TAESD),
    ("autoencoder", "ldm"): ("first_stage_model.", _both_halves(_LDM_VAE_HALF)),
    ("text_encoder", "diffusers"): ("", _CLIP_PROJECTED),
    ("text_encoder", "ldm"): ("cond_stage_model.transformer.text_model.", _CLIP),
    ("text_encoder", "openclip"): ("cond_stage_model.model.", _OPEN_CLIP),
    ("text_encoder", "sdxl_clip"): ("conditioner.embedders.0.transformer.text_model.", _CLIP),
    ("text_encoder", "sdxl_openclip"): ("conditioner.embedders.0.model.", _OPEN_CLIP),  # the refiner's only one
    ("text_encoder_2", "diffusers"): ("", _CLIP_PROJECTED),
    ("text_encoder_2", "sdxl_openclip"): ("conditioner.embedders.1.model.", _OPEN_CLIP),
    ("image_encoder", "diffusers"): ("", _CLIP_VISION),
    ("inception", "torchvision"): ("", _INCEPTION),
    ("lpips", "torchvision"): ("", _LPIPS),
    ("upscaler", "basicsr"): ("", _UPSCALER),
    ("upscaler", "bsrgan"): ("", _BSRGAN),
    ("upscaler", "esrgan"): ("", _ESRGAN),
}


def prefix(part: Part, layout: Layout) -> str:
    """What every key of a part begins with in a layout ("" in a diffusers folder)."""
    return _RULES[part, layout][0]


def root(part: Part, layout: Layout) -> str:
    """What a part's keys in a whole file begin with, those included that are no weights of the network."""
    start = prefix(part, layout)
    match = re.match(r"cond_stage_model\.|conditioner\.embedders\.\d\.", start)
    return start if match is None else match[0]


def table(part: Part, layout: Layout, names: Iterable[str], config: Config) -> dict[str, Place]:
    """Native name -> its place in a file, for all `names` of a network. KeyError on a name that no rule speaks of."""
    start, rules = _RULES[part, layout]
    result = {}
    for name in names:
        place = translate(name, rules, config)
        if place is None:
            raise KeyError(f"no rule of layout {layout!r} for the {part} tensor {name!r}")
        result[name] = replace(place, name=start + place.name)
    return result


def native_names(part: Part, layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """Native name -> the one in a file (without the part's prefix), of what is found without a configuration.

    That is all but what LDM's files number from the end: the ascending half of a U-Net, or of a decoder.
    """
    names, places = list(names), {}
    rules = _RULES[part, layout][1]
    if layout == "ldm" and part in ("unet", "controlnet"):
        rules = tuple(rule for rule in rules if rule.numbers is None or rule.native.startswith("down."))
        places = _ldm_places(names)
    return {
        native: name for name in names if (native := restore(canonical(part, layout, name), rules, places)) is not None
    }


def _ldm_places(names: Iterable[str]) -> dict[int, dict[str, int]]:
    """The level and layer of an LDM U-Net's blocks: a level ends with its downsampler."""
    found = {n for name in names if (n := _number(name))}  # 0 is the first convolution
    ends = {n for name in names if ".0.op." in name and (n := _number(name))}
    places, level, first = {}, 0, 1
    for n in sorted(found):
        places[n] = {"l": level, "i": n - first}
        if n in ends:
            level, first = level + 1, n + 1
    return places


def _number(name: str) -> int | None:
    match = re.match(r"input_blocks\.(\d+)\.", name)
    return None if match is None else int(match[1])


# --- what files also contain ---------------------------------------------------------------------------------------

# Older or other spellings, brought to the one that the rules use.
_TEXT_MODEL = (r"^(?=embeddings\.|encoder\.|final_layer_norm\.)", "text_model.")
_ALIASES: Mapping[tuple[Part, Layout], tuple[tuple[str, str], ...]] = {
    ("autoencoder", "diffusers"): (
        (r"(mid_block\.attentions\.0\.)query\.", r"\1to_q."),
        (r"(mid_block\.attentions\.0\.)key\.", r"\1to_k."),
        (r"(mid_block\.attentions\.0\.)value\.", r"\1to_v."),
        (r"(mid_block\.attentions\.0\.)proj_attn\.", r"\1to_out.0."),
    ),
    ("autoencoder", "ldm"): (
        (r"(\.mid\.attn_1\.)to_([qkv])\.", r"\1\2."),
        (r"(\.mid\.attn_1\.)to_out\.0\.", r"\1proj_out."),
        (r"(\.mid\.attn_1\.)group_norm\.", r"\1norm."),
    ),
    ("autoencoder", "taesd"): ((r"^taesd_((en|de)coder\.)", r"\1"),),  # ComfyUI's
    ("lpips", "torchvision"): ((r"^net\.slice\d\.", "features."),),  # the lpips package's own state
    ("text_encoder", "diffusers"): (_TEXT_MODEL,),
    ("text_encoder_2", "diffusers"): (_TEXT_MODEL,),
    ("text_encoder", "sdxl_clip"): (
        (r"^(conditioner\.embedders\.0\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1text_model."),
    ),
    ("text_encoder", "ldm"): (
        (r"^(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)", r"\1text_model."),
    ),
}

# Tensors that are known and are no weights of these networks.
_CLIP_EXTRAS = r"(text_model\.)?embeddings\.position_ids|(text|visual)_projection(\.weight)?|logit_scale|vision_model\."
_CLIP_VISION_EXTRAS = r"vision_model\.embeddings\.position_ids|text_projection(\.weight)?|logit_scale|text_model\."
_OPEN_CLIP_EXTRAS = r"(text_projection|logit_scale|logit_bias|attn_mask|visual\.)"
_IGNORED: Mapping[tuple[Part, Layout], re.Pattern[str]] = {
    ("autoencoder", "taesd"): re.compile(r"vae_(scale|shift)\Z"),  # ComfyUI's own constants
    ("autoencoder", "ldm"): re.compile(r"first_stage_model\.(loss|model_ema)\."),
    ("text_encoder", "diffusers"): re.compile(_CLIP_EXTRAS),
    ("text_encoder", "ldm"): re.compile(rf"cond_stage_model\.(transformer\.)?({_CLIP_EXTRAS})"),
    ("text_encoder", "openclip"): re.compile(rf"cond_stage_model\.(model\.)?{_OPEN_CLIP_EXTRAS}"),
    ("text_encoder", "sdxl_clip"): re.compile(rf"conditioner\.embedders\.0\.(transformer\.)?({_CLIP_EXTRAS})"),
    ("text_encoder", "sdxl_openclip"): re.compile(rf"conditioner\.embedders\.0\.(model\.)?{_OPEN_CLIP_EXTRAS}"),
    ("text_encoder_2", "diffusers"): re.compile(_CLIP_EXTRAS),
    ("image_encoder", "diffusers"): re.compile(_CLIP_VISION_EXTRAS),
    ("inception", "torchvision"): re.compile(r"fc\.|.*\.num_batches_tracked\Z"),
    ("upscaler", "basicsr"): re.compile(r".*\.eval_conv\.(weight|bias)\Z|no_norm\Z"),  # SPAN's, computed anew
    ("lpips", "torchvision"): re.compile(r"classifier\.|scaling_layer\.|lins\."),
    ("text_encoder_2", "sdxl_openclip"): re.compile(rf"conditioner\.embedders\.1\.(model\.)?{_OPEN_CLIP_EXTRAS}"),
}

# Keys beside the networks that say what the U-Net predicts and is told of noise. All that the ecosystem's tools write
# is here, and obeyed (`detect`); a key that is nowhere known is refused.
MARKS: Mapping[str, tuple[str, ...]] = {
    "v_prediction": ("v_pred",),
    "zero_snr": ("ztsnr",),  # betas rescaled to end in pure noise (NoobAI and its kind)
    "edm_vpred": ("edm_vpred.sigma_max", "edm_vpred.sigma_min"),  # CosXL: EDM, its levels in the file
    "edm": ("edm_mean", "edm_std"),  # Playground 2.5: EDM, of latents with this mean and deviation
}

# Tensors of a whole single file: schedules (recomputed from the configuration), counters, averages, markers, and
# networks that come along without being needed to draw.
_MARKS = "|".join(re.escape(key) for keys in MARKS.values() for key in keys)
IGNORED_AT_TOP = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|logvar|lvlb_weights|scale_factor"
    rf"|global_step|epoch|{_MARKS}|(model_ema|low_scale_model|depth_model|embedding_manager|denoiser|safety_checker)"
    r"\..*)\Z"
)


def canonical(part: Part, layout: Layout, name: str) -> str:
    """The spelling of a file's key that the rules use."""
    for pattern, replacement in _ALIASES.get((part, layout), ()):
        name = re.sub(pattern, replacement, name, count=1)
    return name


def is_ignored(part: Part, layout: Layout, name: str) -> bool:
    """Whether a canonical key is known and no weight."""
    pattern = _IGNORED.get((part, layout))
    return pattern is not None and pattern.match(name) is not None


def ema_name(name: str) -> str:
    """What an LDM file calls the moving average of a U-Net tensor: the same letters without the dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")
