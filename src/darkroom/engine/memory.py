"""How many rows a machine takes at once, and what its running out of memory looks like.

Half precision overflows in some autoencoders: what came out of range is computed again in float32, never black.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import RequestError
from ..kernels.heap import return_freed_memory
from ..models.autoencoder import Autoencoder

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


# --- overflow


NARROW = (torch.float16, torch.bfloat16)

log = logging.getLogger(__name__)


def finite(autoencoder: Autoencoder, call: Callable[[Autoencoder], Tensor], what: str) -> Tensor:
    """What `call` answers for the autoencoder; where that is not finite in half precision, for a float32 copy of it.

    The copy is made for this call alone: the model stays as it is. `call` must bring its inputs to the autoencoder's
    dtype itself; `what` ("decoding") is for the log. Raises RequestError where the answer isn't finite in float32.
    """
    answer = call(autoencoder)
    if bool(answer.isfinite().all()):
        return answer
    dtype = next(autoencoder.parameters()).dtype
    if dtype in NARROW:
        log.warning("%s overflowed in %s; doing it again in float32", what, str(dtype).removeprefix("torch."))
        answer = call(copy.deepcopy(autoencoder).float())
        if bool(answer.isfinite().all()):
            return answer
    raise RequestError(
        f"{what} answered with numbers that are not finite, in float32 too; check the autoencoder and the latents"
    )
