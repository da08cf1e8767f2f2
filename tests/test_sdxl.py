"""SDXL and its refiner against diffusers' own pipelines: random weights, same input, same picture."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import darkroom
from darkroom.arguments import Noise, SizeConditioning, grouped
from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.artifact import convert
from darkroom.formats.checkpoint import open_checkpoint
from darkroom.pipeline import Pipeline
from darkroom.request import Request

EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "attention_head_dim": (2, 4),
    "norm_num_groups": 8,
    "sample_size": 8,
    "use_linear_projection": True,
}


def text_encoder(folder: Path, width: int, act: str, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder), **({"pad_token": "!"} if projected else {}))
    config = CLIPTextConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=2,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=20,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), tokenizer


@pytest.fixture(scope="module")
def reference(tiny_tokenizer_folder: Path) -> Any:
    """diffusers' StableDiffusionXLPipeline in small."""
    return make(tiny_tokenizer_folder, refiner=False)


@pytest.fixture(scope="module")
def refiner_reference(tiny_tokenizer_folder: Path) -> Any:
    return make(tiny_tokenizer_folder, refiner=True)


def make(folder: Path, refiner: bool) -> Any:
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5 + refiner)
        first, tokenizer = text_encoder(folder, 16, "quick_gelu", False)
        second, tokenizer_2 = text_encoder(folder, 24, "gelu", True)
        unet = UNet2DConditionModel(
            **ADDED,
            block_out_channels=(16, 32),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=24 if refiner else 40,
            projection_class_embeddings_input_dim=20 + 8 * (5 if refiner else 6),
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.13025,
        )
    common = {
        "vae": vae,
        "text_encoder_2": second,
        "tokenizer_2": tokenizer_2,
        "unet": unet,
        "scheduler": EulerDiscreteScheduler.from_config(EULER),
        "add_watermarker": False,
    }
    if refiner:
        pipe = StableDiffusionXLImg2ImgPipeline(
            **common,
            text_encoder=None,
            tokenizer=None,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
    else:
        pipe = StableDiffusionXLPipeline(**common, text_encoder=first, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl") / "tiny-xl"
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def refiner_folder(refiner_reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl") / "tiny-refiner"
    refiner_reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return darkroom.load(folder)


@pytest.fixture(scope="module")
def refiner(refiner_folder: Path) -> Pipeline:
    return darkroom.load(refiner_folder)


V = {"prediction_type": "v_prediction"}
COSXL = {"sigma_max": 120.0, "sigma_min": 0.002, "sigma_data": 1.0, "sigma_schedule": "exponential"} | V
CASES = [
    ("edm_euler", "EDMEulerScheduler", COSXL, {}, {}),
    ("edm_euler", "EDMEulerScheduler", {}, {"guidance_rescale": 0.5}, {}),
    ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, {}, {}),
    ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", COSXL | {"solver_order": 3, "rho": 5.0}, {}, {}),
    ("euler_discrete", "EulerDiscreteScheduler", {}, {}, {}),
    (
        "euler_discrete",
        "EulerDiscreteScheduler",
        V,
        {
            "original_size": (50, 40),
            "crop": (3, 7),
            "target_size": (64, 72),
            "negative_original_size": (30, 20),
            "negative_crop": (1, 2),
            "negative_target_size": (9, 8),
        },
        {
            "original_size": (40, 50),
            "crops_coords_top_left": (7, 3),
            "target_size": (72, 64),
            "negative_original_size": (20, 30),
            "negative_crops_coords_top_left": (2, 1),
            "negative_target_size": (8, 9),
        },
    ),
    ("dpmsolver_multistep", "DPMSolverMultistepScheduler", {}, {"negative_prompt": "blue car"}, {}),
    ("ddim", "DDIMScheduler", {}, {"width": 72, "height": 40, "guidance_rescale": 0.5}, {}),
    ("euler_discrete", "EulerDiscreteScheduler", {}, {"guidance_scale": 1.0, "prompt": ""}, {}),
    ("unipc_multistep", "UniPCMultistepScheduler", {}, {"clip_skip": 3, "negative_prompt": " "}, {"clip_skip": 1}),
]


@pytest.mark.parametrize(("module", "name", "flags", "wishes", "theirs"), CASES, ids=range(len(CASES)))
def test_the_picture_is_diffusers_picture(
    pipe: Pipeline,
    reference: Any,
    module: str,
    name: str,
    flags: dict[str, Any],
    wishes: dict[str, Any],
    theirs: dict[str, Any],
) -> None:
    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{module}"), name)
    scheduler = kind.from_config(EULER | {"_class_name": name} | flags)
    ours = with_scheduler(pipe, dict(scheduler.config) | {"_class_name": name})
    wishes = {"prompt": "a large red fox", "guidance_scale": 6.0} | wishes
    got = ours.generate(**grouped(wishes), steps=5, seed=3, output="pt").images
    given = {key: value for key, value in wishes.items() if key not in darkroom_only} | theirs
    reference.scheduler = scheduler
    if wishes.get("clip_skip"):  # diffusers skips no layer of the negative prompt
        text, _, pooled, _ = reference.encode_prompt(wishes["prompt"], clip_skip=1)
        none, _, none_pooled, _ = reference.encode_prompt(wishes["negative_prompt"], clip_skip=1)
        given = {"prompt_embeds": text, "negative_prompt_embeds": none, "guidance_scale": 6.0}
        given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": none_pooled}
    generator = torch.Generator("cpu").manual_seed(3)
    expected = reference(**given, num_inference_steps=5, generator=generator, output_type="pt").images
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


darkroom_only = ("original_size", "crop", "target_size", "clip_skip", "negative_original_size", "negative_crop",
                 "negative_target_size")  # fmt: skip


def with_scheduler(pipe: Pipeline, config: dict[str, Any]) -> Pipeline:
    return Pipeline(
        unet=pipe.unet,
        autoencoder=pipe.autoencoder,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        text_encoder_2=pipe.text_encoder_2,
        tokenizer_2=pipe.tokenizer_2,
        zero_negative=pipe.zero_negative,
        scheduler_config=config,
    )


def test_both_encoders_read_a_prompt(pipe: Pipeline, reference: Any) -> None:
    text, zeros, pooled, zeros_pooled = reference.encode_prompt("a red fox")
    torch.testing.assert_close(pipe.encode_prompt("a red fox"), text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pipe.prompts.pooled("a red fox")[None], pooled, rtol=1e-4, atol=1e-5)
    assert not zeros.any()
    assert not zeros_pooled.any()
    long = pipe.encode_prompt("fox " * 100)
    assert long.shape == (1, 154, 40)
    first = reference.encode_prompt("fox " * 75)
    torch.testing.assert_close(long[:, :77], first[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pipe.prompts.pooled("fox " * 100)[None], first[2], rtol=1e-4, atol=1e-5)
    weighted = pipe.encode_prompt("a (red:1.5) fox")
    plain = pipe.encode_prompt("a red fox")
    for part in (slice(16), slice(16, None)):
        assert not torch.allclose(weighted[..., part], plain[..., part])
    torch.testing.assert_close(pipe.prompts.pooled("a (red:1.5) fox"), pipe.prompts.pooled("a red fox"))


def test_what_a_model_is_not_told_is_refused(pipe: Pipeline, tiny_pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match=r"original_size is \(64, 64\), and only SDXL is told such a thing"):
        tiny_pipe.generate("a fox", steps=1, sizes=SizeConditioning(original_size=(64, 64)))
    for wrong in (5, (1, 2, 3), "64x64", (0, 8), (8.5, 8)):
        with pytest.raises(RequestError, match="original_size"):
            pipe.generate("a fox", steps=1, sizes=SizeConditioning(original_size=wrong))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="aesthetic_score is 11"):
        pipe.generate("a fox", steps=1, sizes=SizeConditioning(aesthetic_score=11))
    request = Request(prompt="", crop=(1, 2), negative_aesthetic_score=3)
    assert request.to_dict() == Request.from_dict(request.to_dict()).to_dict()


def test_a_recipe_gives_the_picture_again(pipe: Pipeline) -> None:
    first = pipe.generate("a fox", steps=2, seed=1, sizes=SizeConditioning(crop=(8, 8)), output="pt")
    again = pipe.draw([Request.from_dict(first.requests[0].to_dict())], output="pt")
    assert torch.equal(first.images, again.images)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_saved_converted_and_loaded_it_draws_the_same(
    kind: str, pipe: Pipeline, refiner: Pipeline, reference: Any, refiner_reference: Any, tmp_path: Path
) -> None:
    ours, theirs = (pipe, reference) if kind == "base" else (refiner, refiner_reference)
    first = ours.generate("a fox", steps=2, seed=1, output="pt").images
    single = ours.save(tmp_path / "one.safetensors")
    folder = convert(single, tmp_path / "folder")
    again = convert(ours.save(tmp_path / "other"), tmp_path / "two.safetensors")
    for path in (single, folder, again):
        loaded = darkroom.load(path)
        assert torch.equal(loaded.generate("a fox", steps=2, seed=1, output="pt").images, first)  # type: ignore[arg-type]
        checkpoint = open_checkpoint(path)
        assert checkpoint.family == ("sdxl" if kind == "base" else "sdxl_refiner")
        assert checkpoint.zero_negative == (kind == "base")
        assert loaded.autoencoder.config.scaling_factor == 0.13025
    reopened = type(theirs).from_pretrained(folder, add_watermarker=False)
    assert dict(reopened.config)["force_zeros_for_empty_prompt"] == (kind == "base")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        before, after = getattr(theirs, part), getattr(reopened, part)
        assert (before is None) == (after is None)
        if before is not None:
            state = after.state_dict()
            assert all(torch.equal(tensor, state[name]) for name, tensor in before.state_dict().items())


def test_the_single_file_is_what_diffusers_converts(
    pipe: Pipeline, refiner: Pipeline, reference: Any, refiner_reference: Any, tmp_path: Path
) -> None:
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_open_clip_checkpoint,
    )
    from safetensors.torch import load_file

    base = load_file(pipe.save(tmp_path / "base.safetensors"))
    refined = load_file(refiner.save(tmp_path / "refiner.safetensors"))
    assert "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_proj.bias" in base
    assert base["conditioner.embedders.1.model.text_projection"].shape == (24, 20)
    same(convert_ldm_unet_checkpoint(base, reference.unet.config), reference.unet)
    same(convert_ldm_unet_checkpoint(refined, refiner_reference.unet.config), refiner_reference.unet)
    same(convert_ldm_clip_checkpoint(base), reference.text_encoder)
    for state, model, number in ((base, reference, 1), (refined, refiner_reference, 0)):
        # diffusers cuts the fused queries, keys and values by the width of the projection: here it is another.
        prefix = f"conditioner.embedders.{number}.model."
        state = {name: tensor for name, tensor in state.items() if name != prefix + "text_projection"}
        model = model.text_encoder_2
        converted = convert_open_clip_checkpoint(model, state, prefix=prefix)
        own = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
        converted = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
        assert converted.keys() == own.keys() - {"text_projection.weight"}
        assert all(torch.equal(tensor, own[name]) for name, tensor in converted.items())


def same(converted: dict[str, torch.Tensor], network: torch.nn.Module) -> None:
    own = network.state_dict()
    converted = {name: t for name, t in converted.items() if name in own or name.removeprefix("text_model.") in own}
    assert len(converted) == len(own)
    for name, tensor in converted.items():
        assert torch.equal(tensor, own[name] if name in own else own[name.removeprefix("text_model.")]), name


def test_a_published_single_file_is_told_by_its_content(pipe: Pipeline, tmp_path: Path) -> None:
    """Without our metadata. CLIP's vocabulary is needed then, and head counts are those of 64 channels."""
    from safetensors.torch import load_file, save_file

    state = load_file(pipe.save(tmp_path / "one.safetensors"))
    save_file(state, tmp_path / "bare.safetensors")
    checkpoint = open_checkpoint(tmp_path / "bare.safetensors")
    assert (checkpoint.family, checkpoint.task, checkpoint.zero_negative) == ("sdxl", "text-to-image", True)
    told, own = checkpoint.unet_config, pipe.unet.config
    assert replace(told, heads=own.heads, sample_size=8, norm_num_groups=8, transformer_layers=(1, 2)) == own
    assert checkpoint.text_encoder_2_config is not None
    assert checkpoint.text_encoder_2_config.projection
    assert checkpoint.text_encoder_2_config.projection_dim == 20
    assert checkpoint.autoencoder_config.scaling_factor == 0.13025
    assert checkpoint.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert checkpoint.scheduler_config["timestep_spacing"] == "leading"
    save_file({n: t for n, t in state.items() if ".embedders.0." not in n}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="it has no text encoder"):
        open_checkpoint(tmp_path / "half.safetensors")


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_another_picture_becomes_diffusers_picture(
    kind: str, pipe: Pipeline, refiner: Pipeline, reference: Any, refiner_reference: Any
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (64, 48, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(values.numpy())
    theirs = refiner_reference
    told: dict[str, Any] = {}
    if kind == "base":
        theirs = StableDiffusionXLImg2ImgPipeline(**reference.components, add_watermarker=False)
        theirs.set_progress_bar_config(disable=True)
    else:
        told = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.0}
    ours = pipe if kind == "base" else refiner
    theirs.scheduler = type(refiner_reference.scheduler).from_config(EULER)
    wishes = {"prompt": "a red fox", "negative_prompt": "blue", "strength": 0.6, "guidance_scale": 5.0} | told
    got = ours.generate(**grouped(wishes), image=picture, steps=6, seed=2, output="pt").images
    seed = torch.Generator("cpu").manual_seed(2)
    expected = theirs(**wishes, image=picture, num_inference_steps=6, generator=seed, output_type="pt").images
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    if kind == "refiner":
        plain = grouped(wishes | {"aesthetic_score": 6.0})
        plain = ours.generate(**plain, image=picture, steps=6, seed=2, output="pt").images
        assert not torch.allclose(got, plain, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_the_refiner_goes_on_where_the_base_stops(
    name: str, pipe: Pipeline, refiner: Pipeline, reference: Any, refiner_reference: Any
) -> None:
    import diffusers

    scheduler = getattr(diffusers, name).from_config(EULER | {"_class_name": name, "clip_sample": False})
    config = dict(scheduler.config) | {"_class_name": name}
    reference.scheduler = scheduler
    refiner_reference.scheduler = type(scheduler).from_config(scheduler.config)
    generator = torch.Generator("cpu").manual_seed(4)
    common = {"num_inference_steps": 8, "guidance_scale": 5.0}
    half = reference("a fox", **common, denoising_end=0.6, generator=generator, output_type="latent").images
    expected = refiner_reference("a fox", **common, denoising_start=0.6, image=half, output_type="pt").images
    base, second = with_scheduler(pipe, config), with_scheduler(refiner, config)
    given = {"steps": 8, "guidance_scale": 5.0, "width": 64, "height": 64}
    stopped = base.generate("a fox", **given, seed=4, noise=Noise(stop=0.6), output="latent").images
    got = second.generate("a fox", **given, seed=4, noise=Noise(start=0.6), latents=stopped, output="pt").images
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    with pytest.raises(RequestError, match=r"start is 0\.6, but there are no latents"):
        second.generate("a fox", noise=Noise(start=0.6))
    with pytest.raises(RequestError, match=r"no step of 8 lies between start 0\.6 and stop 0\.5"):
        second.generate("a fox", **given, noise=Noise(start=0.6, stop=0.5), latents=stopped)


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_published_shapes_are_recognised(kind: str) -> None:
    from darkroom.formats import detect
    from darkroom.formats.layouts import prefix, table
    from darkroom.formats.rules import native_shapes
    from darkroom.formats.weights import in_file_shape
    from darkroom.models.presets import SDXL_REFINER_UNET, SDXL_TEXT_ENCODER_2, SDXL_UNET

    unet = SDXL_UNET if kind == "base" else SDXL_REFINER_UNET
    shapes = {}
    for part, layout, config in (("unet", "ldm", unet), ("text_encoder_2", "sdxl_openclip", SDXL_TEXT_ENCODER_2)):
        native = native_shapes(config)
        places = table(part, layout, native, config)  # type: ignore[arg-type]
        start = prefix(part, layout)  # type: ignore[arg-type]
        shapes[part] = {p.name.removeprefix(start): in_file_shape(native[name], p) for name, p in places.items()}
    assert shapes["unet"]["label_emb.0.0.weight"] == (4 * unet.block_out_channels[0], 2816 if kind == "base" else 2560)
    assert detect.text_encoder_config(shapes["text_encoder_2"], True, True) == SDXL_TEXT_ENCODER_2
    told = detect.unet_config(
        detect.as_native("unet", "ldm", shapes["unet"]), False, (1280, 6 if kind == "base" else 5)
    )
    assert told is not None
    attending = zip(unet.transformer_layers, unet.attention_levels, strict=True)
    known = tuple(told.transformer_layers[i] if not attends else n for i, (n, attends) in enumerate(attending))
    assert told == replace(unet, transformer_layers=known)


def test_info_tells_what_it_is(folder: Path, refiner_folder: Path) -> None:
    from darkroom.formats.artifact import describe

    base, second = describe(folder), describe(refiner_folder)
    assert (base["family"], second["family"]) == ("sdxl", "sdxl_refiner")
    assert (base["fault"], second["fault"]) == (None, None)
    assert list(base["parts"]) == ["unet", "autoencoder", "text_encoder", "text_encoder_2"]
    assert list(second["parts"]) == ["unet", "autoencoder", "text_encoder"]
    assert base["picture_size"] == 64


# --- LoRA ------------------------------------------------------------------------------------------------------------

_ORIGINAL = (  # diffusers' U-Net names -> the original ones that kohya's SDXL files have; two resnets a level
    (r"down_blocks_(\d+)_attentions_(\d+)_", lambda x, i: f"input_blocks_{1 + 3 * x + i}_1_"),
    (r"mid_block_attentions_(0)_", lambda i: "middle_block_1_"),
    (r"up_blocks_(\d+)_attentions_(\d+)_", lambda x, i: f"output_blocks_{3 * x + i}_1_"),
)


def kohyas_name(part: str, name: str) -> str:
    joined = name.replace(".", "_")
    if part != "unet":
        joined = joined if joined.startswith("text_model_") else f"text_model_{joined}"
        return {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part] + joined
    for pattern, original in _ORIGINAL:
        joined = re.sub("^" + pattern, lambda match, to=original: to(*map(int, match.groups())), joined)  # type: ignore[misc]
    return f"lora_unet_{joined}"


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_lora_of_all_three_networks(pipe: Pipeline, reference: Any, tmp_path: Path, form: str) -> None:
    """kohya's file has the original names of SDXL's blocks; ours, attached and merged, draws diffusers' picture."""
    from diffusers import EulerDiscreteScheduler

    generator, tensors = torch.Generator().manual_seed(8), {}
    chosen = re.compile(
        r"attn[12]\.to_(q|k|v|out\.0)$|ff\.net\.(0\.proj|2)$|proj_(in|out)$|self_attn\.\w+_proj$|mlp\.fc[12]$"
    )
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(reference, part).named_modules():
            if not isinstance(layer, torch.nn.Linear) or not chosen.search(name):
                continue
            if part != "unet" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            down = torch.randn(3, layer.in_features, generator=generator) * 0.2
            up = torch.randn(layer.out_features, 3, generator=generator) * 0.2
            if form == "peft":
                tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
            else:
                key = kohyas_name(part, name)
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "xl.safetensors")
    lora = pipe.loras.get(tmp_path / "xl.safetensors")
    assert {part: len(updates) for part, updates in lora.adapter.parts.items()} == {
        "unet": 6 * 2 * 10 + 6 * 2, "text_encoder": 4 * 6, "text_encoder_2": 4 * 6,
    }  # fmt: skip
    ours = with_scheduler(pipe, EULER)
    given: dict[str, Any] = {"prompt": "a large red fox", "guidance_scale": 4.0}
    options: dict[str, Any] = {"steps": 3, "seed": 3, "output": "pt"}
    plain = ours.generate(**given, **options).images
    got = ours.generate(**given, **options, loras=[tmp_path / "xl.safetensors"]).images
    ours.merge_loras(tmp_path / "xl.safetensors")
    merged = ours.generate(**given, **options).images
    ours.unmerge_loras()
    reference.scheduler = EulerDiscreteScheduler.from_config(EULER)
    reference.load_lora_weights(str(tmp_path), weight_name="xl.safetensors")
    try:
        seed = torch.Generator("cpu").manual_seed(3)
        expected = reference(**given, num_inference_steps=3, generator=seed, output_type="pt").images
    finally:
        reference.unload_lora_weights()
    assert float((expected - plain).abs().max()) > 0.02
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-3)


MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)  # Playground 2.5's
PLAYGROUND = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"}
MARKED = {  # marks of a file -> what they say
    ("v_pred",): V,
    ("v_pred", "ztsnr"): V | {"rescale_betas_zero_snr": True},
    ("edm_vpred.sigma_max", "edm_vpred.sigma_min"): COSXL | {"_class_name": "EDMEulerScheduler", "sigma_max": 90.0},
    ("edm_mean", "edm_std"): PLAYGROUND,
}


def bare(path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file as other tools would have written it, without Darkroom's notes; and its tensors."""
    from safetensors.torch import load_file

    state = load_file(path)
    save_file(state, path.with_name("bare.safetensors"))
    return path.with_name("bare.safetensors"), state


@pytest.mark.parametrize("marks", MARKED, ids="+".join)
def test_marks_of_a_single_file_are_written_and_obeyed(pipe: Pipeline, tmp_path: Path, marks: tuple[str, ...]) -> None:
    from darkroom.formats.layouts import MARKS

    ours = with_scheduler(pipe, EULER | MARKED[marks])
    if "edm_mean" in marks:
        config = replace(pipe.autoencoder.config, latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
        autoencoder = type(pipe.autoencoder)(config)
        autoencoder.load_state_dict(pipe.autoencoder.state_dict())
        ours = Pipeline(replace(ours.model, autoencoder=autoencoder.eval()))
    path, state = bare(ours.save(tmp_path / "marked.safetensors"))
    assert {key for keys in MARKS.values() for key in keys if key in state} == set(marks)
    found = open_checkpoint(path)
    for key, value in MARKED[marks].items():
        told = found.scheduler_config.get(key)
        assert told == (pytest.approx(value) if isinstance(value, float) else value), key
    if "edm_mean" in marks:
        assert state["edm_mean"].shape == (1, 4, 1, 1)  # as published
        assert found.autoencoder_config.latents_mean == pytest.approx(MEAN)
        assert found.autoencoder_config.latents_std == pytest.approx(STD)
        assert found.autoencoder_config.scaling_factor == 0.5


def test_cosxl_is_told_a_quarter_of_the_logarithm(pipe: Pipeline, tmp_path: Path) -> None:
    """1.20 for sigma 120 down to -1.55 for sigma 0.002 (diffusers' EDMEulerScheduler), not timesteps 999 to 0."""
    path, state = bare(with_scheduler(pipe, EULER | V).save(tmp_path / "one.safetensors"))
    marks = {"edm_vpred.sigma_max": torch.tensor(120.0)}  # as ComfyUI writes it; the other may be missing
    save_file({name: tensor for name, tensor in state.items() if name != "v_pred"} | marks, path)
    loaded = with_scheduler(pipe, open_checkpoint(path).scheduler_config)
    told: list[float] = []
    hook = loaded.unet.register_forward_pre_hook(lambda _, inputs: told.append(float(inputs[1][0])))
    try:
        loaded.generate("a fox", steps=4, seed=1, guidance_scale=1.0, output="pt")
    finally:
        hook.remove()
    assert told == pytest.approx([1.19687, 0.28009, -0.63678, -1.55365], abs=1e-4)


@pytest.mark.parametrize(
    ("marks", "sentence"),
    [
        ({"edm_vpred.sigma_max": torch.ones(2)}, "edm_vpred.sigma_max must be 1 floating-point number"),
        ({"edm_mean": torch.ones(4)}, "edm_mean alone of edm_mean and edm_std"),
        ({"edm_mean": torch.ones(3), "edm_std": torch.ones(4)}, "edm_mean must be 4 floating-point numbers"),
        ({"x_pred": torch.ones(1)}, "1 unknown key .x_pred"),
        ({"edm_vpred.sigma_data": torch.ones(1)}, "1 unknown key .edm_vpred.sigma_data"),
    ],
)
def test_marks_that_cannot_be_followed_are_refused(
    pipe: Pipeline, tmp_path: Path, marks: dict[str, torch.Tensor], sentence: str
) -> None:
    path, state = bare(pipe.save(tmp_path / "one.safetensors"))
    save_file(state | marks, path)
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "said", "means"),
    [
        ("modelspec.prediction_type", "v", "v_prediction"),
        ("modelspec.predict_key", "v", "v_prediction"),
        ("modelspec.predict_key", "epsilon", "epsilon"),
        ("modelspec.prediction_type", "rectified flow", None),
    ],
)
def test_what_metadata_say_of_the_prediction(
    pipe: Pipeline, tmp_path: Path, name: str, said: str, means: str | None
) -> None:
    path, state = bare(pipe.save(tmp_path / "one.safetensors"))
    save_file(state, path, {name: said})
    if means is None:
        with pytest.raises(CheckpointError, match="predicts 'rectified flow'"):
            open_checkpoint(path)
    else:
        assert open_checkpoint(path).scheduler_config["prediction_type"] == means
