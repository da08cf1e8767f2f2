"""Single files told by their content."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.errors import CheckpointError
from darkroom.formats import detect
from darkroom.formats.detect import examine, require_whole
from darkroom.formats.layouts import ema_name, native_names, prefix, table
from darkroom.formats.rules import native_shapes
from darkroom.formats.weights import in_file_shape
from darkroom.models import presets

PATH = Path("model.ckpt")
V_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def keys(part: Any, layout: Any, config: Any) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a published network in LDM layout."""
    native = native_shapes(config)
    places = table(part, layout, native, config)
    return {place.name: in_file_shape(tuple(native[name]), place) for name, place in places.items()}


SD2_OPEN_CLIP = replace(presets.SD2_TEXT_ENCODER, num_hidden_layers=24)  # as it is in the files
FAMILIES = {
    "sd1": (presets.SD15_UNET, presets.SD15_AUTOENCODER, presets.SD15_TEXT_ENCODER),
    "inpainting": (presets.INPAINTING_UNET, presets.SD15_AUTOENCODER, presets.SD15_TEXT_ENCODER),
    "sd2": (replace(presets.SD2_UNET, sample_size=64), presets.SD15_AUTOENCODER, presets.SD2_TEXT_ENCODER),
    "upscaler": (presets.UPSCALER_UNET, presets.UPSCALER_AUTOENCODER, presets.SD2_TEXT_ENCODER),
}


@cache
def whole(family: str) -> dict[str, tuple[int, ...]]:
    unet, autoencoder, text = FAMILIES[family]
    if text is presets.SD2_TEXT_ENCODER:
        encoder = keys("text_encoder", "openclip", SD2_OPEN_CLIP)
        encoder["cond_stage_model.model.text_projection"] = (1024, 1024)
        encoder["cond_stage_model.model.logit_scale"] = ()
    else:
        encoder = keys("text_encoder", "ldm", text)
        encoder["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 77)
    buffers = dict.fromkeys(("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"), (1000,))
    return {**keys("unet", "ldm", unet), **keys("autoencoder", "ldm", autoencoder), **encoder, **buffers}


class Described:
    """Stands for a file of which only names and shapes matter."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None, v: float = 0.0):
        self.shapes, self.metadata, self.v = shapes, metadata or {}, v

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def load(self, name: str) -> torch.Tensor:
        assert name == V_BIAS, "detection reads nothing else"
        return torch.linspace(-1.0, 1.0, self.shapes[name][0]) * self.v * 3**0.5


def found(file: Described) -> Any:
    return examine(file, PATH)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_published_architectures_are_told_exactly(family: str) -> None:
    result = found(Described(whole(family)))
    require_whole(result, PATH)
    expected_family = {"inpainting": "sd1"}.get(family, family)
    assert (result.family, result.ema) == (expected_family, False)
    assert tuple(result.configs[part] for part in ("unet", "autoencoder", "text_encoder")) == FAMILIES[family]


def test_prediction_types_and_schedulers() -> None:
    base = found(Described(whole("sd2"), v=0.05))
    assert base.scheduler_config["_class_name"] == "PNDMScheduler"
    assert base.scheduler_config["prediction_type"] == "epsilon"
    large = found(Described(whole("sd2"), v=0.12))
    assert large.scheduler_config["_class_name"] == "DDIMScheduler"
    assert large.scheduler_config["prediction_type"] == "v_prediction"
    assert (large.configs["unet"].sample_size, large.configs["unet"].upcast_attention) == (96, True)
    said = {"modelspec.prediction_type": "epsilon"}
    assert found(Described(whole("sd2"), said, v=0.12)).scheduler_config["prediction_type"] == "epsilon"
    one = found(Described(whole("sd1"), v=0.5)).scheduler_config  # the deviation says nothing about SD 1.x
    assert one["prediction_type"] == "epsilon"
    assert (one["beta_start"], one["beta_end"], one["beta_schedule"]) == (0.00085, 0.012, "scaled_linear")
    assert (one["steps_offset"], one["set_alpha_to_one"], one["skip_prk_steps"]) == (1, False, True)
    marked = found(Described({**whole("sd1"), "v_pred": (), "ztsnr": ()})).scheduler_config
    assert marked["prediction_type"] == "v_prediction"
    assert marked["rescale_betas_zero_snr"] is True
    upscaler = found(Described(whole("upscaler")))
    assert upscaler.scheduler_config["prediction_type"] == "v_prediction"
    assert upscaler.scheduler_config["beta_end"] == 0.02
    assert upscaler.low_res_scheduler_config["_class_name"] == "DDPMScheduler"


def test_one_missing_key_never_makes_another_network() -> None:
    """Whatever single key is lost or misshapen, the rest is still recognised, so that the key can be named."""
    shapes = whole("sd1")
    expected = found(Described(shapes)).configs
    for key in random.Random(0).sample(sorted(shapes), 40):
        assert found(Described({k: s for k, s in shapes.items() if k != key})).configs == expected, key
        strange = (*shapes[key][:-1], 5) if len(shapes[key]) > 1 else (5,)
        if key != "model.diffusion_model.input_blocks.0.0.weight":  # the only one that tells the task
            assert found(Described({**shapes, key: strange})).configs == expected, key


def test_moving_averages_alone_are_used() -> None:
    shapes = whole("sd1")
    averages = {ema_name(k) if k.startswith("model.diffusion_model.") else k: s for k, s in shapes.items()}
    result = found(Described({**averages, "model_ema.decay": (), "model_ema.num_updates": ()}))
    require_whole(result, PATH)
    assert result.ema
    assert result.configs["unet"] == presets.SD15_UNET
    both = found(Described({**averages, **shapes}))
    require_whole(both, PATH)
    assert not both.ema


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (1, 1)}, "Flux"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 4)}, "LoRA"),
        ({"unet.up.attn1.to_q.lora_A.weight": (4, 4)}, "LoRA"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "ControlNet"),
        ({"emb_params": (2, 768)}, "textual-inversion"),
        ({"encoder.down.0.block.0.conv1.weight": (4, 4, 3, 3)}, "autoencoder alone"),
        ({"down_blocks.0.attentions.0.norm.weight": (4,)}, "diffusers folder"),
        ({"fc.weight": (4, 4), "fc.bias": (4,)}, "not a Stable Diffusion checkpoint.*fc.weight"),
        ({}, "not a Stable Diffusion checkpoint"),
    ],
)
def test_other_files_are_called_what_they_are(shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as error:
        require_whole(found(Described(shapes)), PATH)
    assert str(error.value).count("\n") == 0
    assert "model.ckpt" in str(error.value)


def test_a_part_missing_or_a_strange_key_is_named() -> None:
    shapes = whole("sd1")
    without = {k: s for k, s in shapes.items() if not k.startswith("first_stage_model.")}
    with pytest.raises(CheckpointError, match=r"it has no autoencoder \(VAE\)"):
        require_whole(found(Described(without)), PATH)
    with pytest.raises(CheckpointError, match=r"1 unknown key \(mystery\.weight\)"):
        require_whole(found(Described({**shapes, "mystery.weight": (1,)})), PATH)


def test_absurd_shapes_end_in_a_sentence() -> None:
    shapes = {k: tuple(10**7 * (n > 100) + n for n in s) for k, s in whole("sd1").items()}
    with pytest.raises(CheckpointError, match=r"model\.ckpt"):
        found(Described(shapes))
    for seed in range(8):
        rng = random.Random(seed)
        broken = {k: tuple(rng.choice((0, 1, 3, 320)) for _ in range(rng.randrange(5))) for k in shapes}
        with contextlib.suppress(CheckpointError):  # anything else is a failure
            found(Described(broken))


def test_tasks() -> None:
    assert detect.TASKS[presets.INPAINTING_UNET.in_channels] == "inpainting"
    assert detect.TASKS[presets.UPSCALER_UNET.in_channels] == "upscaling"


def test_projections_written_as_linear_layers_do_not_change_the_heads() -> None:
    """Some converters write SD 1.x's 1x1 convolutions as matrices; its heads stay 8 all the same."""
    shapes = {k: s[:2] if "proj_in.weight" in k or "proj_out.weight" in k else s for k, s in whole("sd1").items()}
    config = found(Described(shapes)).configs["unet"]
    assert config == replace(presets.SD15_UNET, use_linear_projection=True)


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("family", [*FAMILIES, "sdxl"])
def test_any_layout_tells_the_same_in_native_names(family: str, layout: Any) -> None:
    """Every name that is turned back is the native one whose tensor lies there, with its numbers."""
    configs = {**FAMILIES, "sdxl": (presets.SDXL_UNET, presets.SD15_AUTOENCODER)}[family]
    for part, config in zip(("unet", "autoencoder"), configs[:2], strict=True):
        native = native_shapes(config)
        places = table(part, layout, native, config)  # type: ignore[arg-type]
        start = prefix(part, layout)  # type: ignore[arg-type]
        names = {place.name.removeprefix(start): name for name, place in places.items()}
        found = native_names(part, layout, names)  # type: ignore[arg-type]
        assert all(names[theirs] == ours for ours, theirs in found.items())
        lost = {name for name in native if name not in found}
        assert all("up." in name for name in lost) if layout == "ldm" else not lost


# The scheduler_config.json of the published diffusers folders, without what only the library's version says.
_STABLE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_V = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
PUBLISHED = {
    ("sd1", "epsilon"): {"_class_name": "PNDMScheduler", **_STABLE},
    ("sd2", "epsilon"): {"_class_name": "PNDMScheduler", "prediction_type": "epsilon", **_STABLE},
    ("sd2", "v_prediction"): _STABLE | _V,
    ("sdxl", "epsilon"): _STABLE | _EULER,
    ("sdxl_refiner", "epsilon"): _STABLE | _EULER,
    ("upscaler", "v_prediction"): _STABLE | _V | {"beta_start": 0.0001, "beta_end": 0.02},
}


@pytest.mark.parametrize(("family", "prediction"), PUBLISHED)
def test_each_familys_scheduler_is_the_published_one(family: str, prediction: str) -> None:
    """So that a single file draws what the folder draws; no latent of theirs is clipped."""
    config = detect.scheduler_config(family, prediction)
    assert config == {"prediction_type": "epsilon"} | PUBLISHED[family, prediction]
    assert detect.LOW_RES_SCHEDULER == {
        "_class_name": "DDPMScheduler",
        "beta_end": 0.02,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "trained_betas": None,
        "variance_type": "fixed_small",
    }


def test_a_guidance_embedding_is_told(tmp_path: Path) -> None:
    """Of a distilled model (LCM) in one file: its width is that of the sinusoids, not of what they become."""
    told = {"model.diffusion_model.time_embed.cond_proj.weight": (320, 256)}
    result = found(Described(whole("sd1") | told))
    require_whole(result, PATH)
    assert result.configs["unet"] == replace(presets.SD15_UNET, time_cond_proj_dim=256)
