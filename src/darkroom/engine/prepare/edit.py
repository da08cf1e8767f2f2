"""Editing by instruction (InstructPix2Pix, Brooks et al. 2023, arXiv 2211.09800)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...diffusion.condition import Prompted, beside
from ...diffusion.guidance import TwoConditions
from ...errors import RequestError
from ...images import open_picture, to_tensor
from ...request import Request
from ..inputs import Inputs
from ..job import Job
from .common import Model
from .image import moments, sized
from .prompted import composed_parts
from .text import drawn

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
