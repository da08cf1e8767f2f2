"""Configurations of the three networks, read from and written to the `config.json` files of a diffusers folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

Json = Mapping[str, Any]


LARGEST = 1_000_000  # above any size, width or count of a real network: a broken file must not ask for terabytes
DEEPEST = 64  # levels, resnets or transformer blocks in a row


def _levels(value: Any, levels: int) -> tuple[Any, ...]:
    """A per-level list from a list or a single value (diffusers allows both)."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def _side(value: Any) -> Any:
    """A size from a size or a [height, width] (diffusers allows both): the longer side."""
    return max(value) if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value) else value


def _check_values(config: Any, at_least: Mapping[str, int]) -> None:
    """Raise ValueError, naming it, on a field of the wrong type or out of all reason; `at_least` defaults to 1."""
    for field in fields(config):
        value, kind = getattr(config, field.name), str(field.type)
        values = value if kind.startswith("tuple") and isinstance(value, tuple) else (value,)
        if kind.endswith("| None"):
            values = () if value is None else values
        elif kind.startswith("tuple") and not (isinstance(value, tuple) and 0 < len(value) <= DEEPEST):
            raise ValueError(f"{field.name} is {value!r}; it is a list of 1 to {DEEPEST} values")
        for one in values:
            if "bool" in kind:
                good, wanted = isinstance(one, bool), "true or false"
            elif "int" in kind:
                low = at_least.get(field.name, 1)
                good = isinstance(one, int) and not isinstance(one, bool) and low <= one <= LARGEST
                wanted = f"a whole number in {low}..{LARGEST}"
            elif "float" in kind:
                good = isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
                wanted = "a finite number"
            else:
                good, wanted = isinstance(one, str), "a word"
            if not good:
                raise ValueError(f"{field.name} is {value!r}; it is {wanted}")


def _check_object(config: Any) -> None:
    if not isinstance(config, Mapping):
        raise ValueError(f"the configuration is a {type(config).__name__}; it must be an object of names and values")


def _check_divides(name: str, parts: int, width: int) -> None:
    if width % parts:
        raise ValueError(f"{name} is {parts}; it must divide the width {width}")


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """AutoencoderKL: pictures [N, 3, H, W] in -1..1 to latents [N, 4, H/8, W/8] and back."""

    in_channels: int = 3  # channels of a picture
    out_channels: int = 3  # channels of a decoded picture
    latent_channels: int = 4  # channels of a latent
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # width of each level, finest first
    layers_per_block: int = 2  # resnets a level (the decoder has one more)
    norm_num_groups: int = 32  # groups of every GroupNorm
    scaling_factor: float = 0.18215  # latent = scaling_factor * encoder mean
    shift_factor: float = 0.0  # subtracted before scaling
    sample_size: int = 512  # the picture size it was trained at
    mid_block_attention: bool = True  # one self-attention in the middle
    use_quant_conv: bool = True  # 1x1 convolution after the encoder
    use_post_quant_conv: bool = True  # 1x1 convolution before the decoder
    force_upcast: bool = True  # half precision overflows in the original weights
    latents_mean: tuple[float, ...] | None = None  # of each channel, before scaling; with
    latents_std: tuple[float, ...] | None = None  # this, its deviation

    def __post_init__(self) -> None:
        _check_values(self, {})
        if self.layers_per_block > DEEPEST:
            raise ValueError(f"layers_per_block is {self.layers_per_block}; at most {DEEPEST} are built")
        for width in self.block_out_channels:
            _check_divides("norm_num_groups", self.norm_num_groups, width)
        if self.scaling_factor == 0:
            raise ValueError("scaling_factor is 0; latents can't be scaled by it and back")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                channels = self.latent_channels
                raise ValueError(f"{name} is {values!r}; it needs one value for each of {channels} channels")
        if self.latents_std is not None and 0 in self.latents_std:
            raise ValueError(f"latents_std is {self.latents_std!r}; a deviation of 0 can't be scaled by and back")

    @property
    def downscale(self) -> int:
        """Picture pixels a latent pixel covers on each side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_diffusers(cls, config: Json) -> AutoencoderConfig:
        """Read diffusers' `vae/config.json`. Raises ValueError on a block type that is not an AutoencoderKL's."""
        _check_object(config)
        default = cls()
        widths = _levels(config.get("block_out_channels", (64,)), 1)
        for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = _levels(config.get(key, (known,) * len(widths)), 1)
            other = [b for b in blocks if b != known]
            if other:
                raise ValueError(f"{key} has {other[0]!r}; an AutoencoderKL has only {known!r}")
            if len(blocks) != len(widths):
                raise ValueError(f"{key} has {len(blocks)} blocks for {len(widths)} levels of block_out_channels")
        if config.get("act_fn", "silu") != "silu":
            raise ValueError(f"autoencoder option act_fn={config['act_fn']!r} is not supported")
        mean, std = config.get("latents_mean"), config.get("latents_std")
        both = mean is not None and std is not None  # diffusers goes by them only where both are given
        return cls(
            in_channels=config.get("in_channels", 3),
            out_channels=config.get("out_channels", 3),
            latent_channels=config.get("latent_channels", 4),
            block_out_channels=widths,
            layers_per_block=config.get("layers_per_block", 1),
            norm_num_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", default.scaling_factor),
            shift_factor=config.get("shift_factor") or 0.0,
            sample_size=_side(config.get("sample_size") or 32),
            mid_block_attention=config.get("mid_block_add_attention", True),
            use_quant_conv=config.get("use_quant_conv", True),
            use_post_quant_conv=config.get("use_post_quant_conv", True),
            force_upcast=config.get("force_upcast", True),
            latents_mean=_levels(mean, 1) if both else None,
            latents_std=_levels(std, 1) if both else None,
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The `vae/config.json` that diffusers reads."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor or None,
            "mid_block_add_attention": self.mid_block_attention,
            "use_quant_conv": self.use_quant_conv,
            "use_post_quant_conv": self.use_post_quant_conv,
            "force_upcast": self.force_upcast,
            "latents_mean": self.latents_mean and list(self.latents_mean),
            "latents_std": self.latents_std and list(self.latents_std),
        }


@dataclass(frozen=True, slots=True)
class TinyAutoencoderConfig(AutoencoderConfig):
    """AutoencoderTiny (TAESD): as an AutoencoderKL, of plain convolutions. All its levels have one width."""

    block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # width of each level of the encoder, finest first
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)  # of the decoder, coarsest first
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks a level
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    norm_num_groups: int = 1  # there are no norms
    scaling_factor: float = 1.0  # it was made for scaled latents
    force_upcast: bool = False

    def __post_init__(self) -> None:
        AutoencoderConfig.__post_init__(self)
        for name in ("decoder_widths", "encoder_blocks", "decoder_blocks"):
            if len(getattr(self, name)) != len(self.block_out_channels):
                levels = len(self.block_out_channels)
                raise ValueError(f"{name} is {getattr(self, name)!r}; it needs one value for each of {levels} levels")
        for name in ("block_out_channels", "decoder_widths"):
            if len(set(getattr(self, name))) > 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; all levels of a tiny autoencoder have one width")
        for name in ("encoder_blocks", "decoder_blocks"):
            if max(getattr(self, name)) > DEEPEST:
                raise ValueError(f"{name} is {getattr(self, name)!r}; at most {DEEPEST} are built")

    @classmethod
    def from_diffusers(cls, config: Json) -> TinyAutoencoderConfig:
        """Read diffusers' `config.json` of an AutoencoderTiny. Raises ValueError on a feature we don't have."""
        _check_object(config)
        for key, known in (("act_fn", "relu"), ("upsample_fn", "nearest"), ("upsampling_scaling_factor", 2)):
            if config.get(key, known) != known:
                raise ValueError(f"tiny autoencoder option {key}={config[key]!r} is not supported")
        four = (64, 64, 64, 64)
        return cls(
            in_channels=config.get("in_channels", 3),
            out_channels=config.get("out_channels", 3),
            latent_channels=config.get("latent_channels", 4),
            block_out_channels=_levels(config.get("encoder_block_out_channels", four), 1),
            decoder_widths=_levels(config.get("decoder_block_out_channels", four), 1),
            encoder_blocks=_levels(config.get("num_encoder_blocks", (1, 3, 3, 3)), 1),
            decoder_blocks=_levels(config.get("num_decoder_blocks", (3, 3, 3, 1)), 1),
            scaling_factor=config.get("scaling_factor", 1.0),
            shift_factor=config.get("shift_factor") or 0.0,
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The `vae/config.json` that diffusers reads."""
        return {
            "_class_name": "AutoencoderTiny",
            "act_fn": "relu",
            "upsample_fn": "nearest",
            "upsampling_scaling_factor": 2,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "latent_channels": self.latent_channels,
            "encoder_block_out_channels": list(self.block_out_channels),
            "decoder_block_out_channels": list(self.decoder_widths),
            "num_encoder_blocks": list(self.encoder_blocks),
            "num_decoder_blocks": list(self.decoder_blocks),
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
        }


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """UNet2DConditionModel: noisy latents, timesteps and a condition to a prediction of the same size."""

    sample_size: int = 64  # latent size it was trained at
    in_channels: int = 4  # 4, or 5, 7, 8, 9 with extra channels
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # width of each level, finest first
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)  # resnets a level going down (one more going up)
    attention_levels: tuple[bool, ...] = (True, True, True, False)  # levels with spatial transformers
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)  # attn1 attends to the text too (upscaler)
    transformer_layers: tuple[int, ...] = (1, 1, 1, 1)  # blocks in each spatial transformer
    heads: tuple[int, ...] = (8, 8, 8, 8)  # attention heads a level (a count, not a width)
    cross_attention_dim: int = 768  # width of the text
    use_linear_projection: bool = False  # proj_in/out of a transformer: linear or 1x1 conv
    mid_block: bool = True  # False: no middle at all (some distilled models)
    mid_block_attention: bool = True  # False: the middle is one resnet, no transformer
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True  # timestep embedding: cosines first
    freq_shift: int = 0
    num_class_embeds: int | None = None  # classes of the class embedding (1000: upscaler)
    upcast_attention: bool = False  # attention scores in float32
    time_cond_proj_dim: int | None = None  # guidance-scale embedding (LCM)
    addition_time_embed_dim: int | None = None  # width of each size's sinusoids (SDXL)
    projection_class_embeddings_input_dim: int | None = None  # of all sizes' and the pooled text together (SDXL)

    def __post_init__(self) -> None:
        _check_values(self, {"freq_shift": 0})
        levels = len(self.block_out_channels)
        for name in ("layers_per_block", "attention_levels", "only_cross_attention", "transformer_layers", "heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it needs one value for each of {levels} levels")
        for name in ("layers_per_block", "transformer_layers"):
            if max(getattr(self, name)) > DEEPEST:
                raise ValueError(f"{name} is {getattr(self, name)!r}; at most {DEEPEST} are built")
        in_middle = (False,) * (levels - 1) + (self.mid_block and self.mid_block_attention,)
        for width, heads, *attention in zip(
            self.block_out_channels, self.heads, self.attention_levels, in_middle, strict=True
        ):
            _check_divides("norm_num_groups", self.norm_num_groups, width)
            if any(attention):
                _check_divides("attention_head_dim (the number of heads)", heads, width)
        half = self.block_out_channels[0] // 2
        if self.freq_shift >= max(half, 1):
            raise ValueError(f"freq_shift is {self.freq_shift}; the timestep embedding has only {half} frequencies")
        added, together = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        if (added is None) != (together is None):
            raise ValueError(
                f"addition_time_embed_dim is {added}, projection_class_embeddings_input_dim {together}; "
                f"a U-Net that is told sizes needs both, any other neither"
            )

    @property
    def told_sizes(self) -> bool:
        """Whether each row needs a pooled text and sizes (SDXL)."""
        return self.addition_time_embed_dim is not None

    def sizes(self, pooled_width: int) -> int:
        """How many numbers it is told beside a pooled text of this width: 6 (SDXL), 5 (its refiner).

        Raises ValueError where the widths don't add up to that.
        """
        added, together = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        assert added is not None
        assert together is not None
        for count in (6, 5):
            if pooled_width + count * added == together:
                return count
        raise ValueError(
            f"projection_class_embeddings_input_dim is {together}; a pooled text of {pooled_width} and 6 or 5 sizes of "
            f"addition_time_embed_dim={added} make {pooled_width + 6 * added} or {pooled_width + 5 * added}"
        )

    @classmethod
    def from_diffusers(cls, config: Json) -> UNetConfig:
        """Read diffusers' `unet/config.json`. Raises ValueError, naming it, on a feature we don't have."""
        _check_object(config)
        default_down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        default_up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        down = _levels(config.get("down_block_types", default_down), 1)
        up = _levels(config.get("up_block_types", default_up), 1)
        kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
        for block in (*down, *up):
            if block not in list(kinds):
                raise ValueError(f"U-Net block type {block!r} is not one of {', '.join(kinds)}")
        attention = tuple(kinds[b] for b in down)
        if tuple(kinds[b] for b in reversed(up)) != attention:
            raise ValueError("up_block_types do not mirror down_block_types")
        levels = len(down)
        unsupported = {
            "class_embed_type": (None,),
            "encoder_hid_dim": (None,),
            "encoder_hid_dim_type": (None,),
            "addition_embed_type": (None, "text_time"),
            "dual_cross_attention": (False, None),
            "act_fn": ("silu",),
            "resnet_time_scale_shift": ("default",),
            "time_embedding_type": ("positional",),
            "conv_in_kernel": (3,),
            "conv_out_kernel": (3,),
            "downsample_padding": (1,),
            "reverse_transformer_layers_per_block": (None,),
            "center_input_sample": (False,),
            "mid_block_scale_factor": (1, 1.0),
            "attention_type": ("default",),
            "timestep_post_act": (None,),
            "resnet_skip_time_act": (False,),
            "resnet_out_scale_factor": (1, 1.0),
            "time_embedding_dim": (None,),
            "time_embedding_act_fn": (None,),
            "class_embeddings_concat": (False,),
            "cross_attention_norm": (None,),
        }
        for key, allowed in unsupported.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"U-Net option {key}={config[key]!r} is not supported")
        mid = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
        if mid not in ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None):
            raise ValueError(f"U-Net mid_block_type {mid!r} is not supported")
        # diffusers' `attention_head_dim` has always meant the number of heads in this model.
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        groups = config.get("norm_num_groups", 32)
        if groups is None:
            raise ValueError("U-Net option norm_num_groups=None is not supported")
        told_sizes = config.get("addition_embed_type") == "text_time"
        if told_sizes and config.get("addition_time_embed_dim") is None:
            raise ValueError("addition_embed_type is 'text_time', which needs an addition_time_embed_dim")
        cross = _levels(config.get("cross_attention_dim", 1280), levels)
        if any(width != cross[0] for width in cross):
            raise ValueError(f"U-Net option cross_attention_dim={config['cross_attention_dim']!r} is not supported")
        return cls(
            sample_size=_side(config.get("sample_size") or 64),
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            block_out_channels=_levels(config.get("block_out_channels", (320, 640, 1280, 1280)), 1),
            layers_per_block=_levels(config.get("layers_per_block", 2), levels),
            attention_levels=attention,
            only_cross_attention=_levels(config.get("only_cross_attention", False), levels),
            transformer_layers=_levels(config.get("transformer_layers_per_block", 1), levels),
            heads=_levels(heads, levels),
            cross_attention_dim=cross[0],
            use_linear_projection=config.get("use_linear_projection", False),
            mid_block=mid is not None,
            mid_block_attention=mid != "UNetMidBlock2D",
            norm_num_groups=groups,
            norm_eps=config.get("norm_eps", 1e-5),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            num_class_embeds=config.get("num_class_embeds"),
            upcast_attention=config.get("upcast_attention") or False,
            time_cond_proj_dim=config.get("time_cond_proj_dim"),
            addition_time_embed_dim=config.get("addition_time_embed_dim") if told_sizes else None,
            projection_class_embeddings_input_dim=(
                config.get("projection_class_embeddings_input_dim") if told_sizes else None
            ),
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The `unet/config.json` that diffusers reads."""
        mid = "UNetMidBlock2DCrossAttn" if self.mid_block_attention else "UNetMidBlock2D"
        return {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "addition_embed_type": "text_time" if self.told_sizes else None,
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "attention_head_dim": list(self.heads),
            "block_out_channels": list(self.block_out_channels),
            "center_input_sample": False,
            "cross_attention_dim": self.cross_attention_dim,
            "down_block_types": [("CrossAttn" if a else "") + "DownBlock2D" for a in self.attention_levels],
            "downsample_padding": 1,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "in_channels": self.in_channels,
            "layers_per_block": list(self.layers_per_block),
            "mid_block_scale_factor": 1,
            "mid_block_type": mid if self.mid_block else None,
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": self.num_class_embeds,
            "only_cross_attention": list(self.only_cross_attention),
            "out_channels": self.out_channels,
            "projection_class_embeddings_input_dim": self.projection_class_embeddings_input_dim,
            "sample_size": self.sample_size,
            "time_cond_proj_dim": self.time_cond_proj_dim,
            "transformer_layers_per_block": list(self.transformer_layers),
            "up_block_types": [("CrossAttn" if a else "") + "UpBlock2D" for a in reversed(self.attention_levels)],
            "upcast_attention": self.upcast_attention,
            "use_linear_projection": self.use_linear_projection,
        }


@dataclass(frozen=True, slots=True)
class ControlNetConfig(UNetConfig):
    """ControlNetModel: the way down of a U-Net and its middle, and a picture (the hint) that steers another U-Net."""

    hint_channels: int = 3  # channels of the hint
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)  # of its embedding; each but the first halves its size
    hint_bgr: bool = False  # the hint's channels were trained in the order BGR
    global_pool: bool = False  # only the mean of each residual counts (shuffle)

    def __post_init__(self) -> None:
        UNetConfig.__post_init__(self)
        if not self.mid_block:
            raise ValueError("mid_block_type is None; a ControlNet has a middle")
        if self.time_cond_proj_dim is not None:
            raise ValueError(f"time_cond_proj_dim is {self.time_cond_proj_dim}; a ControlNet is not told the guidance")
        if len(set(self.layers_per_block)) > 1:
            raise ValueError(f"layers_per_block is {self.layers_per_block!r}; a ControlNet has one for all levels")

    @property
    def hint_downscale(self) -> int:
        """Pixels of the hint that a latent pixel covers on each side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.hint_widths) - 1))

    @classmethod
    def from_diffusers(cls, config: Json) -> ControlNetConfig:
        """Read a ControlNet's `config.json`. Raises ValueError, naming it, on a feature we don't have."""
        _check_object(config)
        down = _levels(config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)), 1)
        up = [str(block).replace("Down", "Up") for block in reversed(down)]  # there is none; a U-Net's would be these
        base = UNetConfig.from_diffusers({**config, "up_block_types": up, "time_cond_proj_dim": None})
        order = config.get("controlnet_conditioning_channel_order", "rgb")
        if order not in ("rgb", "bgr"):
            raise ValueError(f"controlnet_conditioning_channel_order is {order!r}; it is 'rgb' or 'bgr'")
        return cls(
            **{field.name: getattr(base, field.name) for field in fields(base)},
            hint_channels=config.get("conditioning_channels", 3),
            hint_widths=_levels(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256), 1),
            hint_bgr=order == "bgr",
            global_pool=config.get("global_pool_conditions", False),
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that diffusers reads."""
        only_up = ("up_block_types", "out_channels", "sample_size", "center_input_sample", "time_cond_proj_dim")
        base = {key: value for key, value in UNetConfig.to_diffusers(self).items() if key not in only_up}
        return {
            **base,
            "_class_name": "ControlNetModel",
            "layers_per_block": self.layers_per_block[0],
            "conditioning_channels": self.hint_channels,
            "conditioning_embedding_out_channels": list(self.hint_widths),
            "controlnet_conditioning_channel_order": "bgr" if self.hint_bgr else "rgb",
            "global_pool_conditions": self.global_pool,
        }


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """CLIPTextModel: token ids [N, 77] to embeddings [N, 77, D]."""

    vocab_size: int = 49408
    hidden_size: int = 768  # D
    intermediate_size: int = 3072  # width of the feed-forward layer
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # "quick_gelu" (OpenAI) or "gelu" (OpenCLIP)
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407  # SD 1.x pads with EOS, SD 2.x with "!" (0)
    projection_dim: int = 768  # P, the width of the pooled text
    projection: bool = False  # CLIPTextModelWithProjection: has a pooled text

    def __post_init__(self) -> None:
        _check_values(self, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"hidden_act is {self.hidden_act!r}; it is 'quick_gelu' or 'gelu'")
        if self.num_hidden_layers > DEEPEST:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; at most {DEEPEST} are built")
        _check_divides("num_attention_heads", self.num_attention_heads, self.hidden_size)

    @classmethod
    def from_diffusers(cls, config: Json) -> TextEncoderConfig:
        """Read `text_encoder/config.json` (transformers' CLIPTextConfig). ValueError on an unknown activation."""
        _check_object(config)
        default = cls(hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512)
        names = [n for n in cls.__dataclass_fields__ if config.get(n) is not None]
        values = {n: getattr(default, n) for n in cls.__dataclass_fields__} | {n: config[n] for n in names}
        return cls(**(values | {"projection": config.get("architectures") == ["CLIPTextModelWithProjection"]}))

    def to_diffusers(self) -> dict[str, Any]:
        """The `text_encoder/config.json` that transformers reads."""
        return {
            "architectures": ["CLIPTextModelWithProjection" if self.projection else "CLIPTextModel"],
            "model_type": "clip_text_model",
            "attention_dropout": 0.0,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            # What transformers loads it as unless told otherwise: a pipeline's other parts become float32, too.
            "torch_dtype": "float32",
            **{n: getattr(self, n) for n in self.__dataclass_fields__ if n != "projection"},
        }


@dataclass(frozen=True, slots=True)
class VisionEncoderConfig:
    """CLIPVisionModelWithProjection: pictures [N, 3, S, S] to embeddings [N, P]. The default is CLIP's ViT-B/32."""

    hidden_size: int = 768  # D, the width of a patch
    intermediate_size: int = 3072  # width of the feed-forward layer
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3  # channels of a picture
    image_size: int = 224  # S, the side of a picture
    patch_size: int = 32  # pixels a patch covers on each side
    hidden_act: str = "quick_gelu"  # "quick_gelu" (OpenAI) or "gelu" (OpenCLIP)
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512  # P, the width of the space that pictures and texts share

    def __post_init__(self) -> None:
        _check_values(self, {})
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"hidden_act is {self.hidden_act!r}; it is 'quick_gelu' or 'gelu'")
        if self.num_hidden_layers > DEEPEST:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; at most {DEEPEST} are built")
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}, larger than the picture's {self.image_size}")
        _check_divides("num_attention_heads", self.num_attention_heads, self.hidden_size)

    @property
    def patches(self) -> int:
        """Patches of a picture; a border that fills no patch is left out."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_diffusers(cls, config: Json) -> VisionEncoderConfig:
        """Read transformers' CLIPVisionConfig. ValueError on an unknown activation."""
        _check_object(config)
        names = [n for n in cls.__dataclass_fields__ if config.get(n) is not None]
        return cls(**{n: config[n] for n in names})

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that transformers reads."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "attention_dropout": 0.0,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "torch_dtype": "float32",
            **{n: getattr(self, n) for n in self.__dataclass_fields__},
        }


@dataclass(frozen=True, slots=True)
class InceptionConfig:
    """FID's Inception v3. There is only one."""


@dataclass(frozen=True, slots=True)
class LpipsConfig:
    """LPIPS: the classifier whose answers are compared."""

    net: str = "vgg"  # "vgg" (VGG-16) or "alex" (AlexNet)

    def __post_init__(self) -> None:
        if self.net not in ("vgg", "alex"):
            raise ValueError(f"net is {self.net!r}; it is 'vgg' or 'alex'")


SD15_AUTOENCODER = AutoencoderConfig()
SD15_UNET = UNetConfig()
SD15_TEXT_ENCODER = TextEncoderConfig()

INPAINTING_UNET = UNetConfig(in_channels=9)
SD2_UNET = UNetConfig(sample_size=96, heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
SD2_TEXT_ENCODER = TextEncoderConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    pad_token_id=0,
    projection_dim=512,
)
SDXL_UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    layers_per_block=(2, 2, 2),
    attention_levels=(False, True, True),
    only_cross_attention=(False, False, False),
    transformer_layers=(1, 2, 10),
    heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SDXL_REFINER_UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(384, 768, 1536, 1536),
    attention_levels=(False, True, True, False),
    transformer_layers=(4, 4, 4, 4),
    heads=(6, 12, 24, 24),
    cross_attention_dim=1280,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2560,
)
SDXL_TEXT_ENCODER_2 = TextEncoderConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    pad_token_id=0,
    projection_dim=1280,
    projection=True,
)
SDXL_AUTOENCODER = AutoencoderConfig(scaling_factor=0.13025, sample_size=1024)
UPSCALER_UNET = UNetConfig(
    sample_size=128,
    in_channels=7,
    block_out_channels=(256, 512, 512, 1024),
    attention_levels=(False, True, True, True),
    only_cross_attention=(True, True, True, False),
    cross_attention_dim=1024,
    use_linear_projection=True,
    num_class_embeds=1000,
)
UPSCALER_AUTOENCODER = AutoencoderConfig(block_out_channels=(128, 256, 512), scaling_factor=0.08333, sample_size=256)
