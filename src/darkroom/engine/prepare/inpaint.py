"""Inpainting and outpainting: part of a picture is drawn anew, the rest stays as it is, byte by byte."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...diffusion.regions import Known
from ...errors import RequestError
from ...images import latent_size, to_tensor
from ...masks import (
    Box,
    Composite,
    as_picture,
    bounds,
    extended,
    fitting,
    on_latents,
    soft_edge,
    spread,
    surroundings,
    working_size,
)
from ...samplers.state import SamplerState
from ..job import Job, ParsedRequest
from .common import GivenNoise, LoadedModel, assemble, noise_of
from .complete import complete
from .guidance import guidance
from .image import begun, encoded, sized, strength_of, unchanged

PADDING, BLUR = 32, 4  # pixels


def inpaint(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture of which the masked part is drawn anew. Raises RequestError where the model can't do what is asked.

    A nine-channel model sees mask and masked picture, as in diffusers; an ordinary one has the known part restored in
    its denoised answers. Either way the known pixels are put back at the end. A mask with nothing in it, and strength
    0, give the picture back as it is.
    """
    nine = _nine_channels(model)
    picture, mask, decided = _canvas(parsed)
    fill, wanted = decided["fill"], decided["strength"]
    grid = model.autoencoder.config.downscale
    marked = bounds(mask)
    box, work = (0, 0, *picture.size), picture.size
    if parsed.asked.only_masked and marked is not None:
        box = surroundings(marked, decided["mask_padding"], picture.size, model.size)
        work = working_size(box, model.size, grid)
    seen, hidden = _cut(picture, mask, box, work)

    strength = wanted if marked is not None else 0.0
    plan = (
        begun(model, parsed.asked, strength, True, _corrected(model), literal=True)
        if nine
        else begun(model, parsed.asked, strength, sliced=False)
    )
    recipe = complete(model, parsed, plan, **decided)
    # Pure noise is what a picture from a text alone begins as: at strength 1 nothing of the masked part is seen.
    pure = fill == "noise" or (strength == 1 and fill == "original")
    # The seed's draws are in diffusers' order: a sample of the picture if one is needed, noise, the masked picture.
    taken = 0 if nine and pure and strength == 1 else 1
    shape = (model.autoencoder.config.latent_channels, *latent_size(*work, grid))
    noise = noise_of(model, recipe, plan, parsed.inputs.latents, shape, taken)
    first, places, beside = noise(0), on_latents(hidden, grid), None
    if nine:
        masked = encoded(model, seen * (1 - hidden), recipe, taken + 1)
        noise = GivenNoise(first, noise_of(model, recipe, plan, None, shape, taken + 1))
        beside = torch.cat([_nearest(hidden, grid), masked])
    x, known = first * (plan.start_sigma if plan.start else plan.init_scale), None
    if taken:
        latent = encoded(model, spread(seen, hidden) if fill == "fill" else seen, recipe, 0)
        known = None if nine else Known(latent, places)
        if plan.start == plan.steps:
            x = latent / plan.final_scale
        else:
            noised = latent + first * plan.start_sigma
            x = noised.lerp(x, places) if pure else noised
    state = SamplerState(x.to(model.device), plan.start_sigma, plan.start)
    job = assemble(parsed, recipe, plan, state, noise, guidance(model, parsed, recipe, plan, channels=beside))
    job.known = known
    job.composite = unchanged(picture)
    if strength:
        job.composite = Composite(picture, as_picture(soft_edge(mask, decided["mask_blur"])), box, work)
    return job


def _nine_channels(model: LoadedModel) -> bool:
    """Whether the model was trained to see a mask and a masked picture. RequestError where it can't repaint at all."""
    wanted, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if wanted == 2 * given + 1:
        return True
    if wanted != given or model.unet.config.num_class_embeds is not None:
        raise RequestError(
            f"this model can't repaint pictures: its U-Net takes {wanted} channels where a latent has {given}; "
            f"load a text-to-image or an inpainting model"
        )
    return False


def _corrected(model: LoadedModel) -> dict[str, Any]:
    """The scheduler configuration as diffusers' inpainting pipeline corrects it; other than for its other pipelines, a
    clip_sample that is written there stays. One that isn't is False, as in all published configurations, though the
    class's default is True: a clipped latent is wrong, as diffusers itself says where it corrects it.
    """
    config = model.scheduler_config
    return {"clip_sample": False, **config, "steps_offset": 1, "skip_prk_steps": True}


def _canvas(parsed: ParsedRequest) -> tuple[Image.Image, Tensor, dict[str, Any]]:
    """The picture or canvas [W x H] that will be the result, its mask [1, 1, H, W], and the fields that say so."""
    asked, given = parsed.asked, parsed.inputs
    if given.image is None:
        what = "a mask" if given.mask is not None else "outpaint"
        raise RequestError(f"{what} is given without an image; give the image too")
    picture, fill = sized(asked, given.image), asked.fill
    if asked.outpaint is not None:
        if given.mask is not None:
            raise RequestError("outpaint makes a mask of its own, and a mask is given too; leave one of them out")
        if fill == "original":
            raise RequestError("fill is 'original', but around the picture there is none; ask for 'fill' or 'noise'")
        fill = fill or "fill"
        canvas, mask = extended(picture, asked.outpaint)
    else:
        assert given.mask is not None
        canvas, mask = picture, fitting(given.mask, picture.size, given.image.size)
    if not asked.only_masked and asked.mask_padding is not None:
        raise RequestError(
            f"mask_padding is {asked.mask_padding}, which means something with only_masked alone; ask for that too"
        )
    decided: dict[str, Any] = {
        "width": canvas.width,
        "height": canvas.height,
        "strength": strength_of(asked),
        "fill": fill or "original",
        "mask_blur": BLUR if asked.mask_blur is None else asked.mask_blur,
    }
    if asked.only_masked:
        decided["mask_padding"] = PADDING if asked.mask_padding is None else asked.mask_padding
    return canvas, mask, decided


def _cut(picture: Image.Image, mask: Tensor, box: Box, work: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The part of a picture [1, 3, h, w] in -1..1 and of its mask [1, 1, h, w] that is worked on, at that size."""
    left, top, right, bottom = box
    part = picture.crop(box)
    if part.size != work:
        part = part.resize(work, Image.Resampling.LANCZOS)
    hidden = F.adaptive_max_pool2d(mask[..., top:bottom, left:right], (work[1], work[0]))  # loses no masked pixel
    return to_tensor(part), hidden


def _nearest(mask: Tensor, downscale: int) -> Tensor:
    """[1, 1, H, W] -> [1, h, w]: the mask as inpainting models saw it in training, every 8th pixel of it."""
    height, width = mask.shape[-2:]
    whole = F.pad(mask, (0, -width % downscale, 0, -height % downscale), mode="replicate")
    return whole[0, :, ::downscale, ::downscale]
