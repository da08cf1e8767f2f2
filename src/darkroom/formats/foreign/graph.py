"""ComfyUI's graph of nodes as inert data: from the `prompt` chunk, or from `workflow`, the editor's form of it.

In `prompt` every node has named inputs, each a value or a link [node, output]. In `workflow` nodes have nameless lists
of widget values and numbered links, and there are nodes that exist in the editor only: reroutes, primitives, named
wires, bypassed nodes and subgraphs. All those are resolved here, so that both forms read alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_NODES = 10_000  # more than any real graph holds
MAX_VISITS = 500
MAX_INPUTS = 50
_MAX_DEPTH = 8  # of subgraphs in subgraphs


@dataclass(frozen=True, eq=False)
class Node:
    """One node: its id, its class, and its inputs by name: plain values, or links [id, output]."""

    id: str
    kind: str
    inputs: Mapping[str, Any]


Graph = Mapping[str, Node]

# How the values of a node's widgets follow each other in a `workflow`; None: what the editor does after a run.
_WIDGETS = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSampler (Efficient)": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", "return_with_leftover_noise"),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", None, "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "AlignYourStepsScheduler": ("model_type", "steps", "denoise"),
    "BetaSamplingScheduler": ("steps", "alpha", "beta"),
    "SDTurboScheduler": ("steps", "denoise"),
    "RandomNoise": ("noise_seed", None),
    "CFGGuider": ("cfg",),
    "DualCFGGuider": ("cfg_conds", "cfg_cond2_negative", "style"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        *("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    ),
    "CLIPTextEncodeSDXLRefiner": ("ascore", "width", "height", "text"),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "ConditioningSetTimestepRange": ("start", "end"),
    "ConditioningAverage": ("conditioning_to_strength",),
    "FluxGuidance": ("guidance",),
    "GLIGENTextBoxApply": ("text", "width", "height", "x", "y"),
    "RescaleCFG": ("multiplier",),
    "PerturbedAttentionGuidance": ("scale",),
    "FreeU": ("b1", "b2", "s1", "s2"),
    "FreeU_V2": ("b1", "b2", "s1", "s2"),
    "ModelSamplingDiscrete": ("sampling", "zsnr"),
    "TomePatchModel": ("ratio",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "StringReplace": ("string", "find", "replace"),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PrimitiveInt": ("value", None),
    "PrimitiveFloat": ("value",),
    "ImpactWildcardProcessor": ("wildcard_text", "populated_text"),
    "ImpactWildcardEncode": ("wildcard_text", "populated_text"),
    "Text Multiline": ("text",),
    "ShowText|pysssss": ("text_0",),
    "Efficient Loader": (
        *("ckpt_name", "vae_name", "clip_skip", "lora_name", "lora_model_strength", "lora_clip_strength"),
        *("positive", "negative", "token_normalization", "weight_interpretation"),
        *("empty_latent_width", "empty_latent_height", "batch_size"),
    ),
}
_AFTER_A_RUN = ("fixed", "increment", "decrement", "randomize")
_BYPASSED, _MUTED = 4, 2  # a node's mode


def from_prompt(graph: object) -> dict[str, Node]:
    """The well-formed nodes of a `prompt` graph, by id."""
    if not isinstance(graph, Mapping) or len(graph) > MAX_NODES:
        return {}
    return {
        str(id): Node(str(id), node["class_type"], node["inputs"])
        for id, node in graph.items()
        if isinstance(node, Mapping)
        and isinstance(node.get("inputs"), Mapping)
        and isinstance(node.get("class_type"), str)
    }


def from_workflow(workflow: object) -> dict[str, Node]:
    """A `workflow`, the editor's form, rewritten as a `prompt` graph."""
    return _Editor().read(workflow)


def link(graph: Graph, value: object) -> tuple[Node, object] | None:
    """The node and output that a link `[id, output]` points at."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
        node = graph.get(str(value[0]))
        return None if node is None else (node, value[1])
    return None


def follow(graph: Graph, node: Node, *names: str) -> Node | None:
    """The node that the first of these inputs is linked to."""
    for name in names:
        if found := link(graph, node.inputs.get(name)):
            return found[0]
    return None


def upstream(graph: Graph, node: Node, name: str) -> Iterator[Node]:
    """`node`, then the nodes its input `name` comes from, nearest first, each once."""
    yield node
    waiting, seen = deque([node.inputs.get(name)]), set[str]()
    while waiting and len(seen) < MAX_VISITS:
        found = link(graph, waiting.popleft())
        if found and found[0].id not in seen:
            seen.add(found[0].id)
            yield found[0]
            waiting.extend(list(found[0].inputs.values())[:MAX_INPUTS])


class _Constant:
    """A value that a wire of the editor brings."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Editor:
    """One reading of a `workflow`."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.aliases: dict[tuple[str, Any], Any] = {}  # an output of an editor's node -> what it stands for
        self.wires: dict[str, Any] = {}  # SetNode's
        self.definitions: dict[str, Mapping[str, Any]] = {}

    def read(self, workflow: object) -> dict[str, Node]:
        """The nodes by id; those in a subgraph have the ids of ComfyUI's own rewriting, "12:3"."""
        if not isinstance(workflow, Mapping):
            return {}
        definitions = workflow.get("definitions")
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
        for one in subgraphs[:MAX_NODES] if isinstance(subgraphs, list) else []:
            if isinstance(one, Mapping) and isinstance(one.get("id"), str):
                self.definitions[one["id"]] = one
        self._level(workflow, "", [], 0)
        return {
            id: Node(id, node.kind, {name: self._resolved(value) for name, value in node.inputs.items()})
            for id, node in self.nodes.items()
        }

    def _level(self, level: Mapping[str, Any], prefix: str, outer: list[Any], depth: int) -> dict[Any, Any]:
        """Take in the nodes of a graph or subgraph; returns what its output node is given, by slot."""
        nodes, links = level.get("nodes"), level.get("links")
        if not isinstance(nodes, list) or not isinstance(links, list) or depth > _MAX_DEPTH:
            return {}
        sources: dict[Any, Any] = {}
        results: dict[Any, Any] = {}
        for one in links[: 10 * MAX_NODES]:
            if isinstance(one, Mapping):
                keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
                one = [one.get(key) for key in keys]
            if not isinstance(one, list) or len(one) < 3 or not isinstance(one[0], int | str):
                continue
            source = _source(one[1], one[2], prefix, outer)
            sources[one[0]] = source
            if len(one) >= 5 and one[3] == -20 and isinstance(one[4], int):
                results[one[4]] = source
        for node in nodes:
            if len(self.nodes) + len(self.aliases) > MAX_NODES:
                break
            if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
                continue
            if isinstance(node.get("id"), int | str):
                self._node(node, prefix, sources, depth)
        return results

    def _node(self, node: Mapping[str, Any], prefix: str, sources: Mapping[Any, Any], depth: int) -> None:
        kind, id = node["type"], f"{prefix}{node['id']}"
        slots = [slot for slot in _listed(node.get("inputs")) if isinstance(slot, Mapping)]
        linked = {
            slot["name"]: sources.get(slot["link"])
            for slot in slots
            if isinstance(slot.get("name"), str) and isinstance(slot.get("link"), int | str)
        }
        values = _listed(node.get("widgets_values"))
        inputs = _widgets(kind, node.get("widgets_values"), slots) | linked
        outputs = len(_listed(node.get("outputs"))) or 1
        if node.get("mode") == _MUTED:
            return
        if kind == "PrimitiveNode":
            self.aliases[id, 0] = _Constant(values[0] if values else None)
        elif kind == "GetNode":
            self.aliases[id, 0] = _Wire(values[0] if values else None)
        elif kind == "SetNode":
            self.aliases[id, 0] = next(iter(linked.values()), None)
            if values and isinstance(values[0], str):
                self.wires[values[0]] = self.aliases[id, 0]
        elif kind == "Reroute":
            self.aliases[id, 0] = next(iter(linked.values()), None)
        elif node.get("mode") == _BYPASSED:
            for at, output in enumerate(_listed(node.get("outputs"))):
                wanted = output.get("type") if isinstance(output, Mapping) else None
                through = [s for s in slots if s.get("type") == wanted and s.get("name") in linked]
                self.aliases[id, at] = linked[through[0]["name"]] if through else None
        elif kind in self.definitions:
            given = [inputs.get(slot.get("name")) for slot in slots]
            outer = [one if isinstance(one, list) else _Constant(one) for one in given]
            results = self._level(self.definitions[kind], f"{id}:", outer, depth + 1)
            for at in range(min(outputs, MAX_INPUTS)):
                self.aliases[id, at] = results.get(at)
        else:
            self.nodes[id] = Node(id, kind, inputs)

    def _resolved(self, value: Any) -> Any:
        """A link past the nodes that exist in the editor only."""
        for _ in range(MAX_VISITS):
            if isinstance(value, _Constant):
                return value.value
            if isinstance(value, _Wire):
                value = self.wires.get(value.name) if isinstance(value.name, str) else None
            elif isinstance(value, list) and len(value) == 2 and _key(value) in self.aliases:
                value = self.aliases[_key(value)]
            else:
                return value
        return None


class _Wire:
    """A wire without a drawn line, by its name."""

    def __init__(self, name: object) -> None:
        self.name = name


def _key(value: list[Any]) -> tuple[str, Any]:
    return str(value[0]), value[1] if isinstance(value[1], int) else None


def _source(node: object, slot: object, prefix: str, outer: list[Any]) -> Any:
    """What a link comes from; node -10 stands for a subgraph's inputs."""
    if node == -10 and prefix:
        return outer[slot] if isinstance(slot, int) and 0 <= slot < len(outer) else None
    return [f"{prefix}{node}", slot] if isinstance(node, int | str) else None


def _listed(value: object) -> list[Any]:
    return value[:MAX_NODES] if isinstance(value, list) else []


def _widgets(kind: str, values: object, slots: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A node's widget values by name: by our table, or by the inputs that newer editors list for each widget."""
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    values = _listed(values)
    if kind in _WIDGETS:
        return {name: value for name, value in zip(_WIDGETS[kind], values, strict=False) if name}
    listed = [slot["widget"].get("name") for slot in slots if isinstance(slot.get("widget"), Mapping)]
    names = [name for name in listed if isinstance(name, str)]
    found: dict[str, Any] = {}
    at = 0
    for name in names:
        if at < len(values):
            found[name] = values[at]
            at += 1
        if name in ("seed", "noise_seed") and at < len(values) and values[at] in _AFTER_A_RUN:
            at += 1
    if found and at == len(values):
        return found
    return {"text": values[0]} if values and isinstance(values[0], str) else {}
