"""How many rows a machine takes at once, and what its running out of memory looks like."""

from __future__ import annotations

import torch

from ..kernels.heap import return_freed_memory

CPU_ROWS = 8  # beyond this a CPU gains nothing from a wider batch
ACCELERATOR_ROWS = 16


def default_rows(device: torch.device) -> int:
    """Rows of one U-Net call that suit a device, for a model and pictures of ordinary size."""
    return CPU_ROWS if device.type == "cpu" else ACCELERATOR_ROWS


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA's and MPS's own, the CPU allocator's RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in str(error) or "out of memory" in str(error).lower()
    )


def release(device: torch.device) -> None:
    """Give cached blocks back, so that a smaller attempt finds whole ones, or another program."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        return_freed_memory()
