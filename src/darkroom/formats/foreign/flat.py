"""Recipes that are one flat object of settings: SwarmUI's, Fooocus', Easy Diffusion's, Draw Things' and NovelAI's.

For each tool a table says which of its keys are which of our fields, and which mean nothing for the picture. What is in
neither and isn't off goes to `ignored`. No reader raises on any JSON value; `source` is the tool, and the recipe is
empty where the object isn't this tool's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..infotext import number, settings_of, whole
from .found import MAX_ITEMS, Found, count, is_nothing, loads, name, numbers, part, sampler, size, take, text, used_lora
from .webui import as_comfyui

# SwarmUI -------------------------------------------------------------------------------------------------------------

_SWARM = {
    "prompt": ("prompt", text),
    "negativeprompt": ("negative_prompt", text),
    "steps": ("steps", whole),
    "cfgscale": ("guidance_scale", number),
    "seed": ("seed", whole),
    "width": ("width", count),
    "height": ("height", count),
    "model": ("model", name),
    "vae": ("vae", name),
    "initimagecreativity": ("strength", part),
    "maskblur": ("mask_blur", whole),
    "ip2pcfg2": ("image_guidance_scale", number),
    "rescalecfgmultiplier": ("guidance_rescale", part),
}
_SWARM_NEUTRAL = {
    *("images", "resolution", "aspectratio", "sidelength", "automaticvae", "swarm_version", "date", "generation_time"),
    *("sampler", "scheduler", "comfyuisampler", "comfyuischeduler", "loras", "loraweights", "loratencweights"),
    *("nopreviews", "donotsave", "imageformat", "wildcardseed", "personalnote", "used_wildcards", "original_prompt"),
    *("clipstopatlayer", "modelspecificenhancements", "variationseed", "initimage", "presets", "colordepth"),
    *("original_negativeprompt", "used_embeddings", "unused_parameters", "prep_time", "gen_time", "outpathformat"),
    *("lorasectionconfinement", "exactbackendid", "internalbackendtype", "nointernalspecialhandling", "webhooks"),
}


def read_swarmui(data: object) -> Found:
    """SwarmUI's `sui_image_params`, also as the whole object that holds them."""
    found = Found("swarmui")
    if not isinstance(data, Mapping):
        return found
    inner = data.get("sui_image_params")
    if isinstance(inner, Mapping):
        data = inner
    elif "swarm_version" not in data and "cfgscale" not in data:
        return found
    strength = data.get("variationseedstrength")
    asked = {key: value for key, value in data.items() if strength or not str(key).startswith("variationseed")}
    if is_nothing(data.get("initimage")) and "initimagecreativity" in asked:
        del asked["initimagecreativity"]
    take(asked, _SWARM, _SWARM_NEUTRAL, found)
    if strength:
        found.ignored["variationseed"] = data.get("variationseed")
    recipe = found.recipe
    named = data.get("sampler", data.get("comfyuisampler"))
    recipe |= sampler(named, data.get("scheduler", data.get("comfyuischeduler")))
    as_comfyui(found, named)  # which draws its pictures
    names, scales = _several(data.get("loras")), _several(data.get("loraweights"))
    texts = _several(data.get("loratencweights"))
    loras = [
        used_lora(path, _at(scales, i), _at(texts, i)) for i, path in enumerate(names) if isinstance(path, str) and path
    ]
    last = whole(data.get("clipstopatlayer"))
    if last is not None and -12 <= last <= -2:
        recipe["clip_skip"] = -last
    _finish(found, loras)
    return found


def _several(value: object) -> list[Any]:
    """A list, or a text of it: JSON, Python's form, or words between commas."""
    if isinstance(value, str):
        parsed = loads(value.replace("'", '"')) if value.startswith("[") else None
        value = parsed if isinstance(parsed, list) else [part.strip() for part in value[:10_000].split(",")]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    return value[:MAX_ITEMS] if isinstance(value, list) else []


def _at(values: list[Any], i: int) -> float | None:
    return number(values[i]) if i < len(values) else None


def _finish(found: Found, loras: list[dict[str, Any]]) -> None:
    """What all of them have at their end: LoRAs, and sides that are both there or not."""
    if loras:
        found.recipe["loras"] = loras
    if found.recipe.keys() & {"width", "height"} != {"width", "height"}:
        found.recipe.pop("width", None)
        found.recipe.pop("height", None)


# Fooocus -------------------------------------------------------------------------------------------------------------

_FOOOCUS = {
    "prompt": ("prompt", text),
    "negative_prompt": ("negative_prompt", text),
    "steps": ("steps", whole),
    "guidance_scale": ("guidance_scale", number),
    "seed": ("seed", whole),
    "base_model": ("model", name),
    "base_model_hash": ("model_hash", name),
    "clip_skip": ("clip_skip", whole),
    "vae": ("vae", name),
    # RuinedFooocus
    "Prompt": ("prompt", text),
    "Negative": ("negative_prompt", text),
    "cfg": ("guidance_scale", number),
    "width": ("width", count),
    "height": ("height", count),
    "base_model_name": ("model", name),
}
_FOOOCUS_NEUTRAL = {
    *("full_prompt", "full_negative_prompt", "version", "metadata_scheme", "created_by", "performance", "resolution"),
    *(
        "sampler",
        "scheduler",
        "sampler_name",
        "loras",
        "refiner_switch",
        "refiner_model_hash",
        "image_number",
        "software",
    ),
    *("denoise", "start_step", "refiner_swap_method", *(f"lora_combined_{i}" for i in range(1, 21))),
}


def read_fooocus(data: object) -> Found:
    """Fooocus' JSON scheme, and RuinedFooocus'. The texts of styles and expansions aren't followed."""
    found = Found("fooocus")
    marks = {"base_model", "base_model_name", "metadata_scheme", "full_prompt", "performance"}
    if not isinstance(data, Mapping) or not data.keys() & marks or not data.keys() & {"prompt", "Prompt"}:
        return found
    take(data, _FOOOCUS, _FOOOCUS_NEUTRAL, found)
    found.recipe |= size(data.get("resolution"))
    found.recipe |= sampler(data.get("sampler", data.get("sampler_name")), data.get("scheduler"))
    loras = []
    for entry in _several(data.get("loras")):
        if isinstance(entry, list | tuple) and len(entry) >= 2 and isinstance(entry[0], str):
            path, scale = entry[0], number(entry[1])
            if scale is None and isinstance(entry[1], str):  # RuinedFooocus: a hash, and "name.safetensors - 0.5"
                path, _, written = entry[1].rpartition(" - ")
                scale = number(written)
            digits = text(entry[2]) if len(entry) > 2 else None
            loras.append(used_lora(path, scale, None, (digits or "")[:12]))
    if not loras:
        for i in range(1, 21):
            path, _, written = str(data.get(f"lora_combined_{i}") or "").rpartition(" : ")
            path = path.removeprefix("True : ")
            if name(path) is not None and not path.startswith("False : "):
                loras.append(used_lora(path, number(written)))
    if found.ignored.get("adm_guidance") and numbers(found.ignored["adm_guidance"]) == [1.0, 1.0, 0.0]:
        del found.ignored["adm_guidance"]
    if found.ignored.get("styles") == "[]":
        del found.ignored["styles"]
    _comfy_grammar(found)
    _finish(found, loras)
    return found


def _comfy_grammar(found: Found) -> None:
    if re.search(r"[()\[\]\\]", f"{found.recipe.get('prompt')} {found.recipe.get('negative_prompt')}"):
        found.recipe["prompt_style"] = "comfy"


# Easy Diffusion ------------------------------------------------------------------------------------------------------

_EASY = {
    "prompt": ("prompt", text),
    "negative_prompt": ("negative_prompt", text),
    "seed": ("seed", whole),
    "num_inference_steps": ("steps", whole),
    "guidance_scale": ("guidance_scale", number),
    "width": ("width", count),
    "height": ("height", count),
    "prompt_strength": ("strength", part),
    "use_stable_diffusion_model": ("model", name),
    "use_vae_model": ("vae", name),
}
# What the same fields are called where they are written for people.
_EASY_LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative Prompt",
    "seed": "Seed",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance Scale",
    "width": "Width",
    "height": "Height",
    "prompt_strength": "Prompt Strength",
    "use_stable_diffusion_model": "Stable Diffusion model",
    "use_vae_model": "VAE model",
    "sampler_name": "Sampler",
    "scheduler_name": "Scheduler",
    "use_lora_model": "LoRA model",
    "lora_alpha": "LoRA Strength",
    "clip_skip": "Clip Skip",
    "use_hypernetwork_model": "Hypernetwork model",
    "hypernetwork_strength": "Hypernetwork Strength",
    "use_controlnet_model": "ControlNet model",
    "control_filter_to_apply": "ControlNet Filter",
    "control_alpha": "ControlNet Strength",
    "use_embeddings_model": "Embedding models",
    "tiling": "Seamless Tiling",
    "use_face_correction": "Use Face Correction",
    "use_upscale": "Use Upscaling",
    "upscale_amount": "Upscale By",
    "latent_upscaler_steps": "Latent Upscaler Steps",
}
_EASY_WITH = {  # what says how much of another field's, or is looked up by the prompt
    "hypernetwork_strength": "use_hypernetwork_model",
    "control_filter_to_apply": "use_controlnet_model",
    "control_alpha": "use_controlnet_model",
    "upscale_amount": "use_upscale",
    "latent_upscaler_steps": "use_upscale",
}
_EASY_NEUTRAL = {
    *("sampler_name", "scheduler_name", "use_lora_model", "lora_alpha", "clip_skip", "use_embeddings_model", "sampler"),
    *("created_by", "num_outputs", "output_format", "output_quality", "output_lossless", "metadata_output_format"),
    *(
        "use_text_encoder_model",
        "enable_vae_tiling",
        "vram_usage_level",
        "block_nsfw",
        "session_id",
        "stream_progress_updates",
    ),
    *(
        "stream_image_progress",
        "show_only_filtered_image",
        "active_tags",
        "inactive_tags",
        "original_prompt",
        "save_to_disk_path",
    ),
    *("used_random_seed", "request_id", "use_cpu", "use_full_precision", "stream_image_progress_interval"),
}
_EASY_MARKS = ("num_inference_steps", "use_stable_diffusion_model", "sampler_name", "guidance_scale")


def read_easy_diffusion(data: object) -> Found:
    """Easy Diffusion's fields: of its JSON, or the chunks of a PNG, which has one for each."""
    found = Found("easydiffusion")
    if not isinstance(data, Mapping):
        return found
    labels = {label: key for key, label in _EASY_LABELS.items()}
    named = {labels.get(key, key): value for key, value in data.items() if isinstance(key, str)}
    told = {key: value for key, value in named.items() if key in _EASY_LABELS or key in _EASY_NEUTRAL}
    if sum(key in told for key in _EASY_MARKS) < 2 or "prompt" not in told:
        return found
    asked = {k: v for k, v in told.items() if k not in _EASY_WITH or not is_nothing(told.get(_EASY_WITH[k]))}
    take(asked, _EASY, _EASY_NEUTRAL, found)
    found.recipe |= sampler(told.get("sampler_name"), told.get("scheduler_name"))
    if told.get("clip_skip") in (True, "True", "true"):
        found.recipe["clip_skip"] = 2
    names, scales = _several(told.get("use_lora_model")), _several(told.get("lora_alpha"))
    _finish(found, [used_lora(path, _at(scales, i)) for i, path in enumerate(names) if name(path) is not None])
    return found


# Draw Things ---------------------------------------------------------------------------------------------------------

_DRAW = {
    "c": ("prompt", text),
    "uc": ("negative_prompt", text),
    "steps": ("steps", whole),
    "scale": ("guidance_scale", number),
    "seed": ("seed", whole),
    "model": ("model", name),
    "clip_skip": ("clip_skip", whole),
}
_DRAW_NEUTRAL = {
    "sampler",
    "size",
    "strength",
    "lora",
    "v2",
    "profile",
    "seed_mode",
    "mask_blur",
    "mask_blur_outset",
    "shift",
}
_DRAW_OFF = {  # of the whole configuration: what changes a picture where it is on
    *("hiresFix", "refinerModel", "upscaler", "faceRestoration", "sharpness", "zeroNegativePrompt", "tiledDiffusion"),
    *("separateClipL", "separateOpenClipG", "teaCache", "cfgZeroStar", "causalInferenceEnabled"),
}


def read_draw_things(data: object) -> Found:
    """Draw Things' JSON, in the XMP's `exif:UserComment`."""
    found = Found("drawthings")
    if not isinstance(data, Mapping) or not {"c", "sampler", "seed"} <= data.keys():
        return found
    take(data, _DRAW, _DRAW_NEUTRAL, found)
    recipe = found.recipe
    recipe |= size(data.get("size")) | sampler(data.get("sampler"))
    strength = part(data.get("strength"))
    if strength is not None and strength < 1:
        recipe["strength"] = strength
    if data.get("seed_mode") == "NVIDIA GPU Compatible":
        recipe["noise"] = "nv"
    elif data.get("seed_mode") not in (None, "Torch CPU Compatible"):
        found.ignored["seed_mode"] = data["seed_mode"]
    config = data.get("v2")
    if isinstance(config, Mapping):
        found.ignored |= {key: config[key] for key in sorted(_DRAW_OFF) if not is_nothing(config.get(key))}
        if (skip := whole(config.get("clipSkip"))) is not None and skip > 1:
            recipe.setdefault("clip_skip", skip)
    loras = [
        used_lora(entry["model"], number(entry.get("weight")))
        for entry in _several(data.get("lora"))
        if isinstance(entry, Mapping) and isinstance(entry.get("model"), str)
    ]
    _finish(found, loras)
    return found


_DRAW_WORDS = {  # the same in words, for people
    "Steps": "steps",
    "Sampler": "sampler",
    "Guidance Scale": "scale",
    "Seed": "seed",
    "Size": "size",
    "Model": "model",
    "Strength": "strength",
    "Seed Mode": "seed_mode",
    "Shift": "shift",
    "CLIP Skip": "clip_skip",
    "Mask Blur": "mask_blur",
}
_DRAW_LORAS = re.compile(r"LoRA Model: ([^,\n]*), LoRA Weight: ([^,\n]*)")


def read_draw_things_words(text: str) -> Found:
    """Draw Things' description of a picture: the prompt, "-" and the negative one, and a line of pairs."""
    head, pairs = settings_of(text)
    if not {"Guidance Scale", "Seed Mode"} <= pairs.keys():
        return Found("drawthings")
    prompt, _, negative = head.partition("\n-")
    loras = [
        {"model": model.strip(), "weight": number(weight.strip())}
        for model, weight in _DRAW_LORAS.findall(text)[:MAX_ITEMS]
        if model.strip()
    ]
    told = {_DRAW_WORDS.get(key, key): value for key, value in pairs.items() if not key.startswith("LoRA ")}
    return read_draw_things({"c": prompt, "uc": negative, "lora": loras} | told)


# NovelAI -------------------------------------------------------------------------------------------------------------

_NOVEL = {
    "prompt": ("prompt", text),
    "uc": ("negative_prompt", text),
    "steps": ("steps", whole),
    "scale": ("guidance_scale", number),
    "cfg_rescale": ("guidance_rescale", part),
    "seed": ("seed", whole),
    "width": ("width", count),
    "height": ("height", count),
}
_NOVEL_NEUTRAL = {
    *("sampler", "noise_schedule", "request_type", "signed_hash", "version", "hide_debug_overlay", "strength", "noise"),
    *("n_samples", "legacy", "legacy_v3_extend", "v4_prompt", "v4_negative_prompt", "uncond_scale", "params_version"),
    *(
        "add_original_image",
        "prefer_brownian",
        "extra_noise_seed",
        "stream",
        "legacy_uc",
        "image_format",
        "lora_unet_weights",
    ),
    *(
        "ucPreset",
        "qualityToggle",
        "autoSmea",
        "lora_clip_weights",
        "extra_passthrough_testing",
        "cfg_sched_eligibility",
    ),
    *(
        "explike_fine_detail",
        "minimize_sigma_inf",
        "uncond_per_vibe",
        "wonky_vibe_correlation",
        "inpaintImg2ImgStrength",
    ),
    *("dynamic_thresholding_percentile", "dynamic_thresholding_mimic_scale", "deliberate_euler_ancestral_bug"),
    *("controlnet_strength",),
}


def read_novelai(comment: object, model: object = None, description: object = None) -> Found:
    """NovelAI's `Comment`, with `Source` (the model) and `Description` (the prompt) beside it."""
    found = Found("novelai")
    if not isinstance(comment, Mapping) or not {"steps", "sampler", "seed", "scale"} <= comment.keys():
        return found
    take(comment, _NOVEL, _NOVEL_NEUTRAL, found)
    recipe = found.recipe
    if name(model) is not None:
        recipe["model"] = model
    if "prompt" not in recipe and isinstance(description, str):
        recipe["prompt"] = description
    recipe |= sampler(comment.get("sampler"), comment.get("noise_schedule"))
    if any(word in str(comment.get("request_type")) for word in ("Img2Img", "Infill")):
        if (strength := part(comment.get("strength"))) is not None:
            recipe["strength"] = strength
        if not is_nothing(comment.get("noise")):
            found.ignored["noise"] = comment["noise"]
    if not is_nothing(comment.get("uncond_scale")) and number(comment.get("uncond_scale")) != 1:
        found.ignored["uncond_scale"] = comment["uncond_scale"]
    for key in ("v4_prompt", "v4_negative_prompt"):
        caption = comment[key].get("caption") if isinstance(comment.get(key), Mapping) else None
        characters = caption.get("char_captions") if isinstance(caption, Mapping) else None
        if isinstance(characters, list) and any(isinstance(c, Mapping) and c.get("char_caption") for c in characters):
            found.ignored[f"{key} characters"] = [c.get("char_caption") for c in characters if isinstance(c, Mapping)][
                :MAX_ITEMS
            ]
    if (count(comment.get("n_samples")) or 1) > 1:
        found.ignored["n_samples"] = comment["n_samples"]
    said = f"{recipe.get('prompt')} {recipe.get('negative_prompt')}"
    if re.search(r"[{}\[\]]|\d::", said):
        recipe["prompt_style"] = "plain"
        found.ignored["weights of the prompt"] = "{} and [] are 1.05 in NovelAI's grammar"
    _finish(found, [])
    return found
