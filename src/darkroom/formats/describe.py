"""What a model is and holds, without loading its weights: `darkroom info MODEL`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint, open_checkpoint
from .control import describe_controlnet, is_controlnet
from .hub import resolve
from .layouts import TITLES, Part
from .rules import native_shapes
from .weights import PartTensors, Weights


def describe(source: str | Path, variant: str | None = None, with_hash: bool = False) -> dict[str, Any]:
    """A model's kind, family and task, and per network its parameters, types of numbers and faults; ready for JSON.

    Keys: name, path, kind, family, task, prediction_type, scheduler, picture_size (pixels a side), text_width,
    vocabulary, size (bytes), parts (unet, autoencoder, text_encoder(s): parameters, dtypes (name -> tensors), fault (a
    sentence or None)), parameters (of all), fault (the first, or None), and hash if asked for (reads the file). Raises
    CheckpointError if it is not a model at all.
    """
    path = resolve(source)
    if is_controlnet(path):
        return describe_controlnet(path, variant, with_hash)
    checkpoint = open_checkpoint(path, variant)
    parts = {part: _part(checkpoint, part) for part in checkpoint.parts}
    faults = [part["fault"] for part in parts.values() if part["fault"]]
    result = {
        "name": checkpoint.name,
        "path": str(path),
        "kind": checkpoint.kind,
        "family": checkpoint.family,
        "task": checkpoint.task,
        "prediction_type": checkpoint.scheduler_config.get("prediction_type", "epsilon"),
        "scheduler": checkpoint.scheduler_config.get("_class_name", "unknown"),
        "picture_size": checkpoint.unet_config.sample_size * checkpoint.autoencoder_config.downscale,
        "text_width": checkpoint.unet_config.cross_attention_dim,
        "vocabulary": checkpoint.text_encoder_config.vocab_size,
        "size": sum(file.stat().st_size for file in _files(path)),
        "parameters": sum(part["parameters"] for part in parts.values()),
        "parts": parts,
        "fault": faults[0] if faults else None,
    }
    return result | ({"hash": checkpoint.hash()} if with_hash else {})


def _part(checkpoint: Checkpoint, part: Part) -> Mapping[str, Any]:
    weights: Weights = checkpoint.weights[part]
    expected = native_shapes(checkpoint.config(part), f"{checkpoint.path}: {TITLES[part]}")
    fault = None
    try:
        PartTensors(checkpoint, part, expected).close()
    except CheckpointError as error:
        fault = str(error)
    with weights.open() as file:
        keys = weights.keys(file.names(), part).values()
        dtypes = Counter(file.dtype_name(key) for key in keys)
    return {
        "parameters": sum(math.prod(shape) for shape in expected.values()),
        "dtypes": dict(dtypes.most_common()),
        "fault": fault,
    }


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
