"""From one layout to the other, one tensor in memory at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoint import EXCLAMATION_MARK, open_checkpoint
from .control import convert_controlnet, is_controlnet
from .hub import resolve
from .rules import native_shapes
from .save import TokenizerSource, save_folder, save_single_file
from .weights import PartTensors

if TYPE_CHECKING:
    import torch


def convert(
    source: str | Path, target: str | Path, dtype: torch.dtype | None = None, variant: str | None = None
) -> Path:
    """Write the model or ControlNet `source` (anything that can be opened) anew.

    A single file if `target` ends in .safetensors, else a diffusers folder. `dtype` converts the weights; None keeps
    each tensor's own. Returns where it was written.

    Raises CheckpointError with one sentence; then nothing is left at `target` that was not there before.
    """
    path = Path(target)
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"{path}: Darkroom writes no pickles; end the name in .safetensors, or name a folder.")
    origin = resolve(source)
    if path.exists() and origin.resolve() == path.resolve():
        raise CheckpointError(f"{path} is both the source and the target: choose another name for the result.")
    if is_controlnet(origin):
        return convert_controlnet(origin, path, dtype, variant)
    checkpoint = open_checkpoint(origin if isinstance(source, Path) else source, variant)
    with ExitStack() as stack:
        parts: dict[str, Any] = {}
        for part in checkpoint.parts:
            config = checkpoint.config(part)
            tensors = PartTensors(checkpoint, part, native_shapes(config, str(checkpoint.path)))
            parts[part] = stack.enter_context(tensors)
            parts[f"{part}_config"] = config
        common: dict[str, Any] = {
            **parts,
            "scheduler_config": checkpoint.scheduler_config,
            "low_res_scheduler_config": checkpoint.low_res_scheduler_config,
            "zero_negative": checkpoint.zero_negative,
            "defaults": checkpoint.defaults,
            "dtype": dtype,
        }
        if path.suffix.lower() == ".safetensors":
            common |= {"tokenizer": checkpoint.tokenizer_folder, "tokenizer_2": checkpoint.tokenizer_folder_2}
            return save_single_file(path, **common)
        common["tokenizer"] = _tokenizer(checkpoint.tokenizer_folder, checkpoint.pad_token)
        common["tokenizer_2"] = _tokenizer(checkpoint.tokenizer_folder_2, EXCLAMATION_MARK)
        return save_folder(path, **common)


def _tokenizer(folder: Path | None, pad_token: str) -> TokenizerSource:
    if folder is not None:
        return folder
    from ..prompts.tokenizer import Tokenizer

    return Tokenizer.default(pad_token)
