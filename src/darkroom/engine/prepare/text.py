"""Text-to-image."""

from __future__ import annotations

from ...diffusion.guidance import ClassifierFree
from ...errors import RequestError
from ...images import latent_size
from ...request import Request
from ...samplers.state import SamplerState
from ..inputs import Inputs
from ..job import Job
from .common import NOTHING, Guide, Model, assemble, complete, guidance, noise_of, plan_of


def text_to_image(model: Model, request: Request, id: str, inputs: Inputs = NOTHING, output: str = "pil") -> Job:
    """A picture from a text alone. Raises RequestError where the model can't do what is asked."""
    _check_draws_from_text(model)
    return drawn(model, request, id, inputs, output)


def drawn(
    model: Model,
    request: Request,
    id: str,
    inputs: Inputs = NOTHING,
    output: str = "pil",
    guide: Guide = ClassifierFree,
) -> Job:
    """A job that begins with noise alone. `guide` is what holds prompt and negative prompt."""
    request = complete(model, request, inputs)
    assert request.width is not None
    assert request.height is not None
    config = model.autoencoder.config
    shape = (config.latent_channels, *latent_size(request.width, request.height, config.downscale))
    noise = noise_of(request, inputs, shape)
    plan = plan_of(model, request).between(request.start, request.stop, model.schedule)
    # The latents of a picture that stopped are what it had come to; else they are noise of unit variance.
    x = noise(0) if request.start is not None else noise(0) * plan.init_scale
    state = SamplerState(x=x.to(model.device), sigma=plan.start_sigma, interval=plan.start)
    return assemble(id, request, plan, state, noise, guidance(model, request, plan, inputs, guide), output)


def _check_draws_from_text(model: Model) -> None:
    """Raise RequestError for a U-Net that needs more than a text: inpainting, upscaling, depth, editing."""
    wanted, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if wanted != given or model.unet.config.num_class_embeds is not None:
        raise RequestError(
            f"this model can't draw from a text alone: its U-Net takes {wanted} channels where a latent has {given}, "
            f"so it needs a picture too; load a text-to-image model"
        )
