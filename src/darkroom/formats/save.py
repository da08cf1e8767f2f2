"""Models out: an ordinary diffusers folder, or a single file in the layout of the original LDM code; and a whole CLIP,
in the form of transformers' CLIPModel: both encoders, their scale, tokenizer and processor.

`entries_of` writes any network under any layout's names; ControlNets and autoencoders use it as well.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import CheckpointError
from ..files import whole_file, whole_folder, write_json
from ..models.config import TextEncoderConfig, TinyAutoencoderConfig, UNetConfig, VisionEncoderConfig
from .folder import DEFAULTS_FILE, SUBFOLDERS, TOKENIZER_FILES, is_tokenizer, tokenizer_of
from .layouts import Layout, Part, table
from .rules import Config, Place, ToldConfig
from .weights import METADATA, in_file_shape
from .writer import Entry, write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CLIP_VOCABULARY = 49408  # tokens; readers of single files bring this vocabulary themselves

_PIPELINES = {
    4: "StableDiffusionPipeline",
    5: "StableDiffusionDepth2ImgPipeline",
    7: "StableDiffusionUpscalePipeline",
    8: "StableDiffusionInstructPix2PixPipeline",
    9: "StableDiffusionInpaintPipeline",
}
_SDXL_PIPELINES = {8: "StableDiffusionXLInstructPix2PixPipeline", 9: "StableDiffusionXLInpaintPipeline"}
_DIFFUSERS_VERSION = "0.38.0"  # whose conventions the folder follows
_FILES: dict[Part, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "autoencoder": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


class Tensors(Protocol):
    """Tensors under native names, loaded when asked for (`formats.weights.PartTensors` is one)."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def load(self, name: str) -> Tensor: ...


class SavesTokenizer(Protocol):
    """A tokenizer that writes its own folder (`prompts.Tokenizer` is one)."""

    def save(self, folder: Path) -> None: ...


State: TypeAlias = "Mapping[str, Tensor] | Tensors"  # native names, as of a network's state_dict()
TokenizerSource: TypeAlias = "Path | SavesTokenizer"  # a tokenizer's folder to copy from, or what writes one


class _Given:
    """A state dictionary as `Tensors`."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def load(self, name: str) -> Tensor:
        return self._state[name]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is written of a model: its networks under native names, and all that is said beside them."""

    configs: Mapping[Part, ToldConfig]
    states: Mapping[Part, State]
    tokenizers: Mapping[Part, TokenizerSource]  # of the text encoders; a single file needs none that is CLIP's own
    scheduler_config: Mapping[str, Any]
    low_res_scheduler_config: Mapping[str, Any] | None = None  # of upscalers
    zero_negative: bool = False  # SDXL's empty negative prompt means zeros
    defaults: Mapping[str, float] = field(default_factory=dict)  # steps, guidance_scale: what suits the model

    @property
    def unet(self) -> UNetConfig:
        """The U-Net's configuration, which says what kind of model it is."""
        config = self.configs["unet"]
        assert isinstance(config, UNetConfig)
        return config

    @property
    def text(self) -> TextEncoderConfig:
        """The first text encoder's."""
        config = self.configs["text_encoder"]
        assert isinstance(config, TextEncoderConfig)
        return config


def save_folder(path: str | Path, model: Contents, dtype: torch.dtype | None = None) -> Path:
    """Write a model as a diffusers folder, which diffusers opens unmodified; whole or not at all.

    `dtype` converts the networks (in 8 bits: matrices and convolutions, the rest in float16). What suits the model goes
    into `darkroom.json`, which others pass over. A model folder at `path` is replaced; anything else there raises
    CheckpointError, as does a full disk.
    """
    target = Path(os.path.abspath(path))
    places = dict(SUBFOLDERS)
    if model.text.projection and "text_encoder_2" not in model.configs:  # SDXL's refiner has another's second alone
        places["text_encoder"] = SUBFOLDERS["text_encoder_2"]
    with whole_folder(target, "model_index.json") as draft:
        for part, config in model.configs.items():
            folder = draft / places[part]
            folder.mkdir()
            write_json(folder / "config.json", _as_published(config.to_diffusers()))
            entries = entries_of(part, "diffusers", model.states[part], config, dtype, target)
            write_safetensors(folder / _FILES[part], entries, {"format": "pt"})
            if part in model.tokenizers:
                tokenizer_of(folder).mkdir()
                write_tokenizer(model.tokenizers[part], tokenizer_of(folder))
        schedulers = {"scheduler": model.scheduler_config, "low_res_scheduler": model.low_res_scheduler_config}
        for name, content in schedulers.items():
            if content is not None:
                (draft / name).mkdir()
                write_json(draft / name / "scheduler_config.json", content)
        if model.defaults:
            write_json(draft / DEFAULTS_FILE, dict(model.defaults))
        index = _model_index(model.unet.in_channels, model.scheduler_config, model.low_res_scheduler_config)
        if model.unet.size_conditioning:
            index = _sdxl_index(index, [places[part] for part in model.tokenizers], model.zero_negative)
        write_json(draft / "model_index.json", index)
    return target


def save_single_file(path: str | Path, model: Contents, dtype: torch.dtype | None = None) -> Path:
    """Write a model as one .safetensors file in LDM layout, which the ecosystem's tools open; whole or not at all.

    `dtype` as in `save_folder`. Configurations are noted in the file's metadata, since shapes don't tell all; so is a
    vocabulary other than CLIP's own. Raises CheckpointError if the file can't be written.
    """
    target = Path(os.path.abspath(path))
    if isinstance(model.configs["autoencoder"], TinyAutoencoderConfig):
        raise CheckpointError(f"{target}: a tiny autoencoder has no place in a single file; save a folder")
    layouts: dict[Part, Layout] = {"text_encoder_2": "sdxl_openclip"}
    layouts["text_encoder"] = "openclip" if model.text.hidden_act == "gelu" else "ldm"
    if model.unet.size_conditioning:
        layouts["text_encoder"] = "sdxl_openclip" if model.text.projection else "sdxl_clip"
    notes: dict[str, Any] = {part: config.to_diffusers() for part, config in model.configs.items()}
    notes["scheduler"] = dict(model.scheduler_config)
    if model.low_res_scheduler_config is not None:
        notes["low_res_scheduler"] = dict(model.low_res_scheduler_config)
    if model.defaults:
        notes["defaults"] = dict(model.defaults)
    if model.text.vocab_size != CLIP_VOCABULARY:
        for part, tokenizer in model.tokenizers.items():
            notes[part.replace("text_encoder", "tokenizer")] = _tokenizer_texts(tokenizer)
    if model.unet.size_conditioning:
        notes["pipeline"] = {"force_zeros_for_empty_prompt": model.zero_negative}
    metadata = {"format": "pt", METADATA: json.dumps(notes, sort_keys=True)}
    prediction = model.scheduler_config.get("prediction_type", "epsilon")
    edm = str(model.scheduler_config.get("_class_name")).startswith("EDM")
    if prediction in ("epsilon", "v_prediction") and not edm:
        metadata["modelspec.prediction_type"] = prediction.removesuffix("_prediction")
    entries = [
        entry
        for part, config in model.configs.items()
        for entry in entries_of(part, layouts.get(part, "ldm"), model.states[part], config, dtype, target)
    ]
    if layouts["text_encoder"] == "openclip" and model.text.num_hidden_layers == 23:
        entries += _unused_layer(entries)
    if model.unet.size_conditioning:
        entries += _marks(model, target)
    with whole_file(target) as draft:
        write_safetensors(draft, entries, metadata)
    return target


def entries_of(
    part: Part, layout: Layout, state: State, config: Config, dtype: torch.dtype | None, path: Path
) -> list[Entry]:
    """A network's tensors as a layout has them."""
    tensors: Tensors = _Given(state) if isinstance(state, Mapping) else state
    try:
        places = table(part, layout, tensors.names(), config)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from None
    groups: dict[str, list[tuple[str, Place]]] = {}
    for name, place in places.items():
        groups.setdefault(place.name, []).append((name, place))
    return [_entry(key, group, tensors, dtype) for key, group in groups.items()]


def _entry(key: str, group: list[tuple[str, Place]], tensors: Tensors, dtype: torch.dtype | None) -> Entry:
    names = [name for name, place in sorted(group, key=lambda member: member[1].third or 0)]
    shape = in_file_shape(tensors.shape(names[0]), group[0][1])

    def load() -> Tensor:
        import torch

        parts = [tensors.load(name) for name in names]
        if group[0][1].transposed:
            return parts[0].T.contiguous()
        return (parts[0] if len(parts) == 1 else torch.cat([part.cpu() for part in parts])).reshape(shape)

    return Entry(key, shape, _in_bits(dtype, shape) or tensors.dtype(names[0]), load)


def _in_bits(dtype: torch.dtype | None, shape: tuple[int, ...]) -> torch.dtype | None:
    """The type a tensor is written in. Of a network in 8 bits, matrices and convolutions are: the vectors (biases,
    norms) are a hundredth of it and would lose most."""
    if dtype is None or dtype.itemsize > 1 or len(shape) > 1:
        return dtype
    import torch

    return torch.float16


def _marks(model: Contents, path: Path) -> list[Entry]:
    """The keys by which tools tell what an SDXL model predicts and is told of noise."""
    import torch

    from .scheduler_config import marks_of

    vae = model.configs["autoencoder"]
    values = marks_of(model.scheduler_config, getattr(vae, "latents_mean", None), getattr(vae, "latents_std", None))
    if values is None:
        raise CheckpointError(f"{path}: no single file tells this kind of EDM model; save a folder")
    made = {name: torch.tensor(numbers, dtype=torch.float32, device="cpu") for name, numbers in values.items()}
    made |= {name: mark.view(1, -1, 1, 1) for name, mark in made.items() if mark.numel() > 1}
    return [Entry(name, tuple(mark.shape), mark.dtype, mark.clone) for name, mark in made.items()]


def _unused_layer(entries: list[Entry]) -> list[Entry]:
    """OpenCLIP's 24th layer, which SD 2.x never uses and other tools expect to find: a copy of the 23rd."""
    last = "cond_stage_model.model.transformer.resblocks.22."
    return [
        Entry(entry.name.replace(".22.", ".23.", 1), entry.shape, entry.dtype, entry.load)
        for entry in entries
        if entry.name.startswith(last)
    ]


_PER_LEVEL = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim", "only_cross_attention")


def _as_published(config: Mapping[str, Any]) -> dict[str, Any]:
    """One value where all levels have the same, as published folders have it: some of diffusers' tools need that.

    Not so where `only_cross_attention` is true: as one value, diffusers takes it to mean the middle too.
    """
    same = {
        name: config[name][0]
        for name in _PER_LEVEL
        if isinstance(config.get(name), list) and len(set(config[name])) == 1 and config[name][0] is not True
    }
    return {**config, **same}


def _model_index(
    in_channels: int, scheduler: Mapping[str, Any], low_res_scheduler: Mapping[str, Any] | None
) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": _PIPELINES.get(in_channels, _PIPELINES[4]),
        "_diffusers_version": _DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler.get("_class_name", "PNDMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if in_channels != 7:
        index["requires_safety_checker"] = False
    if low_res_scheduler is not None:
        index["low_res_scheduler"] = ["diffusers", low_res_scheduler.get("_class_name", "DDPMScheduler")]
    return index


def _sdxl_index(index: Mapping[str, Any], encoders: list[str], zero_negative: bool) -> dict[str, Any]:
    """The `model_index.json` of an SDXL with these text encoders: both, or (the refiner) the second alone."""
    left_out = ("safety_checker", "requires_safety_checker")
    index = {name: value for name, value in index.items() if name not in left_out}
    index |= {"image_encoder": [None, None], "force_zeros_for_empty_prompt": zero_negative}
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    for name, kind in kinds.items():
        there = name in encoders
        index[name] = ["transformers", kind] if there else [None, None]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"] if there else [None, None]
    if len(encoders) == 1:
        return index | {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    channels = {kind: n for n, kind in _PIPELINES.items()}[index["_class_name"]]
    return index | {"_class_name": _SDXL_PIPELINES.get(channels, "StableDiffusionXLPipeline")}


def write_tokenizer(tokenizer: TokenizerSource, folder: Path) -> None:
    """Write a tokenizer's files into a folder. CheckpointError where the source has none."""
    if not isinstance(tokenizer, Path):
        tokenizer.save(folder)
        return
    found = [name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
    if not is_tokenizer(found):
        raise CheckpointError(f"{tokenizer} is no tokenizer's folder: it has no vocab.json and merges.txt")
    for name in found:
        shutil.copyfile(tokenizer / name, folder / name)


def _tokenizer_texts(tokenizer: TokenizerSource) -> dict[str, str]:
    """The files of a tokenizer, name -> text."""
    with tempfile.TemporaryDirectory(prefix="darkroom-tokenizer-") as place:
        write_tokenizer(tokenizer, Path(place))
        files = (Path(place, name) for name in TOKENIZER_FILES)
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}


# --- a whole CLIP ----------------------------------------------------------------------------------------------------


MEAN = (0.48145466, 0.4578275, 0.40821073)  # that CLIP's pictures are normalised by
STD = (0.26862954, 0.26130258, 0.27577711)


def save_clip(
    path: str | Path,
    *,
    text_encoder: State,
    text_encoder_config: TextEncoderConfig,
    image_encoder: State,
    image_encoder_config: VisionEncoderConfig,
    logit_scale: float,
    tokenizer: TokenizerSource,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a CLIP as the folder that transformers' CLIPModel and CLIPProcessor open; whole or not at all.

    States are in native names, the text encoder's with its projection; `logit_scale` is the logarithm of the scale. An
    older folder of a model at `path` is replaced. Raises CheckpointError.
    """
    target = Path(os.path.abspath(path))
    side = image_encoder_config.image_size
    entries = [
        *entries_of("text_encoder_2", "diffusers", text_encoder, text_encoder_config, dtype, target),
        *entries_of("image_encoder", "diffusers", image_encoder, image_encoder_config, dtype, target),
        _scale(logit_scale),
    ]
    with whole_folder(target, "config.json") as draft:
        write_json(draft / "config.json", {
            "architectures": ["CLIPModel"], "model_type": "clip", "logit_scale_init_value": 2.6592,
            "projection_dim": image_encoder_config.projection_dim, "torch_dtype": "float32",
            "text_config": text_encoder_config.to_diffusers(), "vision_config": image_encoder_config.to_diffusers(),
        })  # fmt: skip
        write_json(draft / "preprocessor_config.json", {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
            "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": {"height": side, "width": side},
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(MEAN),
            "image_std": list(STD),
        })  # fmt: skip
        write_tokenizer(tokenizer, draft)
        write_safetensors(draft / "model.safetensors", entries, {"format": "pt"})
    return target


def _scale(logit_scale: float) -> Entry:
    import torch

    return Entry("logit_scale", (), torch.float32, lambda: torch.tensor(logit_scale))
