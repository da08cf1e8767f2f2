"""Depth-to-image: a picture with the depths of another one (Stable Diffusion 2 depth: one more input channel)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import RequestError
from ...request import Request
from ..inputs import Inputs
from ..job import Job
from .common import Model
from .image import redrawn
from .inpaint import Beside
from .text import drawn


def takes_depth(model: Model) -> bool:
    """Whether the U-Net sees a depth map beside the latent."""
    return model.unet.config.in_channels == model.autoencoder.config.latent_channels + 1


def depth_to_image(model: Model, request: Request, id: str, inputs: Inputs, output: str = "pil") -> Job:
    """A picture of given depths: from another picture with a strength, or from noise where there is no picture.

    Raises RequestError where the model can't do what is asked.
    """
    if not takes_depth(model):
        raise RequestError("this model takes no depth map; leave it out, or load a depth-to-image model")
    if inputs.depth is None and request.depth is None:
        raise RequestError("this model draws after a depth map; give one as depth (larger is nearer)")
    if inputs.mask is not None or request.outpaint is not None:
        raise RequestError("this model can't repaint a part of a picture; leave out the mask, or load another model")
    job = (drawn if inputs.image is None else redrawn)(model, request, id, inputs, output)
    assert inputs.depth is not None  # else the recipe's is missed before this
    height, width = job.state.x.shape[-2:]
    job.guidance = Beside(job.guidance, depth_channel(inputs.depth, height, width))
    return job


def depth_channel(depth: Tensor, height: int, width: int) -> Tensor:
    """A depth map [H, W] of any size and range as what the U-Net sees: [1, height, width] in -1..1, larger is nearer.

    A map of one depth only becomes zeros.
    """
    if bool(depth.min() == depth.max()):
        return torch.zeros(1, height, width)
    small = F.interpolate(depth[None, None].float(), size=(height, width), mode="bicubic")[0]
    low, high = small.min(), small.max()
    return 2.0 * (small - low) / (high - low) - 1.0
