"""Upscaling: models that see a small picture beside the latent of a large one; and windows, for any task.

The second pass of a picture that is drawn small first, then larger (A1111's "hires fix").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...diffusion.noise import SeededNoise
from ...diffusion.regions import Windows
from ...errors import RequestError
from ...images import latent_size, open_picture, to_tensor
from ...request import MAX_PIXELS, MAX_SIDE, MIN_SIDE, OF_AN_IMAGE, Request, real
from ...samplers.state import SamplerState
from ..job import Inputs, Job, Next
from ..plan import plan
from .common import Model, assemble, complete, guidance, noise_of
from .image import begun, image_to_image, noised
from .inpaint import Beside

NOISE_LEVEL, UPSCALER_GUIDANCE = 20, 9.0  # diffusers' defaults
SCALE, STRENGTH = 2, 0.3  # of refinement, where the model's folder says no other
LARGEST_WHOLE = 512  # of upscalers: a small picture up to this wide and high is seen whole


def is_upscaler(model: Model) -> bool:
    """Whether a model's U-Net takes a small RGB picture beside the latent, and its noise level as a class."""
    config = model.unet.config
    return config.in_channels == model.autoencoder.config.latent_channels + 3 and config.num_class_embeds is not None


def enlarge(model: Model, request: Request, id: str, inputs: Inputs, output: str = "pil") -> Job:
    """A picture made larger by an upscaling model. Raises RequestError where the model can't do what is asked.

    A pixel of the small picture becomes a pixel of the latent, so the result is larger by the autoencoder's own factor
    (4). The result is diffusers' with the same seed: the seed's first draw is the small picture's noise, the second
    the latent's.
    """
    factor = model.autoencoder.config.downscale
    if inputs.image is None:
        raise RequestError("this model enlarges pictures, and there is none; give an image")
    for name in OF_AN_IMAGE:
        if getattr(request, name) is not None:
            raise RequestError(
                f"{name} is {getattr(request, name)!r}, but this model enlarges whole pictures; leave it out"
            )
    if inputs.mask is not None:
        raise RequestError("there is a mask, but this model enlarges whole pictures; leave it out")
    inputs = replace(inputs, image=open_picture(inputs.image))
    assert inputs.image is not None
    width, height = (factor * side for side in inputs.image.size)
    check_size(inputs.image.size, factor, (width, height))
    if (request.width or width, request.height or height) != (width, height):
        raise RequestError(
            f"{request.width}x{request.height} is asked for, but this model makes pictures {factor} times as large: "
            f"{width}x{height}; leave the size out"
        )
    level = NOISE_LEVEL if request.noise_level is None else request.noise_level
    scale = request.guidance_scale
    if scale is None:
        scale = model.defaults.get("guidance_scale", UPSCALER_GUIDANCE)
    tile = request.tile
    if tile is None and max(inputs.image.size) > LARGEST_WHOLE:
        tile = factor * LARGEST_WHOLE
    wanted = replace(request, width=width, height=height, noise_level=level, guidance_scale=scale, tile=tile)
    request = complete(model, wanted, inputs)
    assert request.seed is not None
    small = to_tensor(inputs.image)[0]  # [3, h, w]
    drawn = tuple(small.shape)
    kept = float(model.low_res_schedule.alphas_cumprod[level])  # the share of the variance that is the picture's
    small = kept**0.5 * small + (1 - kept) ** 0.5 * SeededNoise(request.seed, drawn)(0)
    noise = noise_of(request, inputs, (model.autoencoder.config.latent_channels, *drawn[1:]), before=drawn)
    steps = plan(model.schedule, model.scheduler_config, request.steps, request.sampler, request.schedule, literal=True)
    guided = Beside(guidance(model, request, steps, inputs), small.to(model.device), level)
    state = SamplerState(x=(noise(0) * steps.init_scale).to(model.device), sigma=steps.sigmas[0])
    return assemble(id, request, steps, state, noise, guided, output)


def upscaling(
    model: Model, size: tuple[int, int], scale: float | None, strength: float | None, tile: int | None
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


def windowed(model: Model, job: Job) -> Job:
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


# --- hires


def with_second_pass(model: Model, job: Job, inputs: Inputs) -> Job:
    """The job of a first pass, which knows of the second that its request asks for.

    Args:
        inputs: what the request brought along.

    Raises RequestError for a second pass that can't be.
    """
    first, hires = job.request, job.request.hires
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
    plan = begun(model, second)
    job.next = Next(second, replace(inputs, latents=None), plan.steps - plan.start, job.output, hires.upscaler)
    job.output = "latent" if hires.upscaler == "latent" else "pil"
    return job


def second_pass(
    model: Model, request: Request, id: str, inputs: Inputs, first: Image.Image | Tensor, output: str
) -> Job:
    """The job of a second pass, from what the first one gave: a picture, or a latent [C, h, w].

    A picture is enlarged by Lanczos, and image-to-image does the rest; a latent is enlarged as it is (bilinear).
    """
    if isinstance(first, Image.Image):
        return image_to_image(model, request, id, replace(inputs, image=first), output)
    strength = request.strength
    request = replace(complete(model, replace(request, strength=None), inputs), strength=strength)
    assert request.width is not None
    assert request.height is not None
    size = latent_size(request.width, request.height, model.autoencoder.config.downscale)
    latent = F.interpolate(first[None].float(), size, mode="bilinear")[0]
    noise = noise_of(request, inputs, tuple(latent.shape))
    plan = begun(model, request)
    return assemble(
        id, request, plan, noised(model, plan, latent, noise), noise, guidance(model, request, plan, inputs), output
    )
