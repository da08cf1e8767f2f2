"""PyTorch's pickles, read without running anything in them."""

from __future__ import annotations

from darkroom.errors import CheckpointError
from darkroom.formats.storage import Slot, Source


def is_pickle(head: bytes) -> bool:
    """Whether a file that starts with `head` is what `torch.save` writes: a zip archive, or pickles in a row."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def pickled_slots(source: Source) -> list[Slot]:
    """Where the tensors of a PyTorch pickle lie in its file."""
    raise CheckpointError(f"{source.path} is a PyTorch pickle, which can't be read yet.")
