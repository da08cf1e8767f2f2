"""What a single file is, told by its content: the names and shapes of its tensors, never its own name.

First each network by its native names, whatever the file calls them (`as_native`); then a whole model in one file, in
the layout of the original LDM code (`examine`). Published facts: Rombach et al.'s v1-inference.yaml, and Stability AI's
v2-inference(-v).yaml, x4-upscaling.yaml and v2-inpainting-inference.yaml. What no shape tells (heads, normalisation
groups, scaling factors) is what those have. A shape is found by the vote of several tensors, so that one missing or
broken tensor is later named as such and doesn't make a different network out of all others.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import parse_json
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from .ecosystem import named
from .folder import checked_defaults, network_config, sentences
from .layouts import IGNORED_AT_TOP, MARKS, TITLES, Layout, Part, native_names, prefix
from .rules import Config
from .tensors import TensorFile
from .weights import METADATA, part_keys

Shapes = Mapping[str, tuple[int, ...]]  # tensor name, without its part's prefix -> shape

TASKS = {4: "text-to-image", 5: "depth-to-image", 7: "upscaling", 8: "instruction", 9: "inpainting"}


def _vote(values: Iterable[int]) -> int | None:
    """The most frequent value; the first such among equals."""
    counts = Counter(values)
    return counts.most_common(1)[0][0] if counts else None


def _sizes(shapes: Shapes, pattern: str, dimension: int) -> Iterator[int]:
    """The sizes along a dimension of all tensors whose whole name matches."""
    compiled = re.compile(pattern)
    for name, shape in shapes.items():
        if compiled.fullmatch(name) and len(shape) > dimension:
            yield shape[dimension]


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    """The whole numbers that the pattern's group takes among the names, ascending."""
    compiled = re.compile(pattern)
    return sorted({int(match[1]) for name in shapes if (match := compiled.match(name))})


def as_native(part: Part, layout: Layout, shapes: Shapes) -> Shapes:
    """A network's shapes by native names, as far as they are known before its configuration is."""
    return {native: shapes[name] for native, name in native_names(part, layout, shapes).items()}


def unet_config(shapes: Shapes, openclip: bool, pooled: tuple[int, int] | None = None) -> UNetConfig | None:
    """The U-Net of native names (`as_native`); None if they are not one's.

    `pooled`: of SDXL, the width of its pooled text, and how many sizes it is told.
    """
    levels = range(1 + max(_numbers(shapes, r"down\.(\d+)\.(?:resnets|attentions)\."), default=0))
    layers = [len(_numbers(shapes, rf"down\.{level}\.(?:resnets|attentions)\.(\d+)\.")) for level in levels]
    widths, attention, depths, crosses = [], [], [], []
    text = _vote(_sizes(shapes, r".*\.attn2\.[kv]\.weight", 1))
    for level in levels:
        width = _vote(_sizes(shapes, rf"down\.{level}\.resnets\.\d+\.(conv[12]|norm2|time)\.(weight|bias)", 0))
        if width is None:
            return None
        transformers = rf"down\.{level}\.attentions\.\d+\."
        own = _vote(_sizes(shapes, transformers + r".*\.attn1\.[kv]\.weight", 1))
        widths.append(width)
        attention.append(any(re.match(transformers, name) for name in shapes))
        depths.append(_depth(shapes, transformers))
        crosses.append(own is not None and own != width and own == text)
    middle = _depth(shapes, r"mid\.attention\.")
    if not attention[-1]:
        depths[-1] = middle
    for level in reversed(levels[:-1]):  # without attention it means nothing: as the next level
        if not attention[level]:
            depths[level], crosses[level] = depths[level + 1], crosses[level + 1]
    linear = _vote(len(s) for name, s in shapes.items() if name.endswith(("proj_in.weight", "proj_out.weight"))) == 2
    in_channels = _vote(_sizes(shapes, r"conv_in\.weight", 1)) or 4
    classes = _vote(_sizes(shapes, r"class_embed\.weight", 0))
    together = _vote(_sizes(shapes, r"size_embed\.linear1\.weight", 1)) if pooled else None
    told = together is not None
    # SD 2.x and SDXL have heads of 64 channels, others have 8 heads.
    by_width = ((openclip or text == 1024) and classes is None) or told
    return UNetConfig(
        sample_size=128 if classes is not None or told else 64,
        in_channels=in_channels,
        out_channels=_vote(_sizes(shapes, r"conv_out\.(weight|bias)", 0)) or 4,
        block_out_channels=tuple(widths),
        layers_per_block=tuple(layers),
        attention_levels=tuple(attention),
        only_cross_attention=tuple(crosses),
        transformer_layers=tuple(depths),
        heads=tuple(max(1, width // 64) if by_width else 8 for width in widths),
        cross_attention_dim=text or (1024 if openclip else 768),
        use_linear_projection=linear,
        mid_block=any(name.startswith("mid.") for name in shapes),
        mid_block_attention=any(name.startswith("mid.attention.") for name in shapes),
        norm_num_groups=math.gcd(32, *widths),
        num_class_embeds=classes,
        time_cond_proj_dim=_vote(_sizes(shapes, r"time_embed\.cond\.weight", 1)),
        addition_time_embed_dim=(together - pooled[0]) // pooled[1] if pooled and together is not None else None,
        projection_class_embeddings_input_dim=together,
    )


def _depth(shapes: Shapes, start: str) -> int:
    """How many transformer blocks the spatial transformers under `start` have; 1 if there are none."""
    return 1 + max(_numbers(shapes, start + r"blocks\.(\d+)\."), default=0)


def autoencoder_config(shapes: Shapes, upscaler: bool, sdxl: bool = False) -> AutoencoderConfig | None:
    """The autoencoder of native names (`as_native`); None if they are not one's."""
    levels = _numbers(shapes, r"encoder\.down\.(\d+)\.")
    widths = [
        _vote(_sizes(shapes, rf"encoder\.down\.{level}\.resnets\.\d+\.(conv[12]|norm2)\.(weight|bias)", 0))
        for level in levels
    ]
    known = [width for width in widths if width is not None]
    if not known or len(known) != len(widths):
        return None
    latent = _vote([*_sizes(shapes, r"decoder\.conv_in\.weight", 1), *_sizes(shapes, r"post_quant\.\w+", 0)])
    return AutoencoderConfig(
        in_channels=_vote(_sizes(shapes, r"encoder\.conv_in\.weight", 1)) or 3,
        out_channels=_vote(_sizes(shapes, r"decoder\.conv_out\.(weight|bias)", 0)) or 3,
        latent_channels=latent or 4,
        block_out_channels=tuple(known),
        layers_per_block=1 + max(_numbers(shapes, r"encoder\.down\.\d+\.resnets\.(\d+)\."), default=0),
        norm_num_groups=math.gcd(32, *known),
        scaling_factor=0.08333 if upscaler else 0.13025 if sdxl else 0.18215,
        sample_size=256 if upscaler else 1024 if sdxl else 512,
        mid_block_attention=any(".mid.attention." in name for name in shapes),
        use_quant_conv=any(name.startswith("quant.") for name in shapes),
        use_post_quant_conv=any(name.startswith("post_quant.") for name in shapes),
    )


def text_encoder_config(shapes: Shapes, openclip: bool, projection: bool = False) -> TextEncoderConfig | None:
    """The text encoder of CLIP keys (`embeddings...`) or OpenCLIP keys (`token_embedding...`); None if neither.

    `projection`: its pooled text is used, too.
    """
    layer, feed = (
        (r"transformer\.resblocks\.(\d+)\.", "mlp.c_fc") if openclip else (r"encoder\.layers\.(\d+)\.", "mlp.fc1")
    )
    tokens = r"token_embedding\.weight" if openclip else r"embeddings\.token_embedding\.weight"
    positions = r"positional_embedding" if openclip else r"embeddings\.position_embedding\.weight"
    width = _vote(
        [
            *_sizes(shapes, tokens, 1),
            *_sizes(shapes, positions, 1),
            *_sizes(shapes, layer + r"(ln|layer_norm)_?[12]\.\w+", 0),
        ]
    )
    layers = 1 + max(_numbers(shapes, layer), default=-1)
    if width is None or not layers:
        return None
    vocabulary = _vote(_sizes(shapes, tokens, 0)) or 49408
    pooled = _vote(_sizes(shapes, "text_projection", 1)) if projection else None
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_vote(_sizes(shapes, layer + re.escape(feed) + r"\.(weight|bias)", 0)) or 4 * width,
        num_hidden_layers=layers - dropped_layers(layers, openclip),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=_vote(_sizes(shapes, positions, 0)) or 77,
        hidden_act="gelu" if openclip else "quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0 if openclip else vocabulary - 1,
        projection_dim=pooled or (512 if openclip else width),
        projection=projection,
    )


def dropped_layers(layers: int, openclip: bool) -> int:
    """SD 2.x looks at the last layer but one of OpenCLIP's 24: the last is in the file and is never used."""
    return 1 if openclip and layers == 24 else 0


def family_of(unet: UNetConfig, text_encoders: int = 1) -> str:
    """ "sd1", "sd2", "sdxl", "sdxl_refiner", "upscaler" or "custom"."""
    if unet.size_conditioning:
        return "sdxl" if text_encoders == 2 else "sdxl_refiner"
    if unet.in_channels == 7 and unet.num_class_embeds is not None:
        return "upscaler"
    return {768: "sd1", 1024: "sd2"}.get(unet.cross_attention_dim, "custom")


def scheduler_config(family: str, prediction: str, zero_snr: bool = False) -> dict[str, Any]:
    """The scheduler configuration of the published diffusers folder of a family."""
    sdxl = family in ("sdxl", "sdxl_refiner")
    plain = "PNDMScheduler" if prediction == "epsilon" and not zero_snr else "DDIMScheduler"
    config: dict[str, Any] = {
        "_class_name": "EulerDiscreteScheduler" if sdxl else plain,
        "beta_start": 0.0001 if family == "upscaler" else 0.00085,
        "beta_end": 0.02 if family == "upscaler" else 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    if sdxl:
        config |= {"timestep_spacing": "leading", "interpolation_type": "linear", "use_karras_sigmas": False}
    if zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


LOW_RES_SCHEDULER = {  # how the upscaler noises its low-resolution picture
    "_class_name": "DDPMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "variance_type": "fixed_small",
    "trained_betas": None,
}


# --- a whole model in one file --------------------------------------------------------------------------------------


_COSXL = dict(zip(MARKS["edm_vpred"], (120.0, 0.002), strict=True))  # what ComfyUI takes where one is missing
_PREDICTIONS = {
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "vpred"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
}
PLAYGROUND_SCHEDULER = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}

_V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_DEVIATION = 0.09  # its standard deviation is above this in SD 2.x 768-v, below in 2.x base


@dataclass(frozen=True, slots=True)
class SingleFile:
    """What was found in a single file; a part that is not there has no configuration."""

    layouts: Mapping[Part, Layout]
    configs: Mapping[Part, Config]
    family: str
    scheduler_config: dict[str, Any]
    unknown: tuple[str, ...]  # keys that belong to nothing we know
    ema: bool = False  # the U-Net is there as a moving average only
    low_res_scheduler_config: dict[str, Any] | None = None
    zero_negative: bool = False
    tokenizer_2: dict[str, Any] | None = field(default=None, repr=False)  # as `tokenizer`, of a second text encoder
    defaults: dict[str, float] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = field(
        default=None, repr=False
    )  # file name -> content, of a vocabulary not CLIP's


def examine(file: TensorFile, path: Path) -> SingleFile:
    """Find out what a single file holds. CheckpointError if it is some other kind of file."""
    names = file.names()
    if (other := named(names)) is not None:
        raise CheckpointError(f"{path} is {other}")
    ema = not any(name.startswith("model.diffusion_model.") for name in names)
    openclip = any(name.startswith("cond_stage_model.model.") for name in names)
    layouts: dict[Part, Layout] = {"unet": "ldm", "autoencoder": "ldm", **_text_layouts(names, openclip)}
    keys = {part: part_keys(names, part, layout, ema) for part, layout in layouts.items()}
    known = {name for found in keys.values() for name in found.values()}
    unknown = tuple(name for name in names if name not in known and not IGNORED_AT_TOP.match(name))
    shapes = {
        part: {key.removeprefix(prefix(part, layouts[part])): file.shape(name) for key, name in keys[part].items()}
        for part in layouts
    }
    texts = [part for part in layouts if part.startswith("text_encoder")]
    sdxl = layouts[texts[-1]] == "sdxl_openclip"
    configs: dict[Part, Config] = {}
    with sentences(str(path)):
        for part in texts:
            text_encoder = text_encoder_config(
                shapes[part], layouts[part] in ("openclip", "sdxl_openclip"), projection=sdxl and part == texts[-1]
            )
            if text_encoder is not None:
                configs[part] = text_encoder
        last = configs.get(texts[-1])
        pooled = None
        if sdxl and isinstance(last, TextEncoderConfig):
            pooled = (last.projection_dim, 6 if len(texts) == 2 else 5)
        unet = unet_config(as_native("unet", "ldm", shapes["unet"]), openclip, pooled)
        family = "custom" if unet is None else family_of(unet, len(texts))
        scheduler = _told_scheduler(file, path, keys["unet"], family, 4 if unet is None else unet.in_channels)
        if unet is not None:
            large = family == "sd2" and scheduler["prediction_type"] == "v_prediction"  # as published for SD 2.1
            configs["unet"] = dataclasses.replace(unet, sample_size=96, upcast_attention=True) if large else unet
        upscaler = family == "upscaler"
        latent = as_native("autoencoder", "ldm", shapes["autoencoder"])
        autoencoder = autoencoder_config(latent, upscaler, sdxl)
        if autoencoder is not None:
            configs["autoencoder"] = _latent_scale(file, path, autoencoder)
    own = _own_metadata(file, path)
    for part in configs:
        if part in own:
            configs[part] = network_config(part, own[part], f"{path} (metadata)")
    return SingleFile(
        layouts=layouts,
        configs=configs,
        family=family,
        scheduler_config=own.get("scheduler", scheduler),
        unknown=unknown,
        ema=ema and unet is not None,
        low_res_scheduler_config=own.get("low_res_scheduler", dict(LOW_RES_SCHEDULER) if upscaler else None),
        tokenizer=own.get("tokenizer"),
        tokenizer_2=own.get("tokenizer_2"),
        zero_negative=own.get("pipeline", {}).get("force_zeros_for_empty_prompt", family == "sdxl") is True,
        defaults=checked_defaults(own.get("defaults", {}), str(path)),
    )


def _text_layouts(names: list[str], openclip: bool) -> dict[Part, Layout]:
    """The text encoders of a file: SDXL has two, its refiner the second of them alone."""
    if any(name.startswith("conditioner.embedders.1.model.") for name in names):
        return {"text_encoder": "sdxl_clip", "text_encoder_2": "sdxl_openclip"}
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        return {"text_encoder": "sdxl_openclip"}
    return {"text_encoder": "openclip" if openclip else "ldm"}


def require_whole(found: SingleFile, path: Path) -> None:
    """CheckpointError unless all networks are there and nothing unknown is."""
    missing = [TITLES[part] for part in found.layouts if part not in found.configs]
    if len(missing) == len(found.layouts):
        first = ", ".join(found.unknown[:3]) or "nothing"
        raise CheckpointError(f"{path} is not a Stable Diffusion checkpoint: its tensors are called {first}")
    if missing:
        raise CheckpointError(f"{path} is not a whole model: it has no {' and no '.join(missing)}")
    if found.unknown:
        first, count = ", ".join(found.unknown[:3]), len(found.unknown)
        raise CheckpointError(f"{path} has {count} unknown key{'s' * (count > 1)} ({first}{', ...' * (count > 3)})")


def _told_scheduler(
    file: TensorFile, path: Path, keys: Mapping[str, str], family: str, in_channels: int
) -> dict[str, Any]:
    """The scheduler configuration, by what the file says of it: its marks, its metadata, then what is known."""
    names = set(file.names())
    if names & set(MARKS["edm_vpred"]):
        high, low = (float(_mark(file, path, key)[0]) if key in names else usual for key, usual in _COSXL.items())
        return {
            "_class_name": "EDMEulerScheduler",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "sigma_data": 1.0,
            "sigma_max": high,
            "sigma_min": low,
            "sigma_schedule": "exponential",
        }
    if names & set(MARKS["edm"]):
        return dict(PLAYGROUND_SCHEDULER)
    zero_snr = bool(names & set(MARKS["zero_snr"]))
    prediction = _prediction(file, path, keys, family, in_channels)
    return scheduler_config(family, prediction, zero_snr)


def _prediction(file: TensorFile, path: Path, keys: Mapping[str, str], family: str, in_channels: int) -> str:
    if set(file.names()) & set(MARKS["v_prediction"]) or family == "upscaler":
        return "v_prediction"
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):  # kohya's, ComfyUI's
        said = file.metadata.get(name, "").strip().casefold()
        if said in _PREDICTIONS:
            return _PREDICTIONS[said]
        if said not in ("", "none"):
            raise CheckpointError(f"{path} predicts {said[:60]!r} (its {name}), which Darkroom does not load")
    key = keys.get(prefix("unet", "ldm") + _V_BIAS)
    if family == "sd2" and in_channels == 4 and key is not None and file.dtype(key).is_floating_point:
        bias = file.load(key).float()
        if bias.numel() > 1 and float(bias.std(correction=0)) > _V_DEVIATION:
            return "v_prediction"
    return "epsilon"


def _latent_scale(file: TensorFile, path: Path, config: AutoencoderConfig) -> AutoencoderConfig:
    """Playground 2.5's latents have a mean and a deviation of their own, which lie in the file."""
    names = set(file.names())
    given = [key for key in MARKS["edm"] if key in names]
    if not given:
        return config
    if len(given) < len(MARKS["edm"]):
        raise CheckpointError(f"{path} has {given[0]} alone of {' and '.join(MARKS['edm'])}: download it again")
    mean, std = (tuple(_mark(file, path, key, config.latent_channels)) for key in MARKS["edm"])
    return dataclasses.replace(config, latents_mean=mean, latents_std=std, scaling_factor=0.5)


def _mark(file: TensorFile, path: Path, key: str, count: int = 1) -> list[float]:
    """The numbers of a mark that has some."""
    if math.prod(file.shape(key)) != count or not file.dtype(key).is_floating_point:
        raise CheckpointError(f"{path}: {key} must be {count} floating-point number{'s' * (count > 1)}")
    numbers: list[float] = file.load(key).double().flatten().tolist()
    return numbers


def _own_metadata(file: TensorFile, path: Path) -> dict[str, dict[str, Any]]:
    """What `save_single_file` noted in the file, if it wrote it: objects by the names of parts and schedulers."""
    text = file.metadata.get(METADATA)
    content = {} if text is None else parse_json(text, f"{path} (metadata)")
    return {name: value for name, value in content.items() if isinstance(value, dict)}
