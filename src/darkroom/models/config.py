"""Configurations of the networks, read from and written to the `config.json` files of a diffusers folder.

A field is declared once, as a `setting` with its kind and what it is; what is checked, read and written follows from
that. Beside `settings.setting`'s arguments a field may say

    file       the name in the file, where it isn't the field's; "": its class reads and writes it by hand
    absent     what a file that lacks the key means: diffusers' default, where ours is another
    empty      True: None, 0 and [] in a file mean what an absent key means
    read       a value of a file to the field's
    write      and back
    per_level  True: as many values as `block_out_channels` has; a file may give a single one for all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self

from ..settings import Kind, SettingError, check, setting

Json = Mapping[str, Any]

LARGEST = 1_000_000  # above any size, width or count of a real network: a broken file must not ask for terabytes
DEEPEST = 64  # levels, resnets or transformer blocks in a row


# Kinds, each by what is wrong with a value, in words ("": nothing). Values stay as the file has them.


def _kind(wrong: Callable[[Any], str]) -> Kind:
    def checked(name: str, value: Any) -> Any:
        if problem := wrong(value):
            raise SettingError(f"{name} is {value!r}; {problem}")
        return value

    return Kind(checked, lambda name, text: text)


def _not_whole(value: Any, low: int = 1) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= LARGEST
    return "" if good else f"it is a whole number in {low}..{LARGEST}"


def _not_depth(value: Any) -> str:
    return _not_whole(value) or ("" if value <= DEEPEST else f"at most {DEEPEST} are built")


def _number(low: float, high: float, signed: bool = False) -> Callable[[Any], str]:
    """A number from low to high; `signed`: its size is, whatever its sign."""

    def wrong(value: Any) -> str:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = good and low <= (abs(value) if signed else value) <= high  # false for NaN
        return "" if good else f"it is a number {'whose size is ' if signed else ''}from {low:g} to {high:g}"

    return wrong


def _not_flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "it is true or false"


def _each(wrong: Callable[[Any], str]) -> Kind:
    """Tuples of such values."""

    def problem(values: Any) -> str:
        if not (isinstance(values, tuple) and 0 < len(values) <= DEEPEST):
            return f"it is a list of 1 to {DEEPEST} values"
        return next(filter(None, map(wrong, values)), "")

    return _kind(problem)


def _one_of(*words: str) -> Kind:
    return _kind(lambda value: "" if value in words else f"it is {' or '.join(map(repr, words))}")


SIZE, SIZES = _kind(_not_whole), _each(_not_whole)
INDEX = _kind(lambda value: _not_whole(value, 0))
DEPTH, DEPTHS = _kind(_not_depth), _each(_not_depth)
# What latents are scaled and shifted by: published ones have 0.08 to 8, and float16 and noise want sizes near 1.
SCALE, SHIFT = _kind(_number(1e-4, 1e4, signed=True)), _kind(_number(-1e4, 1e4))
SCALES, SHIFTS = _each(_number(1e-4, 1e4, signed=True)), _each(_number(-1e4, 1e4))
EPSILON = _kind(_number(0, 1))  # what keeps a deviation from being zero
FLAG, FLAGS = _kind(_not_flag), _each(_not_flag)
ACTIVATION = _one_of("quick_gelu", "gelu")


def _levels(value: Any, levels: int) -> tuple[Any, ...]:
    """A per-level list from a list or a single value (diffusers allows both)."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def _side(value: Any) -> Any:
    """A size from a size or a [height, width] (diffusers allows both): the longer side."""
    return max(value) if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value) else value


def _check_object(config: Any) -> None:
    if not isinstance(config, Mapping):
        raise ValueError(f"the configuration is a {type(config).__name__}; it must be an object of names and values")


def _check_divides(name: str, parts: int, width: int) -> None:
    if width % parts:
        raise ValueError(f"{name} is {parts}; it must divide the width {width}")


def _key(field: Field[Any]) -> str:
    """The field's name in the file; "" where it has none."""
    return str(field.metadata["setting"].extra.get("file", field.name))


@dataclass(frozen=True, slots=True)
class Config:
    """What all configurations share. Raises ValueError, naming it, on a value that can't be."""

    NETWORK: ClassVar[str] = ""  # how messages call it
    CONSTANT: ClassVar[Json] = {}  # what its file says besides the fields
    SUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # further keys, and the values of them that can be built
    OMITTED: ClassVar[frozenset[str]] = frozenset()  # fields of its parent that its file doesn't have

    def __post_init__(self) -> None:
        check(self, ValueError)
        for field in fields(self):
            levels, value = getattr(self, "block_out_channels", ()), getattr(self, field.name)
            if field.metadata["setting"].extra.get("per_level") and len(value) != len(levels):
                raise ValueError(f"{field.name} is {value!r}; it needs one value for each of {len(levels)} levels")

    @classmethod
    def from_diffusers(cls, config: Json) -> Self:
        """Read the `config.json` of diffusers or transformers. Raises ValueError on what we can't build."""
        return cls(**cls._read(config))

    @classmethod
    def _read(cls, config: Json, levels: int = 1) -> dict[str, Any]:
        """The fields that have a key, by name; a single value stands for that many levels."""
        _check_object(config)
        for key, values in cls.SUPPORTED.items():
            if key in config and config[key] not in values:
                raise ValueError(f"{cls.NETWORK} option {key}={config[key]!r} is not supported")
        found = {}
        for field in fields(cls):
            extra = field.metadata["setting"].extra
            key, absent = _key(field), extra.get("absent", field.default)
            if key and field.name not in cls.OMITTED:
                value = config.get(key, absent)
                value = absent if extra.get("empty") and not value else value
                value = extra["read"](value) if "read" in extra else value
                if isinstance(field.default, tuple):
                    value = _levels(value, levels if extra.get("per_level") else 1)
                found[field.name] = value
        return found

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that diffusers or transformers reads."""
        written = dict(self.CONSTANT)
        for field in fields(self):
            extra, value = field.metadata["setting"].extra, getattr(self, field.name)
            value = extra["write"](value) if "write" in extra else value
            if (key := _key(field)) and field.name not in self.OMITTED:
                written[key] = list(value) if isinstance(value, tuple) else value
        return written


@dataclass(frozen=True, slots=True)
class AutoencoderConfig(Config):
    """AutoencoderKL: pictures [N, 3, H, W] in -1..1 to latents [N, 4, H/8, W/8] and back."""

    NETWORK = "autoencoder"
    CONSTANT: ClassVar = {"_class_name": "AutoencoderKL", "act_fn": "silu"}
    SUPPORTED: ClassVar = {"act_fn": ("silu",)}

    in_channels: int = setting(3, SIZE, "channels of a picture")
    out_channels: int = setting(3, SIZE, "channels of a decoded picture")
    latent_channels: int = setting(4, SIZE, "channels of a latent")
    block_out_channels: tuple[int, ...] = setting((128, 256, 512, 512), SIZES, "width of each level, finest first",
        absent=(64,))
    layers_per_block: int = setting(2, DEPTH, "resnets a level (the decoder has one more)", absent=1)
    norm_num_groups: int = setting(32, SIZE, "groups of every GroupNorm")
    scaling_factor: float = setting(0.18215, SCALE, "latent = scaling_factor * encoder mean")
    shift_factor: float = setting(0.0, SHIFT, "subtracted before scaling", empty=True, write=lambda v: v or None)
    sample_size: int = setting(512, SIZE, "the picture size it was trained at", absent=32, empty=True, read=_side)
    mid_block_attention: bool = setting(True, FLAG, "one self-attention in the middle", file="mid_block_add_attention")
    use_quant_conv: bool = setting(True, FLAG, "1x1 convolution after the encoder")
    use_post_quant_conv: bool = setting(True, FLAG, "1x1 convolution before the decoder")
    force_upcast: bool = setting(True, FLAG, "half precision overflows in the original weights")
    latents_mean: tuple[float, ...] | None = setting(None, SHIFTS, "of each channel, before scaling; with")
    latents_std: tuple[float, ...] | None = setting(None, SCALES, "this, its deviation")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        for width in self.block_out_channels:
            _check_divides("norm_num_groups", self.norm_num_groups, width)
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                channels = self.latent_channels
                raise ValueError(f"{name} is {values!r}; it needs one value for each of {channels} channels")

    @property
    def downscale(self) -> int:
        """Picture pixels a latent pixel covers on each side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_diffusers(cls, config: Json) -> Self:
        """Read diffusers' `vae/config.json`. Raises ValueError on a block type that is not an AutoencoderKL's."""
        found = cls._read(config)
        levels = len(found["block_out_channels"])
        for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = _levels(config.get(key, (known,) * levels), 1)
            other = [b for b in blocks if b != known]
            if other:
                raise ValueError(f"{key} has {other[0]!r}; an AutoencoderKL has only {known!r}")
            if len(blocks) != levels:
                raise ValueError(f"{key} has {len(blocks)} blocks for {levels} levels of block_out_channels")
        both = found["latents_mean"] is not None and found["latents_std"] is not None
        for name in ("latents_mean", "latents_std"):  # diffusers goes by them only where both are given
            found[name] = _levels(found[name], 1) if both else None
        return cls(**found)

    def to_diffusers(self) -> dict[str, Any]:
        """The `vae/config.json` that diffusers reads."""
        levels = len(self.block_out_channels)
        types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return Config.to_diffusers(self) | types


@dataclass(frozen=True, slots=True)
class TinyAutoencoderConfig(AutoencoderConfig):
    """AutoencoderTiny (TAESD): as an AutoencoderKL, of plain convolutions. All its levels have one width."""

    NETWORK = "tiny autoencoder"
    CONSTANT: ClassVar = {"_class_name": "AutoencoderTiny", "act_fn": "relu", "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2}
    SUPPORTED: ClassVar = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)}
    OMITTED = frozenset({"layers_per_block", "norm_num_groups", "sample_size", "mid_block_attention", "use_quant_conv",
                         "use_post_quant_conv", "force_upcast", "latents_mean", "latents_std"})

    block_out_channels: tuple[int, ...] = setting((64, 64, 64, 64), SIZES,
        "width of each level of the encoder, finest first", file="encoder_block_out_channels")
    decoder_widths: tuple[int, ...] = setting((64, 64, 64, 64), SIZES, "of the decoder, coarsest first",
        file="decoder_block_out_channels", per_level=True)
    encoder_blocks: tuple[int, ...] = setting((1, 3, 3, 3), DEPTHS, "residual blocks a level",
        file="num_encoder_blocks", per_level=True)
    decoder_blocks: tuple[int, ...] = setting((3, 3, 3, 1), DEPTHS, file="num_decoder_blocks", per_level=True)
    norm_num_groups: int = setting(1, SIZE, "there are no norms")
    scaling_factor: float = setting(1.0, SCALE, "it was made for scaled latents")
    shift_factor: float = setting(0.0, SHIFT, "subtracted before scaling", empty=True)
    force_upcast: bool = setting(False, FLAG)

    def __post_init__(self) -> None:
        AutoencoderConfig.__post_init__(self)
        for name in ("block_out_channels", "decoder_widths"):
            if len(set(getattr(self, name))) > 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; all levels of a tiny autoencoder have one width")

    @classmethod
    def from_diffusers(cls, config: Json) -> Self:
        """Read diffusers' `config.json` of an AutoencoderTiny. Raises ValueError on a feature we don't have."""
        return cls(**cls._read(config))

    def to_diffusers(self) -> dict[str, Any]:
        """The `vae/config.json` that diffusers reads."""
        return Config.to_diffusers(self)


@dataclass(frozen=True, slots=True)
class UNetConfig(Config):
    """UNet2DConditionModel: noisy latents, timesteps and a condition to a prediction of the same size."""

    NETWORK = "U-Net"
    CONSTANT: ClassVar = {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "center_input_sample": False,
                "downsample_padding": 1, "mid_block_scale_factor": 1}
    SUPPORTED: ClassVar = {
        **dict.fromkeys(("class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "timestep_post_act",
                         "reverse_transformer_layers_per_block", "time_embedding_dim", "time_embedding_act_fn",
                         "cross_attention_norm"), (None,)),
        **dict.fromkeys(("center_input_sample", "resnet_skip_time_act", "class_embeddings_concat"), (False,)),
        **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), (1,)),
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3,)),
        **dict.fromkeys(("resnet_time_scale_shift", "attention_type"), ("default",)),
        "addition_embed_type": (None, "text_time"),
        "dual_cross_attention": (False, None),
        "act_fn": ("silu",),
        "time_embedding_type": ("positional",),
    }

    sample_size: int = setting(64, SIZE, "latent size it was trained at", empty=True, read=_side)
    in_channels: int = setting(4, SIZE, "4, or 5, 7, 8, 9 with extra channels")
    out_channels: int = setting(4, SIZE, "channels of the prediction")
    block_out_channels: tuple[int, ...] = setting((320, 640, 1280, 1280), SIZES, "width of each level, finest first")
    layers_per_block: tuple[int, ...] = setting((2, 2, 2, 2), DEPTHS, "resnets a level going down (one more going up)",
        absent=2, per_level=True)
    attention_levels: tuple[bool, ...] = setting((True, True, True, False), FLAGS, "levels with spatial transformers",
        file="", per_level=True)
    only_cross_attention: tuple[bool, ...] = setting((False, False, False, False), FLAGS,
        "attn1 attends to the text too (upscaler)", absent=False, per_level=True)
    transformer_layers: tuple[int, ...] = setting((1, 1, 1, 1), DEPTHS, "blocks in each spatial transformer",
        file="transformer_layers_per_block", absent=1, per_level=True)
    # diffusers' `attention_head_dim` has always meant the number of heads in this model.
    heads: tuple[int, ...] = setting((8, 8, 8, 8), SIZES, "attention heads a level (a count, not a width)",
        file="attention_head_dim", absent=8, per_level=True)
    cross_attention_dim: int = setting(768, SIZE, "width of the text", absent=1280)
    use_linear_projection: bool = setting(False, FLAG, "proj_in/out of a transformer: linear or 1x1 conv")
    mid_block: bool = setting(True, FLAG, "False: no middle at all (some distilled models)", file="")
    mid_block_attention: bool = setting(True, FLAG, "False: the middle is one resnet, no transformer", file="")
    norm_num_groups: int = setting(32, SIZE, "groups of every GroupNorm")
    norm_eps: float = setting(1e-5, EPSILON, "of the resnets' GroupNorms")
    flip_sin_to_cos: bool = setting(True, FLAG, "timestep embedding: cosines first")
    freq_shift: int = setting(0, INDEX, "timestep embedding: taken from the number of frequencies")
    num_class_embeds: int | None = setting(None, SIZE, "classes of the class embedding (1000: upscaler)")
    upcast_attention: bool = setting(False, FLAG, "attention scores in float32", empty=True)
    time_cond_proj_dim: int | None = setting(None, SIZE, "guidance-scale embedding (LCM)")
    addition_time_embed_dim: int | None = setting(None, SIZE, "width of each size's sinusoids (SDXL)")
    projection_class_embeddings_input_dim: int | None = setting(None, SIZE,
        "of all sizes' and the pooled text together (SDXL)")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        in_middle = (False,) * (len(self.block_out_channels) - 1) + (self.mid_block and self.mid_block_attention,)
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
    def grid(self) -> int:
        """Of what a side of a latent must be a multiple, so that every level can halve it (8 for Stable Diffusion)."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def size_conditioning(self) -> bool:
        """Whether each row needs a pooled text and sizes (SDXL's "micro-conditioning", arXiv 2307.01952, sec. 2.2)."""
        return self.addition_time_embed_dim is not None

    def sizes(self, pooled_width: int) -> int:
        """How many numbers size conditioning takes beside a pooled text of this width: 6 (SDXL), 5 (its refiner).

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
    def from_diffusers(cls, config: Json) -> Self:
        """Read diffusers' `unet/config.json`. Raises ValueError, naming it, on a feature we don't have."""
        _check_object(config)
        attention = _attention_levels(config)
        found = cls._read(config, len(attention))
        mid = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
        if mid not in ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None):
            raise ValueError(f"U-Net mid_block_type {mid!r} is not supported")
        if found["norm_num_groups"] is None:
            raise ValueError("U-Net option norm_num_groups=None is not supported")
        sizes = config.get("addition_embed_type") == "text_time"
        if sizes and found["addition_time_embed_dim"] is None:
            raise ValueError("addition_embed_type is 'text_time', which needs an addition_time_embed_dim")
        if not sizes:
            found |= {"addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None}
        widths = _levels(found["cross_attention_dim"], 1)
        if not widths or any(width != widths[0] for width in widths):
            raise ValueError(f"U-Net option cross_attention_dim={config['cross_attention_dim']!r} is not supported")
        if config.get("num_attention_heads"):
            found["heads"] = _levels(config["num_attention_heads"], len(attention))
        return cls(**found | {
            "attention_levels": attention,
            "cross_attention_dim": widths[0],
            "mid_block": mid is not None,
            "mid_block_attention": mid != "UNetMidBlock2D",
        })

    def to_diffusers(self) -> dict[str, Any]:
        """The `unet/config.json` that diffusers reads."""
        mid = "UNetMidBlock2DCrossAttn" if self.mid_block_attention else "UNetMidBlock2D"
        return Config.to_diffusers(self) | {
            "addition_embed_type": "text_time" if self.size_conditioning else None,
            "down_block_types": [("CrossAttn" if a else "") + "DownBlock2D" for a in self.attention_levels],
            "mid_block_type": mid if self.mid_block else None,
            "up_block_types": [("CrossAttn" if a else "") + "UpBlock2D" for a in reversed(self.attention_levels)],
        }


def _attention_levels(config: Json) -> tuple[bool, ...]:
    """Which levels have transformers, by the names of a U-Net's blocks; the way up must mirror the way down."""
    down = _levels(config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)), 1)
    up = _levels(config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3), 1)
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
    for block in (*down, *up):
        if block not in list(kinds):
            raise ValueError(f"U-Net block type {block!r} is not one of {', '.join(kinds)}")
    attention = tuple(kinds[b] for b in down)
    if tuple(kinds[b] for b in reversed(up)) != attention:
        raise ValueError("up_block_types do not mirror down_block_types")
    return attention


def _reversed_channels(order: Any) -> bool:
    if order not in ("rgb", "bgr"):
        raise ValueError(f"controlnet_conditioning_channel_order is {order!r}; it is 'rgb' or 'bgr'")
    return bool(order == "bgr")


@dataclass(frozen=True, slots=True)
class ControlNetConfig(UNetConfig):
    """ControlNetModel: the way down of a U-Net and its middle, and a picture (the hint) that steers another U-Net."""

    CONSTANT: ClassVar = {key: value for key, value in UNetConfig.CONSTANT.items() if key != "center_input_sample"} | {
        "_class_name": "ControlNetModel"}
    OMITTED = frozenset({"out_channels", "sample_size", "time_cond_proj_dim"})

    hint_channels: int = setting(3, SIZE, "channels of the hint", file="conditioning_channels")
    hint_widths: tuple[int, ...] = setting((16, 32, 96, 256), SIZES,
        "of its embedding; each but the first halves its size", file="conditioning_embedding_out_channels", empty=True)
    hint_bgr: bool = setting(False, FLAG, "the hint's channels were trained in the order BGR",
        file="controlnet_conditioning_channel_order", absent="rgb",
        read=_reversed_channels, write=lambda bgr: "bgr" if bgr else "rgb")
    global_pool: bool = setting(False, FLAG, "only the mean of each residual counts (shuffle)",
        file="global_pool_conditions")

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
    def from_diffusers(cls, config: Json) -> Self:
        """Read a ControlNet's `config.json`. Raises ValueError, naming it, on a feature we don't have."""
        _check_object(config)
        down = _levels(config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)), 1)
        up = [str(block).replace("Down", "Up") for block in reversed(down)]  # there is none; a U-Net's would be these
        return super(ControlNetConfig, cls).from_diffusers({**config, "up_block_types": up})

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` that diffusers reads."""
        written = UNetConfig.to_diffusers(self) | {"layers_per_block": self.layers_per_block[0]}
        return {key: value for key, value in written.items() if key != "up_block_types"}


@dataclass(frozen=True, slots=True)
class ClipConfig(Config):
    """What CLIP's two encoders have in common. In transformers' files None means what an absent key does."""

    num_hidden_layers: int = setting(12, DEPTH, "transformer layers")
    num_attention_heads: int = setting(12, SIZE, "attention heads a layer")
    hidden_act: str = setting("quick_gelu", ACTIVATION, '"quick_gelu" (OpenAI) or "gelu" (OpenCLIP)')
    layer_norm_eps: float = setting(1e-5, EPSILON, "of every LayerNorm")
    hidden_size: int = setting(768, SIZE, "D, the width of a token or patch")

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        _check_divides("num_attention_heads", self.num_attention_heads, self.hidden_size)

    @classmethod
    def from_diffusers(cls, config: Json) -> Self:
        """Read transformers' CLIPTextConfig or CLIPVisionConfig. ValueError on an unknown activation."""
        _check_object(config)
        return cls(**cls._read({key: value for key, value in config.items() if value is not None}))


# What transformers writes into every CLIP's file.
_CLIP = {
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    # What transformers loads it as unless told otherwise: a pipeline's other parts become float32, too.
    "torch_dtype": "float32",
}


@dataclass(frozen=True, slots=True)
class TextEncoderConfig(ClipConfig):
    """CLIPTextModel: token ids [N, 77] to embeddings [N, 77, D]."""

    CONSTANT: ClassVar = _CLIP | {"model_type": "clip_text_model"}

    vocab_size: int = setting(49408, SIZE, "entries of the vocabulary")
    hidden_size: int = setting(768, SIZE, "D, the width of a token", absent=512)
    intermediate_size: int = setting(3072, SIZE, "width of the feed-forward layer", absent=2048)
    num_attention_heads: int = setting(12, SIZE, "attention heads a layer", absent=8)
    max_position_embeddings: int = setting(77, SIZE, "tokens of a text at most")
    bos_token_id: int = setting(49406, INDEX, "the token a text begins with")
    eos_token_id: int = setting(49407, INDEX, "the token that ends it")
    pad_token_id: int = setting(49407, INDEX, 'SD 1.x pads with EOS, SD 2.x with "!" (0)')
    projection_dim: int = setting(768, SIZE, "P, the width of the pooled text", absent=512)
    projection: bool = setting(False, FLAG, "CLIPTextModelWithProjection: has a pooled text", file="architectures",
        read=lambda names: names == ["CLIPTextModelWithProjection"],
        write=lambda has: ["CLIPTextModelWithProjection" if has else "CLIPTextModel"])


@dataclass(frozen=True, slots=True)
class VisionEncoderConfig(ClipConfig):
    """CLIPVisionModelWithProjection: pictures [N, 3, S, S] to embeddings [N, P]. The default is CLIP's ViT-B/32."""

    CONSTANT: ClassVar = _CLIP | {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}

    intermediate_size: int = setting(3072, SIZE, "width of the feed-forward layer")
    num_channels: int = setting(3, SIZE, "channels of a picture")
    image_size: int = setting(224, SIZE, "S, the side of a picture")
    patch_size: int = setting(32, SIZE, "pixels a patch covers on each side")
    projection_dim: int = setting(512, SIZE, "P, the width of the space that pictures and texts share")

    def __post_init__(self) -> None:
        ClipConfig.__post_init__(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}, larger than the picture's {self.image_size}")

    @property
    def patches(self) -> int:
        """Patches of a picture; a border that fills no patch is left out."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class InceptionConfig:
    """FID's Inception v3. There is only one."""


@dataclass(frozen=True, slots=True)
class LpipsConfig(Config):
    """LPIPS: the classifier whose answers are compared."""

    net: str = setting("vgg", _one_of("vgg", "alex"), "VGG-16 or AlexNet")
