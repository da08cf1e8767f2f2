"""The texts of a ComfyUI graph: what its string nodes put together, and which of them reach a prompt.

No node is executed. The nodes that every installation has, and the most used ones of others, are known by name or by
the form of their inputs; one that isn't known is told in a warning. A text that only an unknown node could make is not
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..infotext import whole
from .found import Found
from .graph import MAX_INPUTS, MAX_VISITS, Graph, Node, link

_MAX_LENGTH = 100_000  # characters of a text that nodes put together
_MAX_DEPTH = 60

# The inputs that are a plain text node's text, the best first.
_TEXTS = (
    *("text", "string", "value", "prompt", "positive", "negative", "populated_text", "STRING", "str", "Text", "input"),
    *("wildcard_text", "multiline_text", "content", "opt_text", "text_0", "text1"),
)
_PLAIN = re.compile(
    r"(primitive|string ?(literal|constant|multiline)|text ?(multiline|box|string|input)|multiline|cr (text|prompt)|"
    r"easy (positive|negative)|ttn text|show ?text|display ?text|preview ?(any|text)|simple ?text|note|literal|"
    r"string\Z|text\Z|prompt\Z|reroute|any ?to)",
    re.IGNORECASE,
)
_JOINING = re.compile(r"concat|join|combine|append|merge", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:text|string|prompt|str|input|positive|negative)_?\s?([a-z]|\d{1,2})\Z", re.IGNORECASE)
_DELIMITERS = {"comma": ",", "space": " ", "newline": "\n", "none": "", "\\n": "\n"}
_WILDCARDS = re.compile(r"wildcard|dynamic ?prompt|randomgenerator|dprandom|dpcombinatorial", re.IGNORECASE)

# What makes conditions out of texts; their texts in the order of their weight.
_ENCODER = re.compile(
    r"text ?encode|wildcardencode|promptencode|encode ?prompt|conditioning ?text|lpw|A1111", re.IGNORECASE
)
_ENCODED = ("t5xxl", "text_g", "clip_g", "text_l", "clip_l", "text", "prompt", "populated_text", "wildcard_text")
# Loaders with the two texts inside: their outputs.
_LOADERS = {"Efficient Loader": (1, 2), "easy fullLoader": (1, 2), "easy a1111Loader": (1, 2), "ttN pipeLoader": (1, 2)}
# On the way of a condition: known nodes that change what it does, and not what it says.
_CHANGING = {
    "ConditioningSetTimestepRange": ("start", "end"),
    "ConditioningSetArea": ("width", "height", "x", "y", "strength"),
    "ConditioningSetAreaPercentage": ("width", "height", "x", "y", "strength"),
    "ConditioningSetAreaStrength": ("strength",),
    "ConditioningSetMask": ("strength", "set_cond_area"),
    "ConditioningSetProperties": ("strength",),
    "ConditioningSetPropertiesAndCombine": ("strength",),
    "ConditioningSetDefaultCombine": (),
    "ConditioningCombine": (),
    "ConditioningConcat": (),
    "ConditioningAverage": ("conditioning_to_strength",),
    "ConditioningMultiCombine": (),
    "PairConditioningSetProperties": ("strength",),
    "PairConditioningCombine": (),
    "ControlNetApply": ("strength",),
    "ControlNetApplyAdvanced": ("strength", "start_percent", "end_percent"),
    "ControlNetApplySD3": ("strength", "start_percent", "end_percent"),
    "ControlNetInpaintingAliMamaApply": ("strength", "start_percent", "end_percent"),
    "ACN_AdvancedControlNetApply": ("strength", "start_percent", "end_percent"),
    "StyleModelApply": ("strength",),
    "unCLIPConditioning": ("strength", "noise_augmentation"),
    "GLIGENTextBoxApply": ("text", "width", "height", "x", "y"),
    "FluxGuidance": ("guidance",),
    "ReferenceLatent": (),
    "StableCascade_StageB_Conditioning": (),
}
# Known nodes that change nothing, or nothing that isn't followed.
_QUIET = {"InstructPixToPixConditioning", "InpaintModelConditioning", "Reroute", "Reroute (rgthree)", "BasicPipe"}


class Texts:
    """The texts of one graph. What can't be told for sure, or isn't followed, is noted in `found`."""

    def __init__(self, graph: Graph, found: Found) -> None:
        self.graph = graph
        self.found = found
        self.visits = 0
        self.missing = False  # a text of the present prompt could not be told

    # Strings

    def string(self, value: object, depth: int = 0) -> str | None:
        """The text that an input holds or is linked to; None where only its node knows."""
        if isinstance(value, str):
            return value[:_MAX_LENGTH]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        self.visits += 1
        source = link(self.graph, value)
        if source is None or depth > _MAX_DEPTH or self.visits > MAX_VISITS:
            return None
        text = self._string_of(source[0], source[1], depth + 1)
        return None if text is None else text[:_MAX_LENGTH]

    def _string_of(self, node: Node, slot: object, depth: int) -> str | None:
        kind, inputs = node.kind, node.inputs
        if "replace" in inputs and "find" in inputs:
            return self._replaced(node, depth)
        if kind.startswith("StringFunction"):
            return self._function(node, depth)
        if kind == "StringTrim":
            text = self.string(inputs.get("string"), depth)
            how = {"Left": str.lstrip, "Right": str.rstrip}.get(str(inputs.get("mode")), str.strip)
            return None if text is None else how(text)
        if kind == "CaseConverter":
            text = self.string(inputs.get("string"), depth)
            cases = {
                "UPPERCASE": str.upper,
                "lowercase": str.lower,
                "Capitalize": str.capitalize,
                "Title Case": str.title,
            }
            return None if text is None else cases.get(str(inputs.get("mode")), str)(text)
        if kind == "StringSubstring":
            text, start, end = self.string(inputs.get("string"), depth), inputs.get("start"), inputs.get("end")
            return text[start:end] if text is not None and isinstance(start, int) and isinstance(end, int) else None
        if _WILDCARDS.search(kind):
            return self._wildcard(node, depth)
        if "switch" in kind.casefold():
            return self._switched(node, depth)
        numbered = [key for key in inputs if isinstance(key, str) and _NUMBERED.match(key)]
        if _JOINING.search(kind) and numbered:
            return self._joined(node, numbered, depth)
        return self._plain(node, depth)

    def _plain(self, node: Node, depth: int) -> str | None:
        """The text of a node that holds one, or hands one on."""
        inputs = node.inputs
        key = next((k for k in _TEXTS if isinstance(inputs.get(k), str) or link(self.graph, inputs.get(k))), None)
        links = [key for key, value in list(inputs.items())[:MAX_INPUTS] if link(self.graph, value)]
        if _PLAIN.search(node.kind):
            if key is None and len(links) == 1:
                key = links[0]
            text = None if key is None else self.string(inputs[key], depth)
            # A node that shows a text keeps what it showed, should nothing else be known.
            shown = next((inputs[k] for k in ("text_0", "text2") if isinstance(inputs.get(k), str)), None)
            return shown if text is None else text
        if key is not None and not links:
            self.found.warn(f"the text is taken from a node that isn't known, {node.kind[:60]!r}")
            return self.string(inputs[key], depth)
        self.found.warn(f"a text was made by a node that isn't known, {node.kind[:60]!r}: the graph doesn't hold it")
        return None

    def _joined(self, node: Node, numbered: list[str], depth: int) -> str | None:
        inputs = node.inputs
        between = next((inputs[key] for key in ("delimiter", "separator", "delim", "sep") if key in inputs), None)
        between = self.string(between, depth) if between is not None else ""
        between = _DELIMITERS.get(between or "", between or "")
        keys = sorted(numbered[:MAX_INPUTS], key=_order)
        parts = [self.string(inputs[key], depth) for key in keys if inputs[key] is not None]
        if any(part is None for part in parts):
            return None
        texts = [part for part in parts if part is not None]
        if str(inputs.get("clean_whitespace")).casefold() == "true":
            texts = [text.strip() for text in texts]
        if node.kind != "StringConcatenate":  # the core's joins empty texts too
            texts = [text for text in texts if text]
        return between.join(texts)

    def _replaced(self, node: Node, depth: int) -> str | None:
        inputs = node.inputs
        text = self.string(next((inputs[key] for key in _TEXTS if key in inputs), None), depth)
        find, new = self.string(inputs.get("find"), depth), self.string(inputs.get("replace"), depth)
        if text is None or find is None or new is None:
            return None
        longest = len(text) + text.count(find) * len(new) if find else _MAX_LENGTH + 1
        return text.replace(find, new) if longest <= _MAX_LENGTH else text

    def _function(self, node: Node, depth: int) -> str | None:
        """pysssss' StringFunction: what it made is in `result`, if it was shown; an append is a join."""
        inputs = node.inputs
        if isinstance(inputs.get("result"), str):
            return str(inputs["result"])
        if inputs.get("action") != "append":
            self.found.warn(f"a text was made by {node.kind[:60]!r}, which isn't followed")
            return None
        parts = [self.string(inputs[key], depth) for key in ("text_a", "text_b", "text_c") if key in inputs]
        texts = [part for part in parts if part]
        tidy = inputs.get("tidy_tags") in ("yes", True)
        return (", " if tidy else "").join(text.strip(", ") if tidy else text for text in texts)

    def _wildcard(self, node: Node, depth: int) -> str | None:
        """The text that wildcards became, which the node keeps; else the one with wildcards, and a warning."""
        for key in ("populated_text", "result", "output"):
            if node.inputs.get(key) and (text := self.string(node.inputs[key], depth)):
                return text
        text = self.string(next((node.inputs[key] for key in _TEXTS if key in node.inputs), None), depth)
        if text is not None and re.search(r"[{|}]|__", text):
            self.found.warn(f"{node.kind[:60]!r} drew a text out of {text[:80]!r}, and the graph doesn't hold which")
        return text

    def _switched(self, node: Node, depth: int) -> str | None:
        """The input that a switch lets through."""
        inputs = node.inputs
        choice = next((inputs[key] for key in ("select", "switch", "Input", "boolean", "index") if key in inputs), None)
        if isinstance(choice, bool):
            names = ("on_true", "true", "text1") if choice else ("on_false", "false", "text2")
            name = next((name for name in names if name in inputs), None)
        elif whole(choice) is not None:
            wanted = str(whole(choice))
            name = next((key for key in inputs if re.fullmatch(rf"(input|text|any)_?0?{wanted}", str(key))), None)
        else:  # rgthree's takes the first that is there
            name = min((key for key in inputs if str(key).startswith("any_")), default=None)
        if name is None:
            self.found.warn(f"the switch {node.kind[:60]!r} isn't known: the text behind it is not told")
            return None
        return self.string(inputs[name], depth)

    # Conditions

    def prompt(self, node: Node, side: str) -> str | None:
        """The texts that reach an input, one a line; None if there is nothing there that could be told."""
        value = node.inputs.get(side)
        if node.kind in _LOADERS or isinstance(value, str):
            return self.string(value)
        texts: list[str] = []
        self.missing = False
        told = self._condition(value, side, texts, set())
        return "\n".join(dict.fromkeys(texts)) if texts or (told and not self.missing) else None

    def _condition(self, value: object, side: str, texts: list[str], seen: set[tuple[str, str]]) -> bool:
        """Add the texts of a condition; whether there was one, an empty one too."""
        waiting = [(value, side)]
        told = False
        while waiting and len(seen) < MAX_VISITS:
            value, side = waiting.pop()
            source = link(self.graph, value)
            if source is None:
                continue
            node, slot = source
            side = self._side(node, slot, side)
            if (node.id, side) in seen:
                continue
            seen.add((node.id, side))
            if "ZeroOut" in node.kind or "zero_out" in node.kind.casefold():
                self.found.ignored["ConditioningZeroOut"] = f"{side}: zeros instead of an empty text"
                told = True
            elif (said := self._said(node, side)) is not None:
                texts += said
                told = True
            else:
                waiting += reversed(self._through(node, side))
        return told

    def _side(self, node: Node, slot: object, side: str) -> str:
        """Nodes that have both texts give them out one beside the other."""
        if "positive" not in node.inputs or "negative" not in node.inputs:
            return side
        first, second = _LOADERS.get(node.kind, (0, 1))
        return {first: "positive", second: "negative"}.get(slot, side) if isinstance(slot, int) else side

    def _said(self, node: Node, side: str) -> list[str] | None:
        """The texts of a node that encodes some; None if it is no such node."""
        inputs = node.inputs
        if node.kind in _CHANGING or node.kind in _QUIET:
            return None
        if node.kind in _LOADERS or isinstance(inputs.get(side), str):
            said = self.string(inputs.get(side))
            self.missing |= said is None
            return [said] if said else []
        keys = [key for key in _ENCODED if key in inputs]
        if "populated_text" in keys and "wildcard_text" in keys:
            keys.remove("wildcard_text")
        if not _ENCODER.search(node.kind):
            keys += [key for key in _TEXTS if key in inputs and key not in keys]
            if any("conditioning" in str(key) or key in ("positive", "negative", "cond") for key in inputs):
                return None  # its text is something else's
            if not keys:
                return None
            self.found.warn(f"a prompt was encoded by a node that isn't known, {node.kind[:60]!r}")
            keys = keys[:1]
        elif not keys:
            keys = [key for key in _TEXTS if key in inputs][:1]
        self._sizes(node, side)
        said_by = {key: self.string(inputs[key]) for key in keys}
        self.missing |= None in said_by.values()
        told = list(dict.fromkeys(text for text in said_by.values() if text))
        if len(told) > 1:
            names = ", ".join(key for key, text in said_by.items() if text)
            self.found.ignored[f"{side} {names}"] = "a text of its own for each encoder"
        return told

    def _sizes(self, node: Node, side: str) -> None:
        """The sizes that SDXL is told beside a text."""
        prefix = "negative_" if side == "negative" else ""
        inputs: Mapping[str, Any] = node.inputs
        for name, first, second, least in (
            ("original_size", "width", "height", 1),
            ("crop", "crop_w", "crop_h", 0),
            ("target_size", "target_width", "target_height", 1),
        ):
            a, b = whole(inputs.get(first)), whole(inputs.get(second))
            if "SDXL" in node.kind and a is not None and b is not None and min(a, b) >= least:
                self.found.recipe.setdefault(f"{prefix}{name}", [a, b])
        if "Refiner" in node.kind and isinstance(inputs.get("ascore"), int | float):
            self.found.recipe.setdefault(f"{prefix}aesthetic_score", float(inputs["ascore"]))

    def _through(self, node: Node, side: str) -> list[tuple[object, str]]:
        """The inputs that a condition comes from, and a word about a node that isn't followed."""
        inputs = node.inputs
        if node.kind in _CHANGING:
            values = {key: inputs[key] for key in _CHANGING[node.kind] if not isinstance(inputs.get(key), list | None)}
            if node.kind != "ConditioningSetTimestepRange" or values not in ({"start": 0, "end": 1}, {}):
                self.found.ignored[node.kind] = values or True
        keys = [key for key in inputs if key == side or "conditioning" in str(key) or key == "cond"][:MAX_INPUTS]
        links = [key for key, value in list(inputs.items())[:MAX_INPUTS] if link(self.graph, value)]
        if node.kind not in _CHANGING and node.kind not in _QUIET:
            if not keys and len(links) == 1:
                keys = links
            if not node.kind.startswith("Reroute") and (keys or links):
                self.found.warn(f"a node on the way to the prompt isn't known, {node.kind[:60]!r}")
        return [(inputs[key], side) for key in keys]


def _order(key: str) -> tuple[int, str]:
    match = _NUMBERED.match(key)
    last = match[1].casefold() if match else ""
    return (int(last), "") if last.isdigit() else (0, last)
