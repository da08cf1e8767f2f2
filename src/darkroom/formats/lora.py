"""LoRA files in: every form that `lora_names` knows, into changes of native layers."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import place_of
from ..errors import CheckpointError, clip
from ..files import read_json
from .ecosystem import lora_base
from .lora_names import BUNDLED, NUMBERED, UNDRAWN, Home, Homes, Key, bundled, numbered, read_keys
from .tensors import Glance, TensorFile, open_tensors
from .weights import content_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..adapters import Adapter, Update

PEFT_METADATA = "lora_adapter_metadata"  # diffusers' key for PEFT's configuration, as JSON
FILES = (  # what a LoRA's folder may hold
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of the text
TRIGGERS = 8  # tags at most that are taken for a LoRA's words
_NOTES = ("ss_", "sshs_", "modelspec.")  # what of a file's metadata is told
_CROSS = re.compile(r"attn2[._](?:processor\.)?to_[kv]\Z")
_TRANSFORMERS = re.compile(
    r"(?:base_model\.model\.)*(?:lora_)?transformer[._]|.*(?:double_blocks|single_blocks|joint_blocks|single_transformer_)"
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What a file holds, before any model is known: tensors by layer (as the file spells it) and slot."""

    path: Path
    slots: Mapping[str, Mapping[str, str]]  # module -> slot -> the tensor's name
    strangers: tuple[str, ...]  # names that are no LoRA's
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    dtypes: Mapping[str, str] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # word -> what its vectors are for -> tensor

    @property
    def text_width(self) -> int | None:
        """The width of the text its U-Net attends to, told by the cross-attention; None where it has none."""
        for module, slots in self.slots.items():
            name = slots.get("down") or slots.get("hada_w1_b") or slots.get("a2")
            if name is not None and _CROSS.search(module) and len(self.shapes[name]) > 1:
                return max(self.shapes[name][:2]) if "a2" in slots else self.shapes[name][1]
        return None

    @property
    def kinds(self) -> dict[str, int]:
        """Kind (as of `Update.kind`; with "dora" after a plus sign) -> layers."""
        counted: dict[str, int] = {}
        for slots in self.slots.values():
            kind = _kind(slots)
            counted[kind] = counted.get(kind, 0) + 1
        return counted

    @property
    def form(self) -> str:
        """ "kohya" where names are joined by underscores, "cloneofsimo" where layers have numbers, else "diffusers"."""
        if any(":" in module for module in self.slots):
            return "cloneofsimo"
        joined = sum("." not in module for module in self.slots)
        return "kohya" if 2 * joined > len(self.slots) else "diffusers"

    @property
    def title(self) -> str | None:
        """What whoever trained it calls it: modelspec's title, or the name that kohya's scripts gave the file."""
        return self.metadata.get("modelspec.title") or self.metadata.get("ss_output_name") or None

    @property
    def triggers(self) -> tuple[str, ...]:
        """The words that call it in a prompt, as far as its metadata tells: modelspec's phrase; else, of the tags that
        kohya's scripts count, those of nearly all pictures, the most frequent first."""
        if phrase := self.metadata.get("modelspec.trigger_phrase", "").strip():
            return (phrase,)
        try:
            counted = json.loads(self.metadata.get("ss_tag_frequency", "{}"))
        except (ValueError, RecursionError):
            return ()
        tags: Counter[str] = Counter()
        for folder in counted.values() if isinstance(counted, dict) else ():
            for tag, count in folder.items() if isinstance(folder, dict) else ():
                if type(count) is int and tag.strip():
                    tags[tag.strip()] += count
        most = max(tags.values(), default=0)
        return tuple(tag for tag, count in tags.most_common(TRIGGERS) if 10 * count >= 9 * most)

    def describe(self, with_hash: bool = True) -> dict[str, Any]:
        """Form, kinds and sizes, ready for JSON; the hash always, since such files are small.

        Keys: name, path, form ("kohya", "diffusers" or "cloneofsimo"), kinds (kind -> layers), ranks (rank -> layers),
        base (which models it is made for, or None), text_width, dtypes (name -> tensors), size (bytes), hash (12
        digits, A1111's), words (that come with it), triggers, unknown (names that are no LoRA's), metadata (ss_*,
        modelspec.*).
        Raises CheckpointError.
        """
        ranks: Counter[int] = Counter()
        for slots in self.slots.values():
            name = next((slots[s] for s in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2") if s in slots), None)
            if name is not None and self.shapes[name]:
                ranks[min(self.shapes[name][:2]) if "a2" in slots else self.shapes[name][0]] += 1
        width = self.text_width
        return {
            "name": self.path.stem,
            "path": str(self.path),
            "kind": "LoRA",
            "form": self.form,
            "kinds": self.kinds,
            "ranks": {str(rank): count for rank, count in ranks.most_common()},
            "base": None if width is None else family(width),
            "text_width": width,
            "dtypes": dict(Counter(self.dtypes.values()).most_common()),
            "size": self.path.stat().st_size,
            "hash": content_hash(self.path)[:12],
            "words": list(self.words),
            "triggers": list(self.triggers),
            "unknown": list(self.strangers),
            "metadata": {key: text for key, text in sorted(self.metadata.items()) if key.startswith(_NOTES)},
        }


def is_lora(seen: Glance) -> bool:
    """Whether a file of tensors (or a folder that diffusers or PEFT wrote) is a LoRA: most of its names are one's."""
    if seen.path.is_dir():
        file = next((seen.path / name for name in FILES if (seen.path / name).is_file()), None)
        return file is not None and is_lora(Glance(file))
    names = list(seen.shapes)
    if "lora_controlnet" in names:  # a Control-LoRA: a ControlNet
        return False
    layers = read_keys(names).keys() | {
        name for name in names if NUMBERED.match(name) or any(part in name for part, _ in UNDRAWN)
    }
    return bool(layers) and 2 * len(layers | {name for name in names if BUNDLED.match(name)}) > len(names)


def open_lora(path: str | Path) -> LoraFile:
    """What a LoRA file holds; its tensors aren't read. Raises CheckpointError."""
    with open_tensors(lora_path(path)) as file:
        return scan_lora(file)


def lora_path(path: str | Path) -> Path:
    """A LoRA's file ("embedded:NAME": one of the embedded model's); in a folder, the one with a name that diffusers and
    PEFT write. Raises CheckpointError."""
    path = Path(place_of(path))
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} is a folder without a LoRA in it ({', '.join(FILES[:2])}): name the file itself")


def scan_lora(file: TensorFile) -> LoraFile:
    """The names of a file in order. CheckpointError if nothing in it is a LoRA, or one of a kind that isn't drawn."""
    slots: dict[str, dict[str, str]] = {}
    strangers = []
    names = file.names()
    if (base := lora_base(names)) is not None:
        raise CheckpointError(f"{file.path} is a LoRA for {base}, which Darkroom does not draw with")
    for part, kind in UNDRAWN:
        if example := next((name for name in names if part in name), None):
            raise CheckpointError(
                f"{file.path} is {kind} ({clip(example)}), which Darkroom does not draw: use a LoRA, LoHa, LoKr, "
                f"GLoRA, IA3 or OFT as kohya's scripts and LyCORIS write them"
            )
    keys = read_keys(names) | numbered(file)
    brought = bundled(file)
    for name in names:
        key: Key | None = keys.get(name)
        if name in brought:
            continue
        if key is None:
            strangers.append(name)
        elif key.slot in slots.setdefault(key.module, {}):
            raise CheckpointError(f"{file.path} holds {key.slot} of {key.module} twice, as {name} too")
        else:
            slots[key.module][key.slot] = name
    if not slots:
        raise CheckpointError(f"{file.path} is no LoRA: its tensors are called {', '.join(strangers[:3]) or 'nothing'}")
    shapes = {name: file.shape(name) for name in names}
    dtypes = {name: file.dtype_name(name) for name in names}
    words: dict[str, dict[str, str]] = {}
    for name, (word, vector) in brought.items():
        words.setdefault(word, {})[vector] = name
    return LoraFile(file.path, slots, tuple(strangers), shapes, dtypes, dict(file.metadata), words)


def read_words(file: TensorFile, scan: LoraFile) -> dict[str, tuple[Tensor, ...]]:
    """The words that come with a LoRA, each with vectors [n, D] float32 for every text encoder of the model it is for.

    Raises CheckpointError for vectors that can't be used.
    """
    from .embedding import bundled_word

    return {
        word: bundled_word(scan.path, word, {part: file.load(name) for part, name in vectors.items()})
        for word, vectors in scan.words.items()
    }


def read_lora(path: str | Path, networks: Mapping[str, nn.Module] | Homes, *, allow_unmatched: bool = False) -> Adapter:
    """Read a LoRA for the networks of a model ("unet", "text_encoder", ...; on `meta` is enough).

    Raises CheckpointError for a file that is no LoRA, broken, made for another base model, not finite, or, unless
    `allow_unmatched`, that has keys for which these networks have no layer; it then says how many, and the first few.
    """
    from ..adapters import Adapter

    homes = networks if isinstance(networks, Homes) else Homes(networks)
    with open_tensors(lora_path(path)) as file:
        scan = scan_lora(file)
        alphas = Alphas(file)
        parts: dict[str, dict[str, Update]] = {}
        taken: dict[Home, str] = {}
        unmatched = list(scan.strangers)
        for module, slots in scan.slots.items():
            home = homes.find(module)
            layer = None if home is None else homes.layers[home]
            if home is None or layer is None or (_needs_bias(slots) and getattr(layer, "bias", None) is None):
                unmatched += slots.values()
                continue
            if home in taken:
                raise CheckpointError(f"{scan.path} holds {module} twice, as {taken[home]} too")
            taken[home] = module
            update = _update(file, scan, module, slots, layer, alphas, homes)
            if update is None:
                unmatched += slots.values()
            else:
                parts.setdefault(home.part, {})[home.path] = update
        _check_base(scan, homes, bool(unmatched))
        if not parts or (unmatched and not allow_unmatched):
            raise CheckpointError(unmatched_sentence(scan.path, unmatched, bool(parts)))
        return Adapter(
            parts=parts,
            name=scan.path.stem if scan.path.name not in FILES else scan.path.resolve().parent.name,
            hash=content_hash(scan.path),
            metadata=scan.metadata,
            unmatched=tuple(unmatched),
            words=read_words(file, scan),
        )


# --- one layer -------------------------------------------------------------------------------------------------------

_GLORA = {"a1", "a2", "b1", "b2", "bm"}
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def _kind(slots: Mapping[str, Any]) -> str:
    kind = "bias"
    if "down" in slots or "up" in slots:
        kind = "lora"
    elif any(slot.startswith("hada_") for slot in slots):
        kind = "loha"
    elif any(slot.startswith("lokr_") for slot in slots):
        kind = "lokr"
    elif "diff" in slots:
        kind = "full"
    elif "oft_blocks" in slots or "rescale" in slots:
        kind = "oft"
    elif "ia3" in slots or "on_input" in slots:
        kind = "ia3"
    elif not _GLORA.isdisjoint(slots):
        kind = "glora"
    return kind + "+dora" * ("magnitude" in slots or "dora_scale" in slots)


def _needs_bias(slots: Mapping[str, str]) -> bool:
    return "bias" in slots or "diff_b" in slots


def _missing(kind: str, slots: Mapping[str, str]) -> str | None:
    """A factor that the others can't do without."""
    if kind == "lora":
        return next((slot for slot in ("down", "up") if slot not in slots), None)
    if kind == "loha":
        return next((slot for slot in _LOHA if slot not in slots), None)
    if kind == "glora":
        return next((slot for slot in ("a1", "a2", "b1", "b2") if slot not in slots), None)
    if kind in ("ia3", "oft"):
        wanted = "ia3" if kind == "ia3" else "oft_blocks"
        return None if wanted in slots else wanted.replace("ia3", "weight")
    if kind == "lokr":
        for w in ("lokr_w1", "lokr_w2"):
            if w not in slots and not {f"{w}_a", f"{w}_b"} <= slots.keys():
                return w
    return None


def layer_tensors(file: TensorFile, module: str, slots: Mapping[str, str]) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of one layer by their slots, and its alpha. CheckpointError for what is no layer's change."""
    tensors = {slot: _plain(file.load(name)) for slot, name in slots.items()}
    for slot, tensor in tensors.items():
        if not tensor.is_floating_point() and slot not in ("alpha", "on_input"):
            raise CheckpointError(f"{file.path}: {slots[slot]} holds no floating-point numbers")
        if slot not in ("alpha", "on_input") and not (tensor.ndim and tensor.numel()):
            raise CheckpointError(f"{file.path} is broken: {slots[slot]} is {list(tensor.shape)}, no factor")
    alpha = tensors.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{file.path}: {slots['alpha']} is {list(alpha.shape)}, not one number")
    if tensors and (missing := _missing(_kind(tensors).removesuffix("+dora"), slots)) is not None:
        raise CheckpointError(f"{file.path} is broken: {module} has no {missing}")
    if "down" in tensors and "mid" not in tensors and tensors["down"].shape[:1] != tensors["up"].shape[1:2]:
        told = ", ".join(f"{slot} {list(tensors[slot].shape)}" for slot in ("down", "up"))
        raise CheckpointError(f"{file.path} is broken: the ranks of {module} ({told}) are not one")
    if "oft_blocks" in tensors:
        if tensors["oft_blocks"].ndim != 3 or len({*tensors["oft_blocks"].shape[1:]}) != 1:
            blocks = list(tensors["oft_blocks"].shape)
            raise CheckpointError(
                f"{file.path} is a BOFT or another kind of OFT ({slots['oft_blocks']} is {blocks}), which Darkroom "
                f"does not draw: use a Diag-OFT"
            )
        if alpha is not None:  # no factor here but the largest norm that a rotation may have, by the layer's outputs
            tensors["constraint"], alpha = alpha.float().reshape(1), None
    if "on_input" in tensors:
        tensors["on_input"] = tensors["on_input"].float()
    if "a1" in tensors and _as_before(tensors):
        swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
        tensors = {swapped.get(slot, slot): tensor for slot, tensor in tensors.items()}
    return tensors, None if alpha is None else float(alpha)


def _as_before(f: Mapping[str, Tensor]) -> bool:
    """Whether a GLoRA's numbers 1 and 2 are the other way round, as LyCORIS wrote them before 2.0."""
    now = f["a1"].shape[1:2] == f["a2"].shape[:1] == f["b1"].shape[1:2] == f["b2"].shape[:1]
    return not now and f["a2"].shape[1:2] == f["a1"].shape[:1] == f["b2"].shape[1:2] == f["b1"].shape[:1]


def _plain(tensor: Tensor) -> Tensor:
    """Numbers of 8 bits in a type that can be reckoned in and holds them all, float16."""
    return tensor.half() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _update(
    file: TensorFile,
    scan: LoraFile,
    module: str,
    slots: Mapping[str, str],
    layer: nn.Module,
    alphas: Alphas,
    homes: Homes,
) -> Update | None:
    """The change of one layer; None if the file says an alpha of it and nothing else."""
    from ..adapters import Update

    tensors, alpha = layer_tensors(file, module, slots)
    if not tensors:
        return None
    weight: Any = layer.weight
    shape = tuple(weight.shape)
    biases = [tensors.pop(slot) for slot in ("bias", "diff_b") if slot in tensors]
    magnitude, scale = tensors.pop("magnitude", None), tensors.pop("dora_scale", None)
    fitted = _fitted(tensors, shape)
    update = Update(fitted or tensors)
    factor = alphas.factor(module, alpha, update.rank)
    if fitted is None or not _fits(update, shape) or any(bias.shape != shape[:1] for bias in biases):
        _check_base(scan, homes, True)
        told = ", ".join(f"{slot} {list(tensor.shape)}" for slot, tensor in tensors.items())
        raise CheckpointError(
            f"{scan.path} is made for another model: {module} ({told or 'bias'}) does not fit a layer of {list(shape)}"
        )
    bias: Tensor | None = None
    if biases:  # PEFT's is scaled with the factors, a plain difference is not
        bias = biases[0] * factor if "bias" in slots else biases[0]
    return Update(fitted, factor, _magnitude(scan, module, magnitude, scale, shape), bias)


def _fitted(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor] | None:
    """Plain factors and differences in the layer's own shape: a linear layer's for a convolution of one pixel, or the
    other way round. None where they can't be."""
    if "diff" in tensors:
        diff = tensors["diff"]
        return {"diff": diff.reshape(shape)} if diff.numel() == math.prod(shape) and len(diff) == shape[0] else None
    if "ia3" in tensors:
        by_input = "on_input" in tensors and bool(tensors["on_input"].any())
        sides = (1, *shape[1:2]) if by_input else (*shape[:1], 1)
        if len(shape) == 1 or tensors["ia3"].numel() != math.prod(sides):
            return None
        return {"ia3": tensors["ia3"].reshape(*sides, *[1] * (len(shape) - 2))}
    if "down" not in tensors:
        return None if len(shape) == 1 and ("oft_blocks" in tensors or "a1" in tensors) else dict(tensors)
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    ones = (1,) * (len(shape) - 2)
    inner = (shape[1], *ones) if mid is not None else shape[1:]
    rank, out = down.shape[0], up.shape[1:2].numel()
    wanted = {"down": (rank, *inner), "up": (shape[0], out, *ones)}
    if mid is not None:
        wanted["mid"] = (out, rank, *shape[2:])
    elif rank != out:
        return None
    if any(
        tensors[slot].numel() != math.prod(size) or tensors[slot].shape[0] != size[0] for slot, size in wanted.items()
    ):
        return None
    if len(shape) == 1 or (mid is not None and len(shape) != 4):
        return None
    return {slot: tensors[slot].reshape(size) for slot, size in wanted.items()}


def _fits(update: Update, shape: tuple[int, ...]) -> bool:
    """Whether the factors' product is a difference of this shape, found out without reckoning it."""
    import torch

    if update.kind in ("lora", "full", "bias"):
        return True
    try:
        product = update.to("meta").product(torch.empty(shape, device="meta"))
    except (RuntimeError, IndexError, ValueError):
        return False
    return product.shape[0] == shape[0] and product.numel() == math.prod(shape)


def _magnitude(
    scan: LoraFile, module: str, vector: Tensor | None, scale: Tensor | None, shape: tuple[int, ...]
) -> Tensor | None:
    """DoRA's magnitude, one an output: [O, 1, ...]; or, as some LyCORIS files have it, one an input: [1, I, ...]."""
    given = vector if vector is not None else scale
    if given is None:
        return None
    ones = (1,) * (len(shape) - 2)
    if len(shape) > 1 and given.numel() == shape[0] and (vector is not None or given.shape[0] == shape[0]):
        return given.reshape(shape[0], 1, *ones)
    if len(shape) > 1 and vector is None and given.numel() == shape[1]:
        return given.reshape(1, shape[1], *ones)
    raise CheckpointError(
        f"{scan.path} is made for another model: {module} has magnitudes {list(given.shape)} "
        f"for a layer of {list(shape)}"
    )


class Alphas:
    """What a layer's factors are multiplied by: alpha / r, from the file's tensors or PEFT's configuration."""

    def __init__(self, file: TensorFile) -> None:
        self.config: dict[str, Any] = {}
        text = file.metadata.get(PEFT_METADATA)
        beside = file.path.with_name("adapter_config.json")
        try:
            if text is not None:
                found = json.loads(text)
                self.config = found if isinstance(found, dict) else {}
            elif file.path.stem == "adapter_model" and beside.is_file():
                self.config = read_json(beside)
        except (ValueError, RecursionError):
            raise CheckpointError(f"{file.path}: its {PEFT_METADATA} is not JSON") from None

    def factor(self, module: str, alpha: float | None, rank: int | None) -> float:
        if alpha is not None:
            return 1.0 if not alpha or rank is None else alpha / rank
        while module.startswith("base_model.model."):
            module = module.removeprefix("base_model.model.")
        starts = [start for start in ("unet.", "text_encoder_2.", "text_encoder.") if module.startswith(start)]
        start = starts[0] if starts and any(key.startswith(starts[0]) for key in self.config) else ""
        path = module.removeprefix(start)
        # PEFT's LoKr alone scales factors that are not decomposed
        named = self._of(path, start, "alpha", "lora_alpha") if rank is not None else None
        alpha = named or self._of(path, start, "alpha" if named else "", "alpha")
        rank = rank or self._of(path, start, "rank", "r")  # type: ignore[assignment]
        if not alpha or not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if self.config.get(start + "use_rslora") is True else rank)

    def _of(self, path: str, start: str, pattern: str, name: str) -> float | None:
        """A number of PEFT's configuration: a layer's own, else everybody's. Its patterns are read as plain names."""
        own = self.config.get(f"{start}{pattern}_pattern")
        for key, value in own.items() if isinstance(own, dict) else ():
            spelled = str(key).lstrip("^").replace("\\.", ".")
            if (path == spelled or path.endswith("." + spelled)) and _is_number(value):
                return float(value)
        everybodys: Any = self.config.get(start + name)
        return float(everybodys) if _is_number(everybodys) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- what does not fit -----------------------------------------------------------------------------------------------


def _check_base(scan: LoraFile, homes: Homes, doubtful: bool) -> None:
    """CheckpointError, saying which, if the file is made for another base model."""
    width, own = scan.text_width, homes.text_width
    if width is not None and own is not None and width != own:
        raise CheckpointError(
            f"{scan.path} is made for {family(width)}; this model is {family(own)}: use it with a model of its own kind"
        )
    if doubtful and any(_TRANSFORMERS.match(module) for module in scan.slots):
        raise CheckpointError(
            f"{scan.path} is made for a diffusion transformer (Flux, Stable Diffusion 3 or the like), not for a U-Net"
        )


def family(width: int) -> str:
    """Which models have a text of this width, for a sentence."""
    name = FAMILIES.get(width)
    return f"{name or 'a custom model'} (text width {width})"


def unmatched_sentence(path: Path, names: Sequence[str], some: bool) -> str:
    first = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    if not some:
        return f"{path}: none of its {len(names)} keys ({first}) fits a layer of this model."
    count = f"{len(names)} key{'s' * (len(names) > 1)}"
    return (
        f"{path} has {count} for which this model has no layer ({first}); "
        f"use a LoRA of this model's kind, or leave them out with allow_unmatched."
    )
