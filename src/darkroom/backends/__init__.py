"""What runs the networks: torch itself ("native"), or another library on the same weights.

A backend is a set of classes that a model is built of instead of `models`': the same networks, with the same weights,
calls and answers. What it can't do, the network does natively.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..models.autoencoder import Autoencoder
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..names import Backend

BACKENDS = get_args(Backend)


@dataclass(frozen=True, slots=True)
class Networks:
    """The classes that a model is built of."""

    unet: type[UNet] = UNet
    autoencoder: type[Autoencoder] = Autoencoder
    text_encoder: type[TextEncoder] = TextEncoder


def classes(backend: str) -> Networks:
    """The classes of a backend; "auto" is "native" (docs/decisions/0013). Raises RequestError if it isn't installed."""
    if backend != "openvino":
        return Networks()
    from .convert import openvino
    from .networks import OpenVINOAutoencoder, OpenVINOTextEncoder, OpenVINOUNet

    openvino()
    return Networks(OpenVINOUNet, OpenVINOAutoencoder, OpenVINOTextEncoder)
