"""From one layout to the other, one tensor in memory at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .checkpoint import EXCLAMATION_MARK, Checkpoint, open_checkpoint
from .control import convert_controlnet, is_controlnet
from .hub import resolve
from .layouts import Part
from .rules import native_shapes
from .save import Contents, TokenizerSource, save_folder, save_single_file
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
    single = path.suffix.lower() == ".safetensors"
    with ExitStack() as stack:
        configs = {part: checkpoint.config(part) for part in checkpoint.parts}
        states = {
            part: stack.enter_context(PartTensors(checkpoint, part, native_shapes(config, str(checkpoint.path))))
            for part, config in configs.items()
        }
        contents = Contents(
            configs=configs,
            states=states,
            tokenizers=_tokenizers(checkpoint, bare=single),
            scheduler_config=checkpoint.scheduler_config,
            low_res_scheduler_config=checkpoint.low_res_scheduler_config,
            zero_negative=checkpoint.zero_negative,
            defaults=checkpoint.defaults,
        )
        return (save_single_file if single else save_folder)(path, contents, dtype)


def _tokenizers(checkpoint: Checkpoint, bare: bool) -> dict[Part, TokenizerSource]:
    """The tokenizers of a checkpoint's text encoders; CLIP's own where it brings none, or nothing if `bare`."""
    from ..prompts.tokenizer import Tokenizer

    folders: dict[Part, tuple[Path | None, str]] = {
        "text_encoder": (checkpoint.tokenizer_folder, checkpoint.pad_token),
        "text_encoder_2": (checkpoint.tokenizer_folder_2, EXCLAMATION_MARK),
    }
    return {
        part: folder or Tokenizer.default(pad)
        for part, (folder, pad) in folders.items()
        if part in checkpoint.parts and not (bare and folder is None)
    }
