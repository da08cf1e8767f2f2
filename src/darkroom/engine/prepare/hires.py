"""The second pass of a picture that is drawn small first, then larger (A1111's "hires fix")."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...errors import RequestError
from ...images import latent_size
from ...request import Request
from ..inputs import Inputs
from ..job import Job, Next
from .common import Model, assemble, complete, guidance, noise_of
from .image import begun, image_to_image, noised
from .upscale import check_size


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
