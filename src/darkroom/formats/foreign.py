"""Recipes that ComfyUI and InvokeAI leave in their pictures, read as inert data.

ComfyUI stores the graph of nodes that made the picture. We follow its links from the sampler backwards to find the
texts and the numbers; no node is executed, every walk visits a node once and is bounded, and whatever has an
unexpected shape is passed over. Each function returns a dict with our names (`prompt`, `seed`, ...), empty if nothing
was found, and never raises on any JSON value.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from .infotext import number, whole
from .sampler_names import read_sampler

Node = Mapping[str, Any]
Graph = Mapping[str, Node]

_MAX_NODES = 10_000  # more than any real graph holds
_MAX_VISITS = 500
_MAX_INPUTS = 50

# ComfyUI -------------------------------------------------------------------------------------------------------------

# How the values of a node's widgets follow each other in a `workflow` chunk; the `prompt` chunk has their names.
_WIDGETS = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (None, "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler"),
    "SamplerCustom": (None, "noise_seed", None, "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps",),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": (None, "ckpt_name"),
    "UNETLoader": ("unet_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "EmptyLatentImage": ("width", "height"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
}


def read_comfyui(prompt: object, workflow: object = None) -> dict[str, Any]:
    """The recipe in ComfyUI's `prompt` graph, or else in its `workflow`, the editor's form of the same graph."""
    graph = _nodes(prompt) or _nodes(_from_workflow(workflow))
    sampler = _first_sampler(graph)
    if sampler is None:
        return {}
    guider = _follow(graph, sampler, "guider") or sampler
    sigmas = _follow(graph, sampler, "sigmas") or sampler
    noise = _follow(graph, sampler, "noise") or sampler
    chosen = _follow(graph, sampler, "sampler") or sampler
    recipe: dict[str, Any] = {
        "prompt": _text(graph, guider, "positive") or _text(graph, guider, "conditioning"),
        "negative_prompt": _text(graph, guider, "negative") or "",
        "steps": whole(_value(graph, sigmas, "steps")),
        "guidance_scale": number(_value(graph, guider, "cfg")),
        "sampler": _value(graph, chosen, "sampler_name"),
        "schedule": _value(graph, sigmas, "scheduler"),
        "seed": whole(_value(graph, noise, "seed", "noise_seed")),
    }
    if recipe["schedule"] is None and sigmas.get("class_type") == "KarrasScheduler":
        recipe["schedule"] = "karras"
    denoise = number(_value(graph, sigmas, "denoise"))
    if denoise is not None and 0 < denoise < 1:  # ComfyUI takes all its steps below that
        recipe |= {"strength": denoise, "exact_steps": True}
    recipe["loras"] = _comfyui_loras(graph, guider) or None
    for node in _upstream(graph, guider, "model"):
        name = _value(graph, node, "ckpt_name", "unet_name", "model_name")
        if isinstance(name, str):
            recipe["model"] = name
            break
    for node in _upstream(graph, sampler, "latent_image"):
        width, height = whole(_value(graph, node, "width")), whole(_value(graph, node, "height"))
        if width and height:
            recipe["width"], recipe["height"] = width, height
            break
    for name in ("sampler", "schedule", "prompt"):
        if not isinstance(recipe[name], str):
            recipe[name] = None
    return {key: value for key, value in recipe.items() if value is not None}


def _comfyui_loras(graph: Graph, guider: Node) -> list[dict[str, Any]]:
    """The LoRAs on the way from the model to the sampler, in the order in which they were attached."""
    found = []
    for node in _upstream(graph, guider, "model"):
        if isinstance(name := _value(graph, node, "lora_name"), str):
            scale = number(_value(graph, node, "strength_model"))
            texts = number(_value(graph, node, "strength_clip"))
            found.append(_used_lora(re.split(r"[/\\]", name)[-1].rpartition(".")[0] or name, scale, texts))
    return found[::-1]


def _used_lora(name: str, scale: float | None, text_scale: float | None) -> dict[str, Any]:
    """A LoRA as a recipe names it; these tools tell no hash of the kind that others have."""
    scale = 1.0 if scale is None else scale
    return {"name": name, "hash": "", "scale": scale, "text_scale": scale if text_scale is None else text_scale}


def _nodes(graph: object) -> dict[str, Node]:
    """The well-formed nodes of a `prompt` graph, by id."""
    if not isinstance(graph, Mapping) or len(graph) > _MAX_NODES:
        return {}
    return {
        str(id): node
        for id, node in graph.items()
        if isinstance(node, Mapping)
        and isinstance(node.get("inputs"), Mapping)
        and isinstance(node.get("class_type"), str)
    }


def _from_workflow(workflow: object) -> dict[str, Node]:
    """Rewrite the editor's form (a list of nodes, a list of links, nameless widget values) as a `prompt` graph."""
    nodes = workflow.get("nodes") if isinstance(workflow, Mapping) else None
    links = workflow.get("links") if isinstance(workflow, Mapping) else None
    if not isinstance(nodes, list) or not isinstance(links, list) or len(nodes) > _MAX_NODES:
        return {}
    sources = {
        link[0]: [str(link[1]), link[2]]
        for link in links
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int) and isinstance(link[1], int | str)
    }
    graph: dict[str, Node] = {}
    for node in nodes:
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
            continue
        if not isinstance(node.get("id"), int | str):
            continue
        inputs: dict[str, Any] = {}
        widgets = node.get("widgets_values")
        if isinstance(widgets, list):
            names = _WIDGETS.get(node["type"], ())
            inputs = {name: value for name, value in zip(names, widgets, strict=False) if name}
        slots = node.get("inputs")
        for slot in slots if isinstance(slots, list) else []:
            if isinstance(slot, Mapping) and isinstance(slot.get("name"), str) and isinstance(slot.get("link"), int):
                inputs[slot["name"]] = sources.get(slot["link"])
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def _first_sampler(graph: Graph) -> Node | None:
    """The sampler that starts from nothing: a second pass (upscaling) has another one upstream of its latent."""
    samplers = [node for node in graph.values() if _is_sampler(node)]
    for node in samplers[:20]:
        upstream = _upstream(graph, node, "latent_image")
        next(upstream, None)
        if not any(_is_sampler(other) for other in upstream):
            return node
    return samplers[0] if samplers else None


def _is_sampler(node: Node) -> bool:
    inputs = node["inputs"]
    return "latent_image" in inputs and ("positive" in inputs or "guider" in inputs)


def _link(graph: Graph, value: object) -> tuple[Node, object] | None:
    """The node and output slot that a link `[id, slot]` points at."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
        node = graph.get(str(value[0]))
        return None if node is None else (node, value[1])
    return None


def _follow(graph: Graph, node: Node, name: str) -> Node | None:
    found = _link(graph, node["inputs"].get(name))
    return found[0] if found else None


def _upstream(graph: Graph, node: Node, name: str) -> Iterator[Node]:
    """`node`, then the nodes its input `name` comes from, nearest first, each once."""
    yield node
    waiting, seen = deque([node["inputs"].get(name)]), set[int]()
    while waiting and len(seen) < _MAX_VISITS:
        found = _link(graph, waiting.popleft())
        if found and id(found[0]) not in seen:
            seen.add(id(found[0]))
            yield found[0]
            waiting.extend(list(found[0]["inputs"].values())[:_MAX_INPUTS])


def _value(graph: Graph, node: Node, *names: str) -> object:
    """A node's plain input, or the number or text of the little node that it is linked to."""
    for _ in range(20):
        inputs = node["inputs"]
        value = next((inputs[name] for name in names if name in inputs), None)
        found = _link(graph, value)
        if found is None:
            return value
        node, names = found[0], (*names, "value", "text", "string", "int", "float", "seed")
    return None


def _text(graph: Graph, node: Node, name: str) -> str:
    """The texts that reach a conditioning input, in the order of the graph, one a line."""
    texts: list[str] = []
    waiting: list[tuple[object, str]] = [(node["inputs"].get(name), name)]
    seen: set[tuple[int, str]] = set()
    while waiting and len(seen) < _MAX_VISITS:
        value, side = waiting.pop()
        found = _link(graph, value)
        if found is None:
            continue
        source, slot = found
        inputs = source["inputs"]
        if "positive" in inputs and "negative" in inputs:  # such a node has both for outputs, in this order
            side = "negative" if slot == 1 else "positive"
        if (id(source), side) in seen:
            continue
        seen.add((id(source), side))
        text = _value(graph, source, "text", "text_g", "t5xxl", "prompt", "string", "value")
        if isinstance(text, str):
            texts.append(text)
            continue
        passed = [key for key in inputs if key == side or str(key).startswith("conditioning")]
        waiting.extend((inputs[key], side) for key in reversed(passed[:_MAX_INPUTS]))
    return "\n".join(texts)


# InvokeAI ------------------------------------------------------------------------------------------------------------


def read_invokeai(metadata: object) -> dict[str, Any]:
    """The recipe in InvokeAI's `invokeai_metadata` (version 3 and later) or `sd-metadata` (version 2) chunk."""
    if not isinstance(metadata, Mapping):
        return {}
    image = metadata.get("image")
    return _invoke_2(metadata, image) if isinstance(image, Mapping) else _invoke_3(metadata)


def _invoke_3(data: Mapping[str, Any]) -> dict[str, Any]:
    model = data.get("model")
    recipe = {
        "prompt": data.get("positive_prompt"),
        "negative_prompt": data.get("negative_prompt"),
        "steps": whole(data.get("steps")),
        "guidance_scale": number(data.get("cfg_scale")),
        "guidance_rescale": number(data.get("cfg_rescale_multiplier")),
        "seed": whole(data.get("seed")),
        "width": whole(data.get("width")),
        "height": whole(data.get("height")),
        "clip_skip": whole(data.get("clip_skip")),
        "loras": _invoke_loras(data.get("loras")) or None,
        "strength": _part(data.get("strength")) if data.get("init_image") else None,
    }
    if isinstance(model, Mapping):
        recipe["model"] = model.get("name") or model.get("model_name")
        recipe["model_hash"] = model.get("hash")
    return _strings(recipe | _invoke_sampler(data.get("scheduler")))


def _invoke_loras(loras: object) -> list[dict[str, Any]]:
    """[{"model": {"name": ...}, "weight": 0.8}], before version 4 [{"lora": {"model_name": ...}, "weight": 0.8}]."""
    found = []
    for entry in loras[:_MAX_INPUTS] if isinstance(loras, list) else []:
        model = entry.get("model") or entry.get("lora") if isinstance(entry, Mapping) else None
        name = model.get("name") or model.get("model_name") if isinstance(model, Mapping) else None
        if isinstance(name, str):
            found.append(_used_lora(name, number(entry.get("weight")), None))
    return found


def _part(value: object) -> float | None:
    """A number from 0 to 1."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def _invoke_2(data: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        parts = [part.get("prompt") for part in prompt[:100] if isinstance(part, Mapping)]
        prompt = "\n".join(part for part in parts if isinstance(part, str))
    recipe = {
        **(_brackets(prompt) if isinstance(prompt, str) else {}),
        "steps": whole(image.get("steps")),
        "guidance_scale": number(image.get("cfg_scale")),
        "seed": whole(image.get("seed")),
        "width": whole(image.get("width")),
        "height": whole(image.get("height")),
        "model": data.get("model_weights"),
        "model_hash": data.get("model_hash"),
    }
    return _strings(recipe | _invoke_sampler(image.get("sampler")))


_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def _brackets(prompt: str) -> dict[str, str]:
    """Before version 3, InvokeAI wrote the negative prompt [in square brackets] inside the prompt."""
    negatives = [match.strip() for match in _BRACKETS.findall(prompt)]
    return {"prompt": _BRACKETS.sub("", prompt).strip(), "negative_prompt": ", ".join(negatives)}


# InvokeAI's names that are not ComfyUI's. A suffix "_k" asks for Karras' schedule.
_INVOKE_SAMPLERS = {
    "dpmpp_2s": "dpmpp_2s_ancestral",
    "euler_a": "euler_ancestral",
    "kdpm_2": "dpm_2",
    "kdpm_2_a": "dpm_2_ancestral",
    "pndm": "plms",
    "unipc": "uni_pc",
}


def _invoke_sampler(name: object) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        return {}
    name = name.removeprefix("k_")
    base = name.removesuffix("_k")
    sampler, _ = read_sampler(_INVOKE_SAMPLERS.get(base, base))
    return {"sampler": sampler} | ({"schedule": "karras"} if base != name else {})


def _strings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Drop what is missing, and what should be a text and is not."""
    texts = ("prompt", "negative_prompt", "model", "model_hash")
    kept = {k: v for k, v in recipe.items() if v is not None and (k not in texts or isinstance(v, str))}
    return kept if kept.keys() & {"prompt", "seed", "steps"} else {}


_DREAM_FLAG = re.compile(r"\s-([a-zA-Z])\s?([^\s\"-][^\s\"]{0,100}|-?\d{1,20})")
_DREAM_NAMES = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "guidance_scale"}


def read_dream(text: str) -> dict[str, Any]:
    """The recipe in InvokeAI's oldest chunk, `Dream`: `"a fox" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms`."""
    text = text.strip()
    if not text.startswith('"') or (end := text.rfind('"')) < 1:
        return {}
    recipe: dict[str, Any] = {**_brackets(text[1:end].replace('\\"', '"'))}
    for match in _DREAM_FLAG.finditer(text, end + 1):
        flag, value = match.groups()
        if flag == "A":
            recipe |= _invoke_sampler(value)
        elif flag in _DREAM_NAMES:
            name = _DREAM_NAMES[flag]
            found = number(value) if name == "guidance_scale" else whole(value)
            if found is not None:
                recipe[name] = found
    return recipe
