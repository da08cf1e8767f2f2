"""Larger pictures: upscaling models, which see a small picture beside the latent of a large one; windows, for any task;
and the second pass of a picture that is drawn small first, then larger (A1111's "hires fix").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...diffusion.noise import SeededNoise
from ...diffusion.regions import Windows
from ...errors import RequestError
from ...images import latent_size, to_tensor
from ...names import HiresUpscaler
from ...request import EMBEDDED_UPSCALER, MAX_PIXELS, MAX_SIDE, MIN_SIDE, OF_AN_IMAGE, Request, real
from ...samplers.state import SamplerState
from ..enlarge import enlarged_size
from ..job import Job, Next, ParsedRequest
from .common import LoadedModel, assemble, noise_of
from .complete import complete
from .guidance import guidance
from .image import begun, from_image, noised, planned

NOISE_LEVEL, UPSCALER_GUIDANCE = 20, 9.0  # diffusers' defaults
SCALE, STRENGTH = 2, 0.3  # of refinement, where the model's folder says no other
LARGEST_WHOLE = 512  # of upscalers: a small picture up to this wide and high is seen whole


def is_upscaler(model: LoadedModel) -> bool:
    """Whether a model's U-Net takes a small RGB picture beside the latent, and its noise level as a class."""
    config = model.unet.config
    return config.in_channels == model.autoencoder.config.latent_channels + 3 and config.num_class_embeds is not None


def enlarge(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture made larger by an upscaling model. Raises RequestError where the model can't do what is asked.

    A pixel of the small picture becomes a pixel of the latent, so the result is larger by the autoencoder's own factor
    (4). The result is diffusers' with the same seed: the seed's first draw is the small picture's noise, the second
    the latent's.
    """
    factor = model.autoencoder.config.downscale
    asked, image = parsed.asked, parsed.inputs.image
    if image is None:
        raise RequestError("this model enlarges pictures, and there is none; give an image")
    for name in OF_AN_IMAGE:
        if getattr(asked, name) is not None:
            raise RequestError(
                f"{name} is {getattr(asked, name)!r}, but this model enlarges whole pictures; leave it out"
            )
    if parsed.inputs.mask is not None:
        raise RequestError("there is a mask, but this model enlarges whole pictures; leave it out")
    width, height = (factor * side for side in image.size)
    check_size(image.size, factor, (width, height))
    if (asked.width or width, asked.height or height) != (width, height):
        raise RequestError(
            f"{asked.width}x{asked.height} is asked for, but this model makes pictures {factor} times as large: "
            f"{width}x{height}; leave the size out"
        )
    level = NOISE_LEVEL if asked.noise_level is None else asked.noise_level
    scale = asked.guidance_scale
    if scale is None:
        scale = model.defaults.get("guidance_scale", UPSCALER_GUIDANCE)
    tile = asked.tile
    if tile is None and max(image.size) > LARGEST_WHOLE:
        tile = factor * LARGEST_WHOLE
    plan = planned(model, asked, literal=True)
    recipe = complete(
        model, parsed, plan, width=width, height=height, noise_level=level, guidance_scale=scale, tile=tile
    )
    assert recipe.seed is not None
    small = to_tensor(image)[0]  # [3, h, w]
    drawn = tuple(small.shape)
    kept = float(model.low_res_schedule.alphas_cumprod[level])  # the share of the variance that is the picture's
    small = kept**0.5 * small + (1 - kept) ** 0.5 * SeededNoise(recipe.seed, drawn)(0)
    shape = (model.autoencoder.config.latent_channels, *drawn[1:])
    noise = noise_of(model, recipe, plan, parsed.inputs.latents, shape, before=drawn)
    guided = guidance(model, parsed, recipe, plan, channels=small.to(model.device), class_label=level)
    state = SamplerState(x=(noise(0) * plan.init_scale).to(model.device), sigma=plan.sigmas[0])
    return assemble(parsed, recipe, plan, state, noise, guided)


def upscaling(
    model: LoadedModel, size: tuple[int, int], scale: float | None, strength: float | None, tile: int | None
) -> dict[str, Any]:
    """The fields of a request that makes a picture of `size` (width, height) larger; None: what suits the model."""
    own = model.autoencoder.config.downscale if is_upscaler(model) else None
    factor = real("scale", (own or SCALE) if scale is None else scale, 0.01, 100.0)
    if own is not None and factor != own:
        raise RequestError(f"scale is {factor:g}, but this model makes pictures {own} times as large; leave it out")
    width, height = (round(side * factor) for side in size)
    check_size(size, factor, (width, height))
    if own is None:
        strength = model.defaults.get("refine_strength", STRENGTH) if strength is None else strength
        tile = max(model.size) if tile is None else tile
    return {"width": width, "height": height, "strength": strength, "tile": tile}


def check_size(small: tuple[int, int], factor: float, large: tuple[int, int]) -> None:
    """Raise RequestError for an enlarged size that can't be drawn, in words that name the picture and the factor."""
    width, height = large
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in large) or width * height > MAX_PIXELS:
        raise RequestError(
            f"the image is {small[0]}x{small[1]} pixels, {factor:g} times as large {width}x{height}; sides must be "
            f"from {MIN_SIDE} to {MAX_SIDE} pixels, and {MAX_PIXELS:,} pixels in all; give another image or scale"
        )


def windowed(model: LoadedModel, job: Job) -> Job:
    """The job with the windows its request asks for; its recipe says what they are."""
    tile, overlap = job.request.tile, job.request.overlap
    if tile is None:
        return job
    grid = model.autoencoder.config.downscale
    side = max(tile // grid, 1)
    shared = min(side // 4 if overlap is None else overlap // grid, side - 1)
    height, width = job.state.x.shape[-2:]
    if height > side or width > side:
        job.windows = Windows(height, width, side, shared)
    return job


# --- the second pass


def with_second_pass(model: LoadedModel, job: Job, parsed: ParsedRequest) -> Job:
    """The job of a first pass, which knows of the second that its request asks for.

    Raises RequestError for a second pass that can't be.
    """
    first, hires, inputs = job.request, job.request.hires, parsed.inputs
    if hires is None:
        return job
    if inputs.image is not None:
        raise RequestError("hires is asked for, but a given image is enlarged by upscale; leave one of them out")
    if inputs.depth is not None:
        raise RequestError("hires is asked for, and this model draws after a depth map; leave hires out")
    for name in ("start", "stop"):
        if getattr(first, name) is not None:
            raise RequestError(
                f"hires is asked for, and {name} too, which goes with one pass alone; leave one of them out"
            )
    assert first.width is not None
    assert first.height is not None
    width, height = (round(side * hires.scale) for side in (first.width, first.height))
    check_size((first.width, first.height), hires.scale, (width, height))
    steps = hires.steps or first.steps
    second = replace(first, hires=None, width=width, height=height, steps=steps, strength=hires.strength, latents=None)
    plan = begun(model, second, hires.strength)
    after = replace(parsed, asked=second, inputs=replace(inputs, latents=None))
    job.next = Next(after, plan.steps - plan.start, hires.upscaler)
    job.output = "latent" if hires.upscaler == "latent" else "pil"
    return job


def enlarged(model: LoadedModel, request: Request, picture: Image.Image) -> Image.Image:
    """A finished picture, by the network that its recipe names at the end, if it does. Raises RequestError."""
    asked = request.enlarge
    if asked is None:
        return picture
    return model.find_upscaler(asked.upscaler or EMBEDDED_UPSCALER, asked.upscaler_hash).enlarge(picture, asked.scale)


def check_enlarged(job: Job) -> None:
    """Raise RequestError where a picture would become too large in the end."""
    if job.request.enlarge is not None:
        after = None if job.next is None else job.next.parsed.asked
        width, height = job.size if after is None else (after.width or 1, after.height or 1)
        if job.composite is not None:
            width, height = job.composite.picture.size
        enlarged_size((width, height), job.request.enlarge.scale)


def second_pass(model: LoadedModel, coming: Next, first: Image.Image | Tensor) -> Job:
    """The job of a second pass, from what the first one gave: a picture, or a latent [C, h, w].

    A picture is enlarged by Lanczos or by a network, and image-to-image does the rest; a latent is enlarged as it is
    (bilinear).
    """
    parsed = coming.parsed
    if isinstance(first, Image.Image):
        if coming.upscaler not in get_args(HiresUpscaler):
            assert parsed.asked.width is not None
            assert parsed.asked.height is not None
            upscaler = model.find_upscaler(coming.upscaler)
            first = upscaler.enlarge(first, size=(parsed.asked.width, parsed.asked.height))
        return from_image(model, replace(parsed, inputs=replace(parsed.inputs, image=first)))
    asked = parsed.asked
    assert asked.width is not None
    assert asked.height is not None
    assert asked.strength is not None
    plan = begun(model, asked, asked.strength)
    recipe = complete(model, parsed, plan)
    size = latent_size(asked.width, asked.height, model.autoencoder.config.downscale)
    latent = F.interpolate(first[None].float(), size, mode="bilinear")[0]
    noise = noise_of(model, recipe, plan, None, tuple(latent.shape))
    guided = guidance(model, parsed, recipe, plan)
    return assemble(parsed, recipe, plan, noised(model, plan, latent, noise), noise, guided)
