"""Files that Darkroom doesn't load, called by their names: other models, upscalers, adapters, and LoRAs for them.

One table of marks, `KINDS`, and one of bases, `BASES`: regular expressions on the names of a file's tensors, each of
which must be found. Where a name begins is "." or "_", since LoRAs write their layers' names with either. Nothing but
the header of a file is read. Sources: the published files themselves, diffusers' `CHECKPOINT_KEY_NAMES`, spandrel's and
ComfyUI's ways of telling them, ggml's `gguf.md`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .folder import pipeline_class
from .tensors import Glance

_COMFY = "ComfyUI"
_BOTH = "ComfyUI, diffusers"
_UPSCALERS = "Darkroom with the library spandrel, ComfyUI, chaiNNer"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a file is whose tensors' names have all of these in them."""

    what: str
    patterns: tuple[str, ...]
    runs: str = _BOTH  # what runs it

    def found(self, text: str) -> bool:
        """`text`: the names, one a line."""
        return all(_compiled(pattern).search(text) for pattern in self.patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # Every line of a text begins with a dot (`_text`): a class of characters first is searched for quickly.
    return re.compile(rf"(?m){pattern}" if pattern.startswith((r"\A", "^")) else rf"(?m)[._](?:{pattern})")


# Models that are no Stable Diffusion 1, 2 or XL; LoRAs for them have the same layers in their names. The first counts.
BASES = (
    Mark("Flux.2", (r"single_stream_modulation[._]lin",)),
    Mark("Chroma", (r"distilled_guidance_layer[._]",)),
    Mark("HunyuanVideo", (r"txt_in[._]individual_token_refiner[._]|double_blocks[._]\d+[._]img_attn_qkv",)),
    Mark("Flux.1", (r"double_blocks[._]\d+[._]|single_transformer_blocks[._]\d+|single_blocks[._]\d+[._]linear1",)),
    Mark("Stable Diffusion 3", (r"joint_blocks[._]\d+[._]",)),
    Mark("Qwen-Image", (r"transformer_blocks[._]\d+[._](img_mod|txt_mod|img_mlp|txt_mlp)[._]",)),
    Mark("Stable Diffusion 3", (r"transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj",)),
    Mark("AuraFlow", (r"double_layers[._]\d+[._]attn[._]w[12]q",)),
    Mark("HiDream", (r"double_stream_blocks[._]\d+[._]",)),
    Mark("Z-Image", (r"cap_pad_token|layers[._]\d+[._]attention[._]to_[qkv]|layers[._]\d+[._]adaLN_modulation[._]0",)),
    Mark("Lumina 2", (r"cap_embedder[._]\d|noise_refiner[._]\d|layers[._]\d+[._]attention[._]qkv",)),
    Mark(
        "Sana", (r"blocks[._]\d+[._](cross_attn|attn2)[._]", r"blocks[._]\d+[._](mlp|ff)[._](inverted_conv|conv_inv)")
    ),
    Mark("PixArt", (r"blocks[._]\d+[._]cross_attn[._]q_linear",)),
    Mark("PixArt", (r"adaln_single[._]emb[._]", r"pos_embed[._]proj")),
    Mark("LTX-Video", (r"patchify_proj[._]|transformer_blocks[._]\d+[._]scale_shift_table", r"transformer_blocks[._]")),
    Mark("Wan", (r"blocks[._]\d+[._]self_attn[._]q[._]", r"blocks[._]\d+[._](cross_attn|ffn)[._]")),
    Mark("Wan", (r"condition_embedder[._]time_embedder",)),
    Mark("Cosmos", (r"blocks[._]\d+[._]self_attn[._]q_proj|blocks[._]block\d+[._]blocks", r"blocks[._]")),
    Mark("Mochi", (r"blocks[._]\d+[._]attn[._]qkv_x",)),
    Mark("CogVideoX", (r"transformer_blocks[._]\d+[._]norm1[._]linear", r"patch_embed[._](proj|text_proj)")),
    Mark("Hunyuan-DiT", (r"mlp_t5[._]\d|blocks[._]\d+[._]attn1[._]Wqkv",)),
    Mark("Stable Cascade", (r"clip_txt_mapper[._]|effnet_mapper[._]|down_blocks[._]\d+[._]\d+[._]channelwise",)),
    Mark("Stable Video Diffusion", (r"time_stack[._]|temporal_transformer_blocks[._]",)),
    Mark("Kolors", (r"encoder_hid_proj[._]weight",)),
    Mark("Kandinsky 5", (r"visual_transformer_blocks[._]\d+[._]",)),
    Mark("Stable Audio", (r"conditioner[._]conditioners[._]", r"pretransform[._]")),
)

# What goes beside a model, of whatever base. The first counts.
ADAPTERS = (
    Mark("Control-LoRA (a ControlNet as changes of a U-Net)", (r"lora_controlnet$",), _COMFY),
    Mark("ControlNet-LLLite", (r"lllite_",), _COMFY),
    Mark("IP-Adapter", (r"ip_adapter[._].*to_[kv]_ip|double_blocks[._]\d+[._]processor[._]ip_adapter",)),
    Mark("PhotoMaker adapter", (r"id_encoder[._]",)),
    Mark("AnimateDiff motion module", (r"motion_modules[._]\d+[._]temporal_transformer",)),
    Mark("T2I-Adapter", (r"(adapter[._])?body[._]\d+[._](in_conv|block1|resnets|body)[._]", r"conv_in[._]")),
    Mark("GLIGEN adapter", (r"position_net[._]", r"fuser[._]")),
    Mark("hypernetwork", (r"(320|640|768|1024|1280|2048)\.[01]\.linear[._]?\d*",), "A1111, ComfyUI"),
)

# What else is no model. The first counts.
KINDS = (
    Mark(
        "upscaler (HAT)", (r"layers[._]0[._]residual_group[._](overlap_attn|blocks[._]\d+[._]conv_block)",), _UPSCALERS
    ),
    Mark("upscaler (ATD)", (r"layers[._]0[._]residual_group[._]layers[._]\d+[._]attn_atd",), _UPSCALERS),
    Mark("upscaler (DRCT)", (r"layers[._]0[._]swin1[._]",), _UPSCALERS),
    Mark("upscaler (SwinIR)", (r"layers[._]0[._]residual_group[._]blocks[._]0[._]norm1",), _UPSCALERS),
    Mark("upscaler (DAT)", (r"layers[._]0[._]blocks[._]0[._]attn[._]attns",), _UPSCALERS),
    Mark("upscaler (OmniSR)", (r"residual_layer[._]0[._]residual_layer[._]0[._]layer",), _UPSCALERS),
    Mark("upscaler (RealPLKSR)", (r"feats[._]\d+[._](lk|channel_mixer)[._]",), _UPSCALERS),
    Mark("upscaler (Real-CUGAN)", (r"unet1[._]conv1[._]conv[._]0",), _UPSCALERS),
    Mark("face restorer (GFPGAN)", (r"stylegan_decoder[._]",), "A1111, chaiNNer"),
    Mark("face restorer (CodeFormer)", (r"fuse_convs_dict[._]", r"ft_layers[._]"), "A1111, chaiNNer"),
    Mark(
        "T5 text encoder (UMT5)", (r"encoder[._]block[._]1[._]layer[._]0[._]SelfAttention[._]relative_attention_bias",)
    ),
    Mark("T5 text encoder", (r"encoder[._]block[._]0[._]layer[._]0[._]SelfAttention[._]q|enc\.blk\.0\.attn_q",)),
    Mark("CLIP (text and pictures)", (r"vision_model[._]embeddings", r"text_model[._]embeddings"), "transformers"),
    Mark("CLIP vision encoder", (r"vision_model[._]embeddings[._]class_embedding|visual[._]class_embedding",)),
    Mark("SigLIP vision encoder", (r"vision_model[._]embeddings[._]patch_embedding",)),
    Mark("CLIP text encoder", (r"(text_model[._])?encoder[._]layers[._]0[._]self_attn", r"token_embedding[._]weight")),
    Mark("CLIP text encoder (OpenCLIP's names)", (r"transformer[._]resblocks[._]0[._]", r"token_embedding[._]weight")),
    Mark("DINO vision encoder", (r"embeddings[._]cls_token", r"encoder[._]layer[._]0[._]")),
    Mark("language model", (r"model\.layers\.0\.(self_attn\.q_proj|mlp)|blk\.0\.attn_q",), "transformers, llama.cpp"),
    Mark("autoencoder (VAE) of videos", (r"(encoder|decoder)[._](middle|downsamples|conv1)[._].*gamma|time_conv[._]",)),
    Mark("autoencoder (VAE) of Sana (DC-AE)", (r"(encoder|decoder)[._]stages[._]\d+[._]",)),
)

# Those that Darkroom does load, beside a model or as parts of one: what to say where a whole model is wanted.
OURS = (
    Mark(
        "a LoRA, not a whole model: give it with --lora beside a model",
        (r"lora_(up|down|A|B)[._]|lora[._]|(hada|lokr)_w1",),
    ),
    Mark(
        "a ControlNet, not a whole model: give it with --control beside a model",
        (r"control_model[._]|controlnet_cond_embedding[._]|input_hint_block[._]",),
    ),
    Mark(
        "a textual-inversion embedding, not a whole model: give it with --embedding beside a model",
        (r"emb_params|string_to_param",),
    ),
    Mark(
        "an upscaler, not a whole model: give it with --upscaler to upscale",
        (
            r"model\.1\.sub\.\d+\.RDB1\.conv1|(RRDB_trunk|body)[._]\d+[._](RDB|rdb)1[._]conv1|block_1[._]c1_r[._]"
            r"|\A(?:\.(?:params(?:_ema)?\.)?body\.\d+\.(?:weight|bias)\n?)+\Z",
        ),
    ),
    Mark(
        "one U-Net in diffusers' layout: put it as unet/ into a diffusers folder",
        (r"down_blocks[._]0[._]attentions[._]",),
    ),
    Mark(
        "one U-Net in LDM's layout, without its autoencoder and text encoder",
        (r"diffusion_model[._]input_blocks[._]0",),
    ),
    Mark(
        "one autoencoder in diffusers' layout: put it as vae/ into a diffusers folder, or give it with --vae",
        (r"(en|de)coder[._](down|up)_blocks[._]",),
    ),
    Mark("an autoencoder alone, not a whole model: give it with --vae beside a model", (r"encoder[._]down[._]\d",)),
    Mark(
        "a tiny autoencoder (TAESD), not a whole model: give it with --vae or --preview beside a model",
        (r"^\.(taesd_)?(en|de)coder\.(layers\.)?\d+\.(weight|conv)",),
    ),
)

# The first parts of the names of a whole model of ours: what else is among them is a part of it.
_STABLE_DIFFUSION = r"(?:model\.)?diffusion_model\.input_blocks[._]|model_ema[._]diffusion_modelinput_blocks"
_CONTROLNET = r"controlnet_(?:single_)?blocks[._]\d|control_layers[._]\d|control_all_x_embedder"
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # of a text
# Folders that have a unet/ and are none of ours.
_FOLDERS = (
    "Kandinsky",
    "IF",
    "Wuerstchen",
    "StableCascade",
    "AnimateDiff",
    "Kolors",
    "StableVideo",
    "StableDiffusion3",
)


@dataclass(frozen=True, slots=True)
class Other:
    """A file, or a folder of diffusers', that Darkroom doesn't load."""

    path: Path
    what: str  # "Flux.1 model", "LoRA for Flux.1", "upscaler (SPAN)"
    base: str  # the model it is for or of; "" where nothing tells
    runs: str  # what runs it
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    fault: str | None = None

    def describe(self, with_hash: bool = False) -> dict[str, Any]:
        """Ready for JSON. Keys: name, path, kind, base, runs, size (bytes), tensors, parameters, dtypes, fault."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        dtypes = Counter(dtype for _, dtype in self.tensors.values())
        return {
            "name": self.path.name if self.path.is_dir() else self.path.stem,
            "path": str(self.path),
            "kind": self.what,
            "base": self.base or None,
            "runs": self.runs,
            "size": sum(file.stat().st_size for file in files if file.is_file()),
            "tensors": len(self.tensors),
            "parameters": sum(math.prod(shape) for shape, _ in self.tensors.values()),
            "dtypes": dict(dtypes.most_common()),
            "fault": self.fault,
        }


def tell(seen: Glance) -> Other | None:
    """What a path holds that Darkroom doesn't load; None where it is of a kind that it does, or of none that is known.

    Never raises.
    """
    if seen.path.is_dir():
        return _tell_folder(seen.path)
    mark = _mark(seen.tensors)
    if mark is not None:
        base = next((each.what for each in BASES if each.what in mark.what), "") or _base_of(seen)
        what, runs = (
            (f"{mark.what}, in GGUF", "ComfyUI-GGUF, stable-diffusion.cpp") if seen.is_gguf else (mark.what, "")
        )
        return Other(seen.path, what, base, runs or mark.runs, seen.tensors, seen.fault)
    if seen.is_gguf:
        whole = any(re.match(_STABLE_DIFFUSION, name) for name in seen.tensors)
        what = "Stable Diffusion model" if whole else "model of a kind that isn't known"
        runs = "stable-diffusion.cpp, ComfyUI-GGUF"
        return Other(seen.path, f"{what}, in GGUF", _base_of(seen), runs, seen.tensors, seen.fault)
    return None


def open_other(path: Path) -> Other:
    """The same of a path that is known to be one. Raises CheckpointError where it isn't."""
    found = tell(Glance(path))
    if found is None:
        raise CheckpointError(f"{path} is of no kind that Darkroom knows")
    return found


def named(names: Iterable[str]) -> str | None:
    """What a file of tensors with these names is, if no whole model of ours: the rest of a sentence, "a ..."."""
    names = list(names)
    if (told := foreign(names)) is not None:
        return told
    text = _text(names)
    if re.search(rf"(?m)^\.(?:{_STABLE_DIFFUSION})", text):
        return None
    return next((mark.what for mark in OURS if mark.found(text)), None)


def foreign(names: Iterable[str]) -> str | None:
    """The same, if it is something that Darkroom doesn't load."""
    mark = _mark(names)
    if mark is None:
        return None
    article = "an" if mark.what[0] in "aeioAEIO" else "a"
    return f"{article} {mark.what}, which Darkroom does not load ({mark.runs} can)"


def lora_base(names: Iterable[str]) -> str | None:
    """The model that a LoRA is for, if that is none of ours."""
    text = _text(names)
    return next((mark.what for mark in BASES if mark.found(text)), None)


def _text(names: Iterable[str]) -> str:
    """The names, one a line after a dot; of those that differ by numbers above 1 alone, the first."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(re.sub(r"(?<=[._])(?:[2-9]|\d\d+)(?=[._]|\Z)", "#", name), name)
    return "\n".join(f".{name}" for name in first.values())


def _mark(names: Iterable[str]) -> Mark | None:
    """The row of the tables that a file of these names is; None: of none, or a part of a model of ours."""
    text = _text(names)
    base = next((mark for mark in BASES if mark.found(text)), None)
    adapter = next((mark for mark in ADAPTERS if mark.found(text)), None)
    if adapter is not None:
        return adapter if base is None else replace(adapter, what=f"{adapter.what} for {base.what}")
    if base is not None:
        kinds = ((OURS[0].patterns[0], "LoRA"), (_CONTROLNET, "ControlNet"))
        kind = next((kind for pattern, kind in kinds if _compiled(pattern).search(text)), None)
        return replace(base, what=f"{base.what} model" if kind is None else f"{kind} for {base.what}")
    if re.search(rf"(?m)^\.(?:{_STABLE_DIFFUSION})", text):
        return None
    return next((mark for mark in KINDS if mark.found(text)), None)


def _tell_folder(path: Path) -> Other | None:
    name = pipeline_class(path)
    if name is None or not ((path / "transformer").is_dir() or name.startswith(_FOLDERS)):
        return None
    base = re.sub(r"(Img2Img|Inpaint|Control|ControlNet|Fill|Edit|Prior|Decoder)*Pipeline\Z", "", name)[:60]
    return Other(path, f"diffusers folder of a {name[:60]}", base, "diffusers", {})


def _base_of(seen: Glance) -> str:
    """Which Stable Diffusion something goes beside, by the width of the text it reads, or of the picture it sees."""
    key = r"to_[kv]_ip\.weight\Z|attn2[._]to_k[._](weight|lora_down)|\A(768|1024)\.[01]\.linear"
    widths = {shape[-1] for name, (shape, _) in seen.tensors.items() if len(shape) == 2 and re.search(key, name)}
    if found := next((base for width, base in _WIDTHS.items() if width in widths), ""):
        return found
    side = next((shape[1] for name, (shape, _) in seen.tensors.items() if name.endswith("conv_in.weight")), 0)
    # a T2I-Adapter sees squares of 8 pixels a side, or of 16, in grey or in colour
    return {64: _WIDTHS[768], 192: _WIDTHS[768], 256: _WIDTHS[2048], 768: _WIDTHS[2048]}.get(side, "")
