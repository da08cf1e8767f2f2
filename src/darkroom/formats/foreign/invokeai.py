"""The recipes of InvokeAI's generations, read as inert data.

| version | chunk                                | form                                                  |
|---------|--------------------------------------|-------------------------------------------------------|
| 1       | `Dream`                              | a command, `"a fox" -s 50 -S 123 -C 7.5 -A k_lms`     |
| 2       | `sd-metadata`                        | JSON, the picture's part under `image`                |
| 3 alpha | `invokeai`                           | JSON, `positive_conditioning`                         |
| 3 to 6  | `invokeai_metadata`                  | JSON, flat                                            |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..infotext import number, whole
from .found import MAX_ITEMS, Found, count, is_nothing, name, part, sampler, take, text, used_lora

# InvokeAI's names that are not ComfyUI's. A suffix "_k" asks for Karras' schedule.
_SAMPLERS = {"pndm": "plms"}

_ROWS = {
    "positive_prompt": ("prompt", text),
    "positive_conditioning": ("prompt", text),
    "negative_prompt": ("negative_prompt", text),
    "negative_conditioning": ("negative_prompt", text),
    "steps": ("steps", whole),
    "cfg_scale": ("guidance_scale", number),
    "cfg_rescale_multiplier": ("guidance_rescale", number),
    "seed": ("seed", whole),
    "width": ("width", count),
    "height": ("height", count),
    "clip_skip": ("clip_skip", whole),
}
_NEUTRAL = {
    *(
        "generation_mode",
        "app_version",
        "model",
        "loras",
        "scheduler",
        "strength",
        "init_image",
        "type",
        "_canvas_objects",
    ),
    *(
        "positive_style_prompt",
        "negative_style_prompt",
        "rand_device",
        "extra",
        "latents",
        "unet",
        "clip",
        "canvas_v2_metadata",
    ),
    *(
        "ref_images",
        "metadata",
        "id",
        "is_intermediate",
        "noise",
        "model_weights",
        "model_hash",
        "app_id",
        "qwen3_encoder",
    ),
    *("board", "workflow", "graph", "session_id", "raw", "image_name"),
}


def read_invokeai(metadata: object) -> Found:
    """The recipe in `invokeai_metadata`, `invokeai` (version 3 and later) or `sd-metadata` (version 2)."""
    found = Found("invokeai")
    if not isinstance(metadata, Mapping):
        return found
    image = metadata.get("image")
    if isinstance(image, Mapping):
        _version_2(metadata, image, found)
    else:
        _version_3(metadata, found)
    return found if found.recipe.keys() & {"prompt", "seed", "steps"} else Found("invokeai")


def _version_3(data: Mapping[str, Any], found: Found) -> None:
    take(data, _ROWS, _NEUTRAL, found)
    recipe = found.recipe
    recipe |= _sampler(data.get("scheduler"))
    if loras := _loras(data.get("loras")):
        recipe["loras"] = loras
    from_picture = data.get("init_image") or "img2img" in str(data.get("generation_mode"))
    if from_picture and (strength := part(data.get("strength"))) is not None:
        recipe["strength"] = strength
    model = data.get("model")
    if isinstance(model, Mapping):
        told = {
            "model": name(model.get("name")) or name(model.get("model_name")),
            "model_hash": name(model.get("hash")),
        }
        recipe |= {key: value for key, value in told.items() if value is not None}
    elif name(model) is not None:
        recipe["model"] = model
    for key, ours in (("positive_style_prompt", "prompt"), ("negative_style_prompt", "negative_prompt")):
        if name(data.get(key)) is not None and data[key] != recipe.get(ours):
            found.ignored[key] = data[key]
    if data.get("rand_device") == "cuda":
        found.recipe["noise"] = "nv"
    elif data.get("rand_device") not in (None, "cpu"):
        found.ignored["rand_device"] = data["rand_device"]
    _compel(found)


def _loras(loras: object) -> list[dict[str, Any]]:
    """[{"model": {"name": ...}, "weight": 0.8}], before version 4 [{"lora": {"model_name": ...}, "weight": 0.8}]."""
    found = []
    for entry in loras[:MAX_ITEMS] if isinstance(loras, list) else []:
        model = entry.get("model") or entry.get("lora") if isinstance(entry, Mapping) else None
        named = name(model.get("name") or model.get("model_name")) if isinstance(model, Mapping) else None
        if named is not None:
            found.append(used_lora(named, number(entry.get("weight"))))
    return found


def _version_2(data: Mapping[str, Any], image: Mapping[str, Any], found: Found) -> None:
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        parts = [part.get("prompt") for part in prompt[:100] if isinstance(part, Mapping)]
        prompt = "\n".join(part for part in parts if isinstance(part, str))
    if isinstance(prompt, str):
        found.recipe |= _brackets(prompt)
    rows = {key: _ROWS[key] for key in ("steps", "cfg_scale", "seed", "width", "height")}
    neutral = ("prompt", "sampler", "type", "postprocessing", "orig_hash", "init_image_path", "strength", "threshold")
    take(image, rows, (*neutral, "extra", "mask_image_path", "grid", "rand_mask", "step_number"), found)
    found.recipe |= {key: data[ours] for key, ours in _MODEL_2.items() if name(data.get(ours)) is not None}
    found.recipe |= _sampler(image.get("sampler"))
    if image.get("type") == "img2img" and (strength := part(image.get("strength"))) is not None:
        found.recipe["strength"] = strength
    for key in ("postprocessing", "threshold"):
        if not is_nothing(image.get(key)):
            found.ignored[key] = image[key]
    _compel(found)


_MODEL_2 = {"model": "model_weights", "model_hash": "model_hash"}
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def _brackets(prompt: str) -> dict[str, str]:
    """Before version 3, InvokeAI wrote the negative prompt [in square brackets] inside the prompt."""
    negatives = [match.strip() for match in _BRACKETS.findall(prompt)]
    return {"prompt": _BRACKETS.sub("", prompt).strip(), "negative_prompt": ", ".join(negatives)}


_COMPEL = re.compile(r"\)[+\-\d]|\w[+\-]{2}|\)\.(?:and|blend|swap)\(")


def _compel(found: Found) -> None:
    """InvokeAI's grammar of prompts is compel's: (word)1.2, word++, ("a", "b").blend(1, 1)."""
    for field in ("prompt", "negative_prompt"):
        if match := _COMPEL.search(found.recipe.get(field) or ""):
            found.ignored[f"weights of the {field.replace('_', ' ')}"] = f"{match[0]} in compel's grammar"


def _sampler(value: object) -> dict[str, Any]:
    if not isinstance(value, str) or not value:
        return {}
    value = value[:100].removeprefix("k_")
    base = value.removesuffix("_k")
    return sampler(_SAMPLERS.get(base, base)) | ({"schedule": "karras"} if base != value else {})


_DREAM_FLAG = re.compile(r"\s-([a-zA-Z])\s?([^\s\"-][^\s\"]{0,100}|-?\d{1,20})")
_DREAM_NAMES = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "guidance_scale"}


def read_dream(command: str) -> Found:
    """The recipe in InvokeAI's oldest chunk, `Dream`: `"a fox" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms`."""
    found = Found("invokeai")
    command = command.strip()
    if not command.startswith('"') or (end := command.rfind('"')) < 1:
        return found
    recipe = found.recipe
    recipe |= _brackets(command[1:end].replace('\\"', '"'))
    for match in _DREAM_FLAG.finditer(command, end + 1):
        flag, value = match.groups()
        if flag == "A":
            recipe |= _sampler(value)
        elif flag in _DREAM_NAMES:
            field = _DREAM_NAMES[flag]
            told = number(value) if field == "guidance_scale" else whole(value)
            if told is not None:
                recipe[field] = told
        elif flag == "f" and (strength := part(value)) is not None:
            recipe["strength"] = strength
        elif flag in "GUV":  # faces made good, enlarged, variations
            found.ignored[f"-{flag}"] = value
    return found
