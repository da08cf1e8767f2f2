"""Recipes that other tools leave in their pictures: who wrote one, what it asks, and what of that isn't followed.

`recognise` takes a picture's texts by their keys, as `picture_texts` finds them, and asks the reader of each tool:
`comfyui` (with `graph` and `comfy_texts`), `invokeai`, `flat` (SwarmUI, Fooocus, Easy Diffusion, Draw Things, NovelAI)
and `formats.infotext` (A1111, Forge, stable-diffusion.cpp and all who write its form). An ordinary picture's comment is
no recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..infotext import holds_settings, parse_infotext
from .comfyui import read_comfyui
from .flat import (
    read_draw_things,
    read_draw_things_words,
    read_easy_diffusion,
    read_fooocus,
    read_novelai,
    read_swarmui,
)
from .found import Found, loads
from .graph import from_prompt, from_workflow
from .invokeai import read_dream, read_invokeai
from .webui import complete

__all__ = ["Found", "recognise"]


def recognise(texts: Mapping[str, str]) -> Found | None:
    """The recipe in a picture's texts; None if none of them is one. Never raises.

    Keys are a PNG's own; what EXIF, XMP and comments hold is under "UserComment", "Description", "XMP" and "Comment".
    """
    return next((found for found in _candidates(texts) if found is not None), None)


def _candidates(texts: Mapping[str, str]) -> Iterator[Found | None]:
    """What each reader makes of the texts, the surest first."""
    for key in ("invokeai_metadata", "sd-metadata", "invokeai"):
        yield _filled(read_invokeai(loads(texts.get(key))))
    yield _filled(read_dream(texts.get("Dream", "")))
    yield _filled(read_novelai(loads(texts.get("Comment")), texts.get("Source"), texts.get("Description")))
    bare = not texts.keys() & {"prompt", "workflow"}
    if "parameters" in texts:
        yield _text(texts["parameters"], texts.get("fooocus_scheme"), bare)
    yield _a_graph(texts)
    for key in ("UserComment", "XMP", "Comment", "Description", "stealth"):
        if key in texts:
            yield _text(texts[key], None, bare=False)
    yield _filled(read_easy_diffusion(texts))


def _filled(found: Found) -> Found | None:
    """None for a reader's answer to what is another tool's."""
    return found if found.recipe else None


def _a_graph(texts: Mapping[str, str]) -> Found | None:
    """ComfyUI's two chunks; Easy Diffusion's `prompt` is none of them."""
    prompt, workflow = loads(texts.get("prompt")), loads(texts.get("workflow"))
    return read_comfyui(prompt, workflow) if from_prompt(prompt) or from_workflow(workflow) else None


_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\"{])")  # how JSON begins, should its end be missing


def _text(text: str, scheme: str | None, bare: bool) -> Found | None:
    """The recipe in one text: JSON of a tool we know, or infotext. JSON is never a prompt.

    bare: the text's key says that it is a recipe, so that a prompt alone is one, too.
    """
    text = text.strip("\ufeff\0")
    if (data := loads(text)) is not None:
        return _json(data)
    if not holds_settings(text):
        told = bare and text.strip() and not _JSON.match(text)
        return Found("a1111", parse_infotext(text)) if told else None
    if draw_things := _filled(read_draw_things_words(text)):
        return draw_things
    recipe = parse_infotext(text)
    fooocus = scheme is not None or "Fooocus" in str(recipe.get("extra", {}).get("Version"))
    found = Found("fooocus" if fooocus else "a1111", recipe)
    if fooocus:
        _fooocus_loras(recipe)
    complete(found)
    return found


def _json(data: object) -> Found | None:
    """The recipe in an object of one of the tools that we know, also where another one wraps it."""
    if not isinstance(data, Mapping):
        return None
    for read in (read_swarmui, read_easy_diffusion, read_fooocus, read_draw_things, read_novelai, read_invokeai):
        if told := _filled(read(data)):
            return told
    if from_prompt(data):
        return read_comfyui(data)
    prompt, workflow = (loads(v) if isinstance(v := data.get(key), str) else v for key in ("prompt", "workflow"))
    if from_prompt(prompt) or from_workflow(workflow):
        return read_comfyui(prompt, workflow)
    # NovelAI's stealth text, and files that were converted, have their chunks in an object.
    texts = {key: value for key, value in data.items() if isinstance(key, str) and isinstance(value, str)}
    inner = texts.keys() & {"Comment", "parameters", "Description", "Dream", "sd-metadata", "invokeai_metadata"}
    return recognise(texts) if inner else None


def _fooocus_loras(recipe: dict[str, Any]) -> None:
    """Fooocus' infotext has its LoRAs' scales in a pair of their own, and no tags."""
    weights = recipe.get("extra", {}).get("Lora weights")
    hashes = dict(_pair(one) for one in str(recipe.get("extra", {}).get("Lora hashes", "")).split(","))
    loras = []
    for one in weights.split(",") if isinstance(weights, str) else []:
        name, scale = _pair(one)
        try:
            number = float(scale)
        except ValueError:
            continue
        loras.append({"name": name, "hash": hashes.get(name, "")[:12], "scale": number, "text_scale": number})
    if loras and "loras" not in recipe:
        recipe["loras"] = loras


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition(":")
    return name.strip(), value.strip()
