"""From one layout to the other, one tensor in memory at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint, open_checkpoint
from .layouts import PARTS
from .save import TokenizerSource, save_folder, save_single_file
from .shapes import native_shapes
from .weights import PartTensors

if TYPE_CHECKING:
    import torch


def convert(
    source: str | Path, target: str | Path, dtype: torch.dtype | None = None, variant: str | None = None
) -> Path:
    """Write the model `source` (anything `open_checkpoint` opens) anew: a single file if `target` ends in .safetensors,
    else a diffusers folder. `dtype` converts the weights; None keeps each tensor's own. Returns where it was written.

    Raises CheckpointError with one sentence; then nothing is left at `target` that was not there before.
    """
    path = Path(target)
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"{path}: Darkroom writes no pickles; end the name in .safetensors, or name a folder.")
    checkpoint = open_checkpoint(source, variant)
    if path.exists() and checkpoint.path.resolve() == path.resolve():
        raise CheckpointError(f"{path} is both the source and the target: choose another name for the result.")
    with ExitStack() as stack:
        parts: dict[str, Any] = {}
        for part in PARTS:
            config = checkpoint.config(part)
            tensors = PartTensors(checkpoint, part, native_shapes(config, str(checkpoint.path)))
            parts[part] = stack.enter_context(tensors)
            parts[f"{part}_config"] = config
        common: dict[str, Any] = {
            **parts,
            "scheduler_config": checkpoint.scheduler_config,
            "low_res_scheduler_config": checkpoint.low_res_scheduler_config,
            "defaults": checkpoint.defaults,
            "dtype": dtype,
        }
        if path.suffix.lower() == ".safetensors":
            return save_single_file(path, tokenizer=checkpoint.tokenizer_folder, **common)
        return save_folder(path, tokenizer=_tokenizer(checkpoint), **common)


def _tokenizer(checkpoint: Checkpoint) -> TokenizerSource:
    if checkpoint.tokenizer_folder is not None:
        return checkpoint.tokenizer_folder
    from ..prompts.tokenizer import Tokenizer

    return Tokenizer.default(checkpoint.pad_token)
