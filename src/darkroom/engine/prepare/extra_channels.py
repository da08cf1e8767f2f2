"""Models that see more than a latent: depth-to-image (Stable Diffusion 2 depth: one more input channel), and editing by
instruction (InstructPix2Pix, Brooks et al. 2023, arXiv 2211.09800: the latent of the picture to edit).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion.condition import Prompted, with_channels
from ...diffusion.guidance import TwoConditions
from ...errors import RequestError
from ...images import to_tensor
from ..job import Job, ParsedRequest
from .common import LoadedModel
from .image import drawn, moments, redrawn, sized

IMAGE_GUIDANCE = 1.5  # what the paper and diffusers use


def takes_depth(model: LoadedModel) -> bool:
    """Whether the U-Net sees a depth map beside the latent."""
    return model.unet.config.in_channels == model.autoencoder.config.latent_channels + 1


def depth_to_image(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture of given depths: from another picture with a strength, or from noise where there is no picture.

    Raises RequestError where the model can't do what is asked.
    """
    depth = parsed.inputs.depth
    if not takes_depth(model):
        raise RequestError("this model takes no depth map; leave it out, or load a depth-to-image model")
    if depth is None:
        raise RequestError("this model draws after a depth map; give one as depth (larger is nearer)")
    if parsed.inputs.mask is not None or parsed.asked.outpaint is not None:
        raise RequestError("this model can't repaint a part of a picture; leave out the mask, or load another model")
    begin = drawn if parsed.inputs.image is None else redrawn
    return begin(model, parsed, channels=lambda height, width: depth_channel(depth, height, width))


def depth_channel(depth: Tensor, height: int, width: int) -> Tensor:
    """A depth map [H, W] of any size and range as what the U-Net sees: [1, height, width] in -1..1, larger is nearer.

    A map of one depth only becomes zeros.
    """
    if bool(depth.min() == depth.max()):
        return torch.zeros(1, height, width)
    small = F.interpolate(depth[None, None].float(), size=(height, width), mode="bicubic")[0]
    low, high = small.min(), small.max()
    return 2.0 * (small - low) / (high - low) - 1.0


# --- editing


def is_editor(model: LoadedModel) -> bool:
    """Whether the U-Net sees a second latent beside its own: that of the picture to edit."""
    return model.unet.config.in_channels == 2 * model.autoencoder.config.latent_channels


def edit(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture changed as the prompt says, from noise, beside the picture's latent.

    That latent is the mean, unscaled, as these models were trained; CosXL's editor (an EDM model) saw a scaled one.
    Raises RequestError where the model can't do what is asked.
    """
    _check(parsed)
    assert parsed.inputs.image is not None
    scale = IMAGE_GUIDANCE if parsed.asked.image_guidance_scale is None else parsed.asked.image_guidance_scale
    picture = sized(parsed.asked, parsed.inputs.image)
    mean = moments(model, to_tensor(picture)).chunk(2, dim=1)[0]
    latent = (mean if model.schedule.sigma_data is None else model.autoencoder.scale(mean))[0]

    def guide(prompt: Prompted, negative: Prompted, text_scale: float) -> TwoConditions:
        without = torch.zeros_like(latent)
        both, alone, neither = (
            with_channels(prompt, latent),
            with_channels(negative, latent),
            with_channels(negative, without),
        )
        return TwoConditions(both, alone, neither, text_scale, scale)

    return drawn(model, parsed, guide, image_guidance_scale=scale, width=picture.width, height=picture.height)


def _check(parsed: ParsedRequest) -> None:
    """Raise RequestError for what an editing model can't do, or does another way."""
    asked, given = parsed.asked, parsed.inputs
    if given.image is None:
        raise RequestError("this model edits pictures by instruction; give the picture to edit as image")
    if given.mask is not None or asked.outpaint is not None:
        raise RequestError("this model edits whole pictures by instruction; leave out the mask, or load another model")
    if given.depth is not None:
        raise RequestError("this model takes no depth map; leave it out, or load a depth-to-image model")
    for name in ("strength", "exact_steps"):
        if getattr(asked, name) is not None:
            raise RequestError(
                f"{name} is {getattr(asked, name)!r}, for which an editing model has no use: "
                f"it follows the picture by image_guidance_scale"
            )
    if len(parsed.prompt.parts) > 1:
        raise RequestError("this model follows one instruction at a time; leave out AND")
