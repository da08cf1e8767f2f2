"""The recipe in ComfyUI's graph of nodes, read as inert data.

We follow the graph's links from the sampler backwards to find the texts and the numbers; no node is executed, every
walk visits a node once and is bounded, and whatever has an unexpected shape is passed over. What a known node asks and
we don't follow is in `ignored`; a node that isn't known is told in `warnings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...request import MAX_MERGING
from ..infotext import number, whole
from .comfy_texts import Texts
from .found import Found, count, name, part, sampler, used_lora
from .graph import MAX_INPUTS, MAX_VISITS, Graph, Node, follow, from_prompt, from_workflow, link, upstream
from .webui import as_comfyui

# What makes noise levels, and the schedule it is.
_SIGMAS = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "exponential",
    "AlignYourStepsScheduler": "align_your_steps",
    "BetaSamplingScheduler": "beta",
    "SDTurboScheduler": "trailing",
}
# Samplers as nodes of their own.
_SAMPLERS = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerLMS": "lms",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerDPMAdaptative": "dpm_adaptive",
}


def _merging(value: object) -> float | None:
    ratio = part(value)
    return None if ratio is None else min(ratio, MAX_MERGING)  # ComfyUI goes on to 1, and merges no more


_PIPES = ("sdxl_tuple", "pipe", "basic_pipe", "optional_pipe")
# On the way from a model's file to the sampler: nodes that change how it draws, and how we follow them.
_FOLLOWED = {
    "RescaleCFG": ("multiplier", "guidance_rescale", part),
    "PerturbedAttentionGuidance": ("scale", "pag_scale", number),
    "TomePatchModel": ("ratio", "token_merging", _merging),
}
_QUIET = re.compile(r"loader|lora|reroute|pipe|checkpoint|clipsetlastlayer|torchcompile|cache|preview", re.IGNORECASE)
_PATCHES = re.compile(
    r"freeu|modelsampling|ipadapter|selfattentionguidance|perpneg|hypertile|patchmodeladddownscale|tonemap|"
    r"skiplayerguidance|controlnet|photomaker|instantid|pulid|differentialdiffusion|dynamicthresholding|deepcache|"
    r"rescalecfg|perturbedattention|tomepatch|ays|hidiffusion|animatediff|mahiro|cfgzero|layereddiffusion|applyfooocus",
    re.IGNORECASE,
)
_OUTPUTS = re.compile(r"save|output|imagesaver", re.IGNORECASE)
_DECODING = re.compile(r"vaedecode|vae decode|preview|reroute|save", re.IGNORECASE)
_GRAMMAR = re.compile(r"[()\[\]\\]|embedding:|\b(?:AND|BREAK)\b")  # what A1111's and ComfyUI's grammars read unlike


def read_comfyui(prompt: object, workflow: object = None) -> Found:
    """The recipe in ComfyUI's `prompt` graph, or else in its `workflow`, the editor's form of the same graph."""
    found = Found("comfyui")
    graph: Graph = from_prompt(prompt) or from_workflow(workflow)
    drawing = _first_sampler(graph, found)
    if drawing is not None:
        _Recipe(graph, drawing, found).read()
    return found


class _Recipe:
    """What one sampler of a graph was asked to draw."""

    def __init__(self, graph: Graph, drawing: Node, found: Found) -> None:
        self.graph = graph
        self.found = found
        self.drawing = drawing
        self.texts = Texts(graph, found)
        self.guider = self._guider()
        self.sigmas = self._of("sigmas", "steps")
        self.noise = follow(graph, drawing, "noise") or drawing
        self.chosen = follow(graph, drawing, "sampler") or drawing

    def read(self) -> None:
        recipe = self.found.recipe
        recipe |= self._prompts()
        recipe |= {
            "steps": whole(self._value(self.sigmas, "steps")),
            "guidance_scale": number(self._value(self.guider if "cfg" in self.guider.inputs else self.drawing, "cfg")),
            "seed": whole(self._value(self.noise, "seed", "noise_seed")),
        }
        if self.guider.kind == "BasicGuider":
            recipe["guidance_scale"] = 1.0  # it asks the prompt alone
        if self.guider.kind == "DualCFGGuider":
            self._two_guidances()
        named = _SAMPLERS.get(self.chosen.kind) or self._value(self.chosen, "sampler_name")
        recipe |= sampler(named, self._value(self.sigmas, "scheduler") or _SIGMAS.get(self.sigmas.kind))
        denoise = number(self._value(self.sigmas, "denoise"))
        if denoise is not None and 0 < denoise < 1:  # ComfyUI takes all its steps below that
            recipe |= {"strength": denoise, "exact_steps": True}
        self._model()
        self._latent()
        self._rest()
        self._sizes()
        said = f"{recipe.get('prompt')} {recipe.get('negative_prompt')}"
        if _GRAMMAR.search(said) and "<lora:" not in said:  # those are taken by nodes that know A1111's grammar
            recipe["prompt_style"] = "comfy"
        kept = {key: value for key, value in recipe.items() if value is not None}
        recipe.clear()
        recipe.update(kept)
        on_gpu = str(self.chosen.inputs.get("noise_device")) == "gpu"
        as_comfyui(self.found, "_gpu" if on_gpu else named, custom=self.sigmas is not self.drawing)

    def _guider(self) -> Node:
        """The node that is given the texts."""
        inputs = self.drawing.inputs
        if "positive" in inputs or "guider" in inputs:
            return follow(self.graph, self.drawing, "guider") or self.drawing
        node: Node = self.drawing
        for _ in range(20):
            found = follow(self.graph, node, *_PIPES)
            if found is None or "positive" in found.inputs:
                return found or node
            node = found
        return node

    def _of(self, name: str, wanted: str) -> Node:
        """The node that makes the noise levels; what cuts them is on the way, and told."""
        node = follow(self.graph, self.drawing, name)
        for _ in range(20):
            if node is None or wanted in node.inputs:
                break
            self._ignore(node)  # it cuts or turns levels
            node = follow(self.graph, node, name, "sigmas_1")
        return node or self.drawing

    def _value(self, node: Node, *names: str) -> object:
        """A node's plain input, or the number or text of the little node that it is linked to."""
        wanted = names[0]
        for _ in range(20):
            value = next((node.inputs[key] for key in names if key in node.inputs), None)
            source = link(self.graph, value)
            if source is None:
                return None if isinstance(value, list) else value
            node = source[0]
            names = (*names, "value", "text", "string", "int", "float", "number", "seed", "a")
            if not any(key in node.inputs for key in names):
                self.found.warn(f"{wanted!r} comes from a node that isn't known, {node.kind[:60]!r}")
                return None
        return None

    def _ignore(self, node: Node) -> None:
        """Tell of a node that isn't followed, by its plain values."""
        values = {
            str(key)[:60]: value[:100] if isinstance(value, str) else value
            for key, value in list(node.inputs.items())[:MAX_INPUTS]
            if isinstance(value, str | int | float)
        }
        if len(self.found.ignored) < MAX_INPUTS:
            self.found.ignored.setdefault(node.kind[:60], values or True)

    # Texts

    def _prompts(self) -> dict[str, Any]:
        """The two prompts; one that only an unknown node could tell is left out."""
        sides = [side for side in ("positive", "cond1", "conditioning") if side in self.guider.inputs]
        prompt = next((said for side in sides if (said := self.texts.prompt(self.guider, side)) is not None), None)
        negative = self.texts.prompt(self.guider, "negative") if "negative" in self.guider.inputs else ""
        if prompt is None:
            self.found.warn("the graph holds no prompt that could be read")
        return {"prompt": prompt, "negative_prompt": negative or ""}

    def _two_guidances(self) -> None:
        """DualCFGGuider: InstructPix2Pix's two scales, where a picture is edited; else a second prompt."""
        recipe, inputs = self.found.recipe, self.guider.inputs
        first, second = (
            number(self._value(self.guider, "cfg_conds")),
            number(self._value(self.guider, "cfg_cond2_negative")),
        )
        recipe["guidance_scale"] = first
        edits = any(node.kind == "InstructPixToPixConditioning" for node in upstream(self.graph, self.guider, "cond1"))
        other = self.texts.prompt(self.guider, "cond2")
        if edits and inputs.get("style") in (None, "regular"):
            recipe["image_guidance_scale"] = second
            if other and other != recipe["negative_prompt"]:
                self.found.ignored["cond2"] = other
        else:
            self.found.ignored["DualCFGGuider"] = {"cond2": other, "cfg_cond2_negative": second}

    # Networks

    def _model(self) -> None:
        """The model's file and what is attached to it on the way to the sampler."""
        recipe, loras, seen = self.found.recipe, [], set[str]()
        node: Node | None = self.guider
        while node is not None and node.id not in seen and len(seen) < MAX_VISITS:
            seen.add(node.id)
            loras += self._loras(node)
            named = self._value(node, "ckpt_name", "base_ckpt_name", "unet_name", "model_name")
            if name(named) is not None and named != "Baked VAE":
                recipe["model"] = named
                break
            if node is not self.guider:
                self._patch(node)
            ways = [key for key in node.inputs if "model" in str(key).casefold()]
            node = follow(self.graph, node, "model", *ways[:MAX_INPUTS], *_PIPES)
        recipe["loras"] = loras[::-1] or None
        self._clip_skip()

    def _patch(self, node: Node) -> None:
        if node.kind in _FOLLOWED:
            key, field, read = _FOLLOWED[node.kind]
            if (value := read(self._value(node, key))) is not None:
                self.found.recipe[field] = value
                return
        if _PATCHES.search(node.kind):
            self._ignore(node)
        elif not _QUIET.search(node.kind):
            self.found.warn(f"a node on the way from the model isn't known, {node.kind[:60]!r}")

    def _loras(self, node: Node) -> list[dict[str, Any]]:
        """The LoRAs that a node attaches, the last one first: one, numbered ones, or rgthree's objects."""
        inputs, found = node.inputs, []
        if (path := name(self._value(node, "lora_name"))) is not None:
            scale = number(self._value(node, "strength_model", "lora_model_strength", "strength"))
            found.append(used_lora(path, scale, number(self._value(node, "strength_clip", "lora_clip_strength"))))
        for key, value in list(inputs.items())[: 2 * MAX_INPUTS]:
            if isinstance(value, Mapping) and isinstance(value.get("lora"), str):
                if value.get("on") is not False and name(value["lora"]):
                    text_scale = number(value.get("strengthTwo"))
                    found.append(used_lora(value["lora"], number(value.get("strength")), text_scale))
            elif (match := re.fullmatch(r"lora(?:_name)?_0?(\d{1,2})", str(key))) and name(value) is not None:
                names = [
                    f"{word}_{at}"
                    for at in (match[1], f"0{match[1]}")
                    for word in ("strength", "lora_wt", "model_weight")
                ]
                scale = next((number(inputs[one]) for one in names if one in inputs), None)
                if inputs.get(f"switch_{match[1]}") != "Off":
                    found.append(used_lora(value, scale))
        for stack in ("lora_stack", "optional_lora_stack"):
            if other := follow(self.graph, node, stack):
                found += self._loras(other)
        return found[::-1]

    def _clip_skip(self) -> None:
        """CLIPSetLastLayer on the way to the prompt's encoder, -2 for the last layer but one."""
        side = next((side for side in ("positive", "cond1", "conditioning") if side in self.guider.inputs), "positive")
        for node in upstream(self.graph, self.guider, side):
            last = whole(self._value(node, "stop_at_clip_layer", "clip_skip"))
            if last is not None and -12 <= last <= -2:
                self.found.recipe["clip_skip"] = -last
                return
            if last is not None:
                return

    # Size and what follows

    def _latent(self) -> None:
        """The size of the picture; a latent of several pictures has one draw of noise for all."""
        for node in upstream(
            self.graph, self.drawing, "latent_image" if "latent_image" in self.drawing.inputs else "pipe"
        ):
            width = whole(self._value(node, "width", "empty_latent_width"))
            height = whole(self._value(node, "height", "empty_latent_height"))
            together = count(self._value(node, "batch_size"))
            if together is not None and together > 1:
                self.found.ignored["batch_size"] = together
            if width and height:
                self.found.recipe |= {"width": width, "height": height}
                return

    def _sizes(self) -> None:
        """Leave out SDXL's sizes where they say what is so anyway."""
        recipe = self.found.recipe
        own = [recipe.get("width"), recipe.get("height")]
        for prefix in ("", "negative_"):
            for field, usual in (("original_size", own), ("crop", [0, 0]), ("target_size", own)):
                if recipe.get(prefix + field) == usual:
                    del recipe[prefix + field]

    def _rest(self) -> None:
        """Second passes, and what is done to the finished picture."""
        inputs = self.drawing.inputs
        first, last = whole(inputs.get("start_at_step")), whole(inputs.get("end_at_step"))
        if first:
            self.found.ignored["start_at_step"] = first
        if last is not None and last < (self.found.recipe.get("steps") or 0):
            self.found.ignored["end_at_step"] = last
        if inputs.get("add_noise") in ("disable", False) or self.noise.kind == "DisableNoise":
            self.found.ignored["add_noise"] = False
        for other in [one for one in self.graph.values() if one is not self.drawing and _is_sampler(one)][:20]:
            if any(one is self.drawing for one in upstream(self.graph, other, "latent_image")):
                asked = {k: v for k in ("steps", "denoise") if isinstance(v := other.inputs.get(k), int | float)}
                self.found.ignored[f"second {other.kind[:60]}"] = asked or True
        for output in [one for one in self.graph.values() if _is_output(one)][:5]:
            node: Node | None = follow(self.graph, output, "images", "image")
            for _ in range(20):
                if node is None or _is_sampler(node) or "samples" in node.inputs:
                    break
                if not _DECODING.search(node.kind):
                    self._ignore(node)
                node = follow(self.graph, node, "images", "image", "pixels")


def _first_sampler(graph: Graph, found: Found) -> Node | None:
    """The sampler that starts from nothing: a second pass (upscaling) has another one upstream of its latent.

    Where the graph says what was saved, one that this comes from.
    """
    samplers = [node for node in graph.values() if _is_sampler(node)]
    for output in [node for node in graph.values() if _is_output(node)][:5]:
        saved = {node.id for node in upstream(graph, output, "images" if "images" in output.inputs else "image")}
        if kept := [node for node in samplers if node.id in saved]:
            samplers = kept
            break
    first = []
    for node in samplers[:20]:
        before = upstream(graph, node, "latent_image")
        next(before, None)
        if not any(_is_sampler(other) for other in before):
            first.append(node)
    if len(first) > 1:
        found.warn(f"the graph draws with {len(first)} samplers from nothing: the recipe is the first one's")
    return first[0] if first else samplers[0] if samplers else None


def _is_sampler(node: Node) -> bool:
    inputs = node.inputs
    if "latent_image" in inputs and ("positive" in inputs or "guider" in inputs or "sdxl_tuple" in inputs):
        return True
    return "sampler_name" in inputs and "steps" in inputs and any(pipe in inputs for pipe in _PIPES)


def _is_output(node: Node) -> bool:
    return bool(_OUTPUTS.search(node.kind)) and ("images" in node.inputs or "image" in node.inputs)
