"""Depth-to-image: a picture with the depths of another one (Stable Diffusion 2 depth: one more input channel).

Editing by instruction (InstructPix2Pix, Brooks et al. 2023, arXiv 2211.09800).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion.condition import Prompted, beside
from ...diffusion.guidance import TwoConditions
from ...errors import RequestError
from ...images import open_picture, to_tensor
from ...request import Request
from ..job import Inputs, Job
from .common import Model, composed_parts
from .image import drawn, moments, redrawn, sized
from .inpaint import Beside


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


# --- edit


IMAGE_GUIDANCE = 1.5  # what the paper and diffusers use


def is_editor(model: Model) -> bool:
    """Whether the U-Net sees a second latent beside its own: that of the picture to edit."""
    return model.unet.config.in_channels == 2 * model.autoencoder.config.latent_channels


def edit(model: Model, request: Request, id: str, inputs: Inputs, output: str = "pil") -> Job:
    """A picture changed as the prompt says, from noise, beside the picture's latent.

    That latent is the mean, unscaled, as these models were trained. Raises RequestError where the model can't do what
    is asked.
    """
    _check(request, inputs)
    assert inputs.image is not None
    scale = IMAGE_GUIDANCE if request.image_guidance_scale is None else request.image_guidance_scale
    source = open_picture(inputs.image)
    picture, request = sized(replace(request, image_guidance_scale=scale), source)
    latent = moments(model, to_tensor(picture)).chunk(2, dim=1)[0][0]

    def guide(prompt: Prompted, negative: Prompted, text_scale: float) -> TwoConditions:
        without = torch.zeros_like(latent)
        both, alone, neither = beside(prompt, latent), beside(negative, latent), beside(negative, without)
        return TwoConditions(both, alone, neither, text_scale, scale)

    return drawn(model, request, id, replace(inputs, image=source), output, guide)


def _check(request: Request, inputs: Inputs) -> None:
    """Raise RequestError for what an editing model can't do, or does another way."""
    if inputs.image is None:
        raise RequestError("this model edits pictures by instruction; give the picture to edit as image")
    if inputs.mask is not None or request.outpaint is not None:
        raise RequestError("this model edits whole pictures by instruction; leave out the mask, or load another model")
    if inputs.depth is not None:
        raise RequestError("this model takes no depth map; leave it out, or load a depth-to-image model")
    for name in ("strength", "exact_steps"):
        if getattr(request, name) is not None:
            raise RequestError(
                f"{name} is {getattr(request, name)!r}, for which an editing model has no use: "
                f"it follows the picture by image_guidance_scale"
            )
    if len(composed_parts(request)) > 1:
        raise RequestError("this model follows one instruction at a time; leave out AND")
