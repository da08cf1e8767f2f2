"""Half precision overflows in some autoencoders: what came out of range is computed again in float32, never black."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import RequestError
from ..models.autoencoder import Autoencoder

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
