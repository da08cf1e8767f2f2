"""Stand-alone autoencoders: told by their content, and put in place of a model's own.

| what                             | its keys                                                            |
|----------------------------------|---------------------------------------------------------------------|
| diffusers folder, or a model's   | as in its `config.json`, which is an AutoencoderKL or AutoencoderTiny |
| diffusers file                   | `encoder.down_blocks...` or, tiny, `encoder.layers...`              |
| LDM file                         | `encoder.down...`                                                   |
| TAESD's own two files            | `taesd_encoder`, `taesd_decoder`: `0.weight`, `1.conv.0.weight`, ...  |
| both in one                      | `encoder.0.weight` (or `taesd_encoder...`), `decoder.1.weight`, ...   |

The keys of files may begin with `first_stage_model.` or `vae.`; a whole model's file gives its autoencoder.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from ..files import read_json, whole_folder, write_json
from ..models.config import AutoencoderConfig, TinyAutoencoderConfig
from . import detect, folder
from .checkpoint import Checkpoint
from .folder import network_config, sentences
from .hub import resolve
from .layouts import Layout, Part, canonical
from .save import State, entries_of
from .tensors import Glance, open_tensors
from .weights import Artifact, Weights
from .writer import write_safetensors

if TYPE_CHECKING:
    import torch

PART: Part = "autoencoder"
_STARTS = ("first_stage_model.", "vae.", "")
# that no other network has
_MARKS = ("encoder.down", "decoder.up", "encoder.layers.", "decoder.layers.")
_BOTH = ("encoder.0.weight", "decoder.1.weight")  # TAESD's halves in one file, as its author numbers their layers
_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_HALVES = (("encoder", "decoder"), ("decoder", "encoder"))
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(eq=False, kw_only=True)
class Vae(Artifact):
    """A stand-alone autoencoder."""

    title = "autoencoder (VAE)"
    scaled: bool  # whether its configuration says how latents are scaled; else the model's own does

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        return cast(AutoencoderConfig, self.configs[PART])

    @property
    def facts(self) -> dict[str, Any]:
        config = self.autoencoder_config
        return {"latent_channels": config.latent_channels, "downscale": config.downscale}


def _found(path: Path, kind: str, config: AutoencoderConfig, weights: Weights, scaled: bool = True) -> Vae:
    if isinstance(config, TinyAutoencoderConfig):
        kind = f"tiny (TAESD), {kind}"
    return Vae(path=path, kind=kind, configs={PART: config}, weights={PART: weights}, scaled=scaled)


def with_vae(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """The checkpoint with another autoencoder. CheckpointError where that can't decode what the model draws."""
    vae, own = open_vae(source), checkpoint.autoencoder_config
    config = vae.autoencoder_config
    if not vae.scaled:
        scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        config = dataclasses.replace(config, **{name: getattr(own, name) for name in scaling})
    for what, theirs, ours in (
        ("latents of {} channels", config.latent_channels, own.latent_channels),
        ("latent pixels of {0} x {0}", config.downscale, own.downscale),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"{vae.path} is an autoencoder of {what.format(theirs)}, and {checkpoint.name} has "
                f"{what.format(ours)}: choose one of its own family"
            )
    configs = {**checkpoint.configs, PART: config}
    weights = {**checkpoint.weights, **vae.weights}
    return dataclasses.replace(checkpoint, configs=configs, weights=weights, vae=vae.path, _digests={})


def is_vae(seen: Glance) -> bool:
    """Whether a folder or a file holds an autoencoder and nothing else, broken or not."""
    if seen.config.get("_class_name") in _CLASSES:
        return True
    if seen.path.is_dir():
        return not (seen.path / "model_index.json").exists() and bool(_encoders(seen.path))
    if seen.shapes and all(re.match(r"\d+\.", name) for name in seen.shapes):  # half of the original tiny one
        return True
    if _is_both(seen.shapes):
        return True
    return any(
        seen.has(*(start + mark for mark in _MARKS)) and all(name.startswith(start) for name in seen.shapes)
        for start in _STARTS
    )


def _is_both(names: Collection[str]) -> bool:
    """Whether both halves of the original tiny autoencoder lie in one file, and nothing else does."""
    plain = {canonical(PART, "taesd", name) for name in names}
    known = ("encoder.", "decoder.", "vae_s")
    return plain.issuperset(_BOTH) and all(name.startswith(known) for name in plain)


def open_vae(source: str | Path) -> Vae:
    """Find out what a stand-alone autoencoder is. CheckpointError, in one sentence, where it is none."""
    path = resolve(source)
    return _open_folder(path) if path.is_dir() else _open_file(path)


def save_vae(
    path: str | Path,
    state: State,
    config: AutoencoderConfig,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an autoencoder as the folder that diffusers' AutoencoderKL opens; whole or not at all.

    `state` is in native names; `dtype` converts it; `metadata` is noted in the file. An older
    autoencoder's folder at `path` is replaced. Raises CheckpointError.
    """
    target = Path(os.path.abspath(path))
    with whole_folder(target, "config.json") as draft:
        write_json(draft / "config.json", config.to_diffusers())
        entries = entries_of("autoencoder", "diffusers", state, config, dtype, target)
        write_safetensors(draft / "diffusion_pytorch_model.safetensors", entries, {"format": "pt", **(metadata or {})})
    return target


def _open_folder(path: Path) -> Vae:
    place = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if (place / "config.json").is_file():
        weights = Weights(folder.weights_file(place), "diffusers")
        return _found(path, "diffusers folder", _published(place / "config.json"), weights)
    if halves := _encoders(path):
        return _open_file(halves[0])
    raise CheckpointError(f"{path} holds no autoencoder: it has no config.json and no taesd_encoder file")


def _encoders(folder: Path) -> list[Path]:
    """The files of a folder that are called as the original tiny autoencoder's encoder."""
    try:
        return [file for file in sorted(folder.iterdir()) if file.is_file() and re.search("taesd.*encoder", file.name)]
    except OSError:  # whoever opens it says so
        return []


def _published(file: Path) -> AutoencoderConfig:
    content = read_json(file)
    kind = content.get("_class_name")
    if kind not in _CLASSES:
        raise CheckpointError(f"{file} is of a {kind!r}; an autoencoder is one of {', '.join(_CLASSES)}")
    config = network_config("autoencoder", content, str(file))
    assert isinstance(config, AutoencoderConfig)
    return config


def _open_file(path: Path) -> Vae:
    with open_tensors(path) as file:
        names = file.names()
        start = next((s for s in _STARTS if any(n.startswith((s + "encoder.", s + "decoder.")) for n in names)), "")
        shapes = {name.removeprefix(start): file.shape(name) for name in names if name.startswith(start)}
    if all(re.match(r"\d+\.", name) for name in shapes):
        return _open_halves(path)
    if _is_both(shapes):
        with sentences(str(path)):
            tiny = _tiny_config({canonical(PART, "taesd", name): shape for name, shape in shapes.items()}, path)
        return _found(path, "original file", tiny, Weights(path, "taesd"))
    beside = path.parent / "config.json"
    weights = Weights(path, "diffusers", start=start)
    if beside.is_file() and read_json(beside).get("_class_name") in _CLASSES:
        return _found(path, "diffusers file", _published(beside), weights)
    with sentences(str(path)):
        if any(name.startswith("encoder.layers.") for name in shapes):
            short = {name.replace(".layers.", ".", 1): shape for name, shape in shapes.items()}
            return _found(path, "diffusers file", _tiny_config(short, path), weights)
        layout: Layout = "ldm" if any(name.startswith("encoder.down.") for name in shapes) else "diffusers"
        config = detect.autoencoder_config(detect.as_native(PART, layout, shapes), upscaler=False)
    if config is None:
        first = ", ".join(list(shapes)[:3]) or "nothing"
        raise CheckpointError(f"{path} holds no autoencoder: its tensors are called {first}")
    kind = "LDM file" if layout == "ldm" else "diffusers file"
    return _found(path, kind, config, dataclasses.replace(weights, layout=layout), False)


def _open_halves(path: Path) -> Vae:
    """The original tiny autoencoder, from either of its two files."""
    for this, that in _HALVES:
        if this in path.name:
            other = path.with_name(path.name.replace(this, that))
            if not other.is_file():
                raise CheckpointError(f"{path} is the {this} of a tiny autoencoder; put its {other.name} beside it")
            encoder, decoder = (path, other) if this == "encoder" else (other, path)
            weights = Weights(encoder, "taesd", second=decoder)
            with weights.open() as file, sentences(str(path)):
                config = _tiny_config({name: file.shape(name) for name in file.names()}, path)
            return _found(path, "original files", config, weights)
    raise CheckpointError(
        f"{path} seems to be half of a tiny autoencoder; its name must say which: taesd_encoder or taesd_decoder"
    )


def _tiny_config(shapes: Shapes, path: Path) -> TinyAutoencoderConfig:
    """A tiny autoencoder's shape from keys `encoder.3.conv.0.weight`: single convolutions part the levels' blocks."""

    def blocks(half: str) -> tuple[int, ...]:
        counts: list[int] = []
        numbers = {int(match[1]) for name in shapes if (match := re.match(rf"{half}\.(\d+)\.", name))}
        single = {number for number in numbers if f"{half}.{number}.weight" in shapes}
        for number in sorted(numbers):
            if number in single:
                counts.append(0)
            elif counts:
                counts[-1] += 1
        return tuple(counts[:-1])

    first = [
        (half, shapes.get(f"{half}.{n}.weight", ())) for half, n in (("encoder", 0), ("decoder", 0), ("decoder", 1))
    ]
    found = {half: shape for half, shape in first if len(shape) == 4}
    encoder, decoder = blocks("encoder"), blocks("decoder")
    if len(found) < 2 or not encoder or not decoder or 0 in (*encoder, *decoder):
        raise CheckpointError(f"{path} is no tiny autoencoder that Darkroom knows: its layers are of another order")
    return TinyAutoencoderConfig(
        in_channels=found["encoder"][1],
        latent_channels=found["decoder"][1],
        block_out_channels=(found["encoder"][0],) * len(encoder),
        decoder_widths=(found["decoder"][0],) * len(decoder),
        encoder_blocks=encoder,
        decoder_blocks=decoder,
    )
