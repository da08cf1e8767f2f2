"""Text-to-image, and image-to-image: a picture with noise, from which another one is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...diffusion.guidance import ClassifierFree
from ...diffusion.noise import SeededNoise
from ...errors import RequestError, out_of_memory
from ...images import latent_size, pad_to_grid, to_tensor
from ...kernels.exact import same_bits
from ...masks import Composite
from ...models.autoencoder import Autoencoder
from ...request import MAX_SIDE, MIN_SIDE, Request
from ...samplers import entries, entry
from ...samplers.state import Noise, SamplerState
from ..advance import release
from ..decode import finite
from ..job import Job, ParsedRequest
from ..plan import Plan, plan
from .common import LoadedModel, assemble, noise_of
from .complete import complete, wanted_steps
from .guidance import Guide, guidance

STRENGTH = 0.75
Channels = Callable[[int, int], Tensor]  # (height, width) of a latent -> what the network sees beside it, [C', h, w]


def from_text(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture from a text alone. Raises RequestError where the model can't do what is asked."""
    _check_draws_from_text(model)
    return drawn(model, parsed)


def drawn(
    model: LoadedModel,
    parsed: ParsedRequest,
    guide: Guide = ClassifierFree,
    channels: Channels | None = None,
    **decided: Any,
) -> Job:
    """A job that begins with noise alone. `guide` is `guidance`'s, `decided` is `complete`'s."""
    asked = parsed.asked
    plan = planned(model, asked).between(asked.start, asked.stop, model.schedule)
    recipe = complete(model, parsed, plan, **decided)
    assert recipe.width is not None
    assert recipe.height is not None
    config = model.autoencoder.config
    height, width = latent_size(recipe.width, recipe.height, config.downscale)
    noise = noise_of(model, recipe, plan, parsed.inputs.latents, (config.latent_channels, height, width))
    # The latents of a picture that stopped are what it had come to; else they are noise of unit variance.
    x = noise(0) if recipe.start is not None else noise(0) * plan.init_scale
    state = SamplerState(x=x.to(model.device), sigma=plan.start_sigma, interval=plan.start)
    beside = None if channels is None else channels(height, width)
    return assemble(parsed, recipe, plan, state, noise, guidance(model, parsed, recipe, plan, guide, channels=beside))


def planned(
    model: LoadedModel,
    request: Request,
    steps: int | None = None,
    config: Mapping[str, Any] | None = None,
    literal: bool = False,
) -> Plan:
    """Sampler and noise levels of a request; the scheduler of the model's folder where it leaves them open.

    steps: instead of the request's. config: a scheduler configuration instead of the model's. literal: `plan`'s.
    """
    config = model.scheduler_config if config is None else config
    as_is = literal or model.unet.config.size_conditioning  # diffusers' pipelines of SDXL take the flags as they are
    count = wanted_steps(model, request) if steps is None else steps
    drop = request.discard_penultimate
    made = plan(model.schedule, config, count, request.sampler, request.schedule, literal=as_is, drop_penultimate=drop)
    if request.eta is not None:
        made = _with_eta(made, request.eta)
    top = made.sigmas[0]
    if request.sgm_noise_multiplier and math.isclose(top, model.schedule.sigma_max, rel_tol=1e-5):
        made = replace(made, init_scale=math.hypot(1.0, top))
    return made


def _with_eta(made: Plan, eta: float) -> Plan:
    """A plan whose sampler draws that share of its noise. Raises RequestError for one that has no eta."""
    if entry(made.sampler_name).eta is None:
        able = ", ".join(row.id for row in entries() if row.eta is not None)
        raise RequestError(
            f"eta is {eta:g}, and the sampler {made.sampler_name} has none; leave it out, or take {able}"
        )
    return replace(made, sampler=replace(made.sampler, eta=eta))  # type: ignore[type-var]  # they all have it


def _check_draws_from_text(model: LoadedModel) -> None:
    """Raise RequestError for a U-Net that needs more than a text: inpainting, upscaling, depth, editing."""
    wanted, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if wanted != given or model.unet.config.num_class_embeds is not None:
        raise RequestError(
            f"this model can't draw from a text alone: its U-Net takes {wanted} channels where a latent has {given}, "
            f"so it needs a picture too; load a text-to-image model"
        )


# --- image-to-image


def from_image(model: LoadedModel, parsed: ParsedRequest) -> Job:
    """A picture from another one and a text. Raises RequestError where the model can't do what is asked.

    The result is diffusers' with the same seed: the seed's first draw samples the autoencoder's posterior, the second
    is the noise. Strength 0 gives the picture back as it is.
    """
    _check_changes_pictures(model)
    return redrawn(model, parsed)


def redrawn(model: LoadedModel, parsed: ParsedRequest, channels: Channels | None = None) -> Job:
    """A job that begins with a picture and noise."""
    assert parsed.inputs.image is not None
    _check_words(parsed.asked)
    picture = sized(parsed.asked, parsed.inputs.image)
    strength = strength_of(parsed.asked)
    plan = begun(model, parsed.asked, strength)
    recipe = complete(model, parsed, plan, width=picture.width, height=picture.height, strength=strength)
    latent = encoded(model, to_tensor(picture), recipe, 0)
    noise = noise_of(model, recipe, plan, parsed.inputs.latents, tuple(latent.shape), taken=1)
    beside = None if channels is None else channels(*latent.shape[-2:])
    guided = guidance(model, parsed, recipe, plan, channels=beside)
    job = assemble(parsed, recipe, plan, noised(model, plan, latent, noise), noise, guided)
    if not strength:
        job.composite = unchanged(picture)
    return job


def _check_changes_pictures(model: LoadedModel) -> None:
    wanted, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if wanted == 2 * given + 1:
        raise RequestError("this model repaints parts of pictures; give a mask too, white where to repaint")
    if wanted != given or model.unet.config.num_class_embeds is not None:
        raise RequestError(
            f"this model can't change pictures: its U-Net takes {wanted} channels where a latent has {given}; "
            f"load a text-to-image model"
        )


def _check_words(request: Request) -> None:
    """Raise RequestError where something is said about a mask there isn't."""
    for name in ("fill", "only_masked", "mask_padding", "mask_blur"):
        if getattr(request, name) is not None:
            raise RequestError(f"{name} is {getattr(request, name)!r}, but there is no mask; give one, or leave it out")


def strength_of(request: Request) -> float:
    """The strength that is asked for, or the usual one."""
    return STRENGTH if request.strength is None else request.strength


def sized(request: Request, picture: Image.Image) -> Image.Image:
    """The picture at the size asked for: its own where none is asked for.

    One side alone keeps the picture's aspect. With `outpaint` the size asked for is the finished canvas's, and the
    picture gets what the margins leave of it. Raises RequestError for sizes that can't be drawn.
    """
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    more = (left + right, top + bottom)
    width, height = request.width, request.height
    inner = [None if side is None else side - extra for side, extra in zip((width, height), more, strict=True)]
    for name, side, extra in (("width", inner[0], more[0]), ("height", inner[1], more[1])):
        if side is not None and side < 1:
            raise RequestError(f"{name} is {side + extra}, and outpaint alone takes {extra}; ask for more")
    wide, high = inner
    if wide is None:
        wide = picture.width if high is None else max(1, round(picture.width * high / picture.height))
    if high is None:
        high = picture.height if inner[0] is None else max(1, round(picture.height * wide / picture.width))
    whole = (wide + more[0], high + more[1])
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in whole):
        raise RequestError(
            f"the picture to make would be {whole[0]}x{whole[1]} pixels, and its sides must be from {MIN_SIDE} to "
            f"{MAX_SIDE}; ask for another width and height"
        )
    return picture if picture.size == (wide, high) else picture.resize((wide, high), Image.Resampling.LANCZOS)


def begun(
    model: LoadedModel,
    request: Request,
    strength: float,
    sliced: bool = True,
    config: Mapping[str, Any] | None = None,
    literal: bool = False,
) -> Plan:
    """The plan of a request, cut where a strength begins.

    As diffusers has it: the last int(steps * strength) of the steps. With `exact_steps` the levels are those of a
    longer plan, of which `steps` lie below the strength's level (as in ComfyUI).

    Args:
        sliced: `Plan.from_interval`'s.
        config, literal: `planned`'s.
    """
    whole = planned(model, request, config=config, literal=literal)
    if strength == 0:
        return whole.from_interval(whole.steps)
    if request.exact_steps:
        count = int(whole.steps / strength)
        try:
            stretched = planned(model, request, count, config, literal)
        except RequestError as error:
            raise RequestError(
                f"exactly {whole.steps} steps at strength {strength:g} need a schedule of {count} steps, which "
                f"can't be made; ask for fewer steps or a higher strength"
            ) from error
        return stretched.from_interval(count - whole.steps)
    count = min(int(whole.steps * strength), whole.steps)
    if count < 1:
        raise RequestError(
            f"strength {strength:g} of {whole.steps} steps is less than one step; "
            f"raise one of them, or ask for exact_steps"
        )
    return whole.from_interval(whole.steps - count, sliced=sliced)


def noised(model: LoadedModel, plan: Plan, latent: Tensor, noise: Noise) -> SamplerState:
    """Where a cut plan begins from a latent [C, h, w]: with its first draw of noise, or, past its end, as it is."""
    x = latent + noise(0) * plan.start_sigma if plan.start < plan.steps else latent / plan.final_scale
    return SamplerState(x.to(model.device), plan.start_sigma, plan.start)


def encoded(model: LoadedModel, picture: Tensor, recipe: Request, draw: int) -> Tensor:
    """A picture [1, 3, H, W] in -1..1 as a scaled latent [C, h, w] float32 on the CPU, sampled with one of its seed's
    draws.

    Raises RequestError where memory runs out, or the autoencoder's numbers do.
    """
    config = model.autoencoder.config
    mean, log_variance = moments(model, picture).chunk(2, dim=1)
    height, width = picture.shape[-2:]
    shape = (config.latent_channels, *latent_size(width, height, config.downscale))
    assert recipe.seed is not None
    noise = SeededNoise(recipe.seed, shape)(draw)
    return model.autoencoder.scale(mean + torch.exp(log_variance.clamp(-30, 20) / 2) * noise)[0]


@torch.no_grad()
def moments(model: LoadedModel, picture: Tensor) -> Tensor:
    """Mean and log-variance [1, 2 C, h, w] float32 on the CPU of a picture's unscaled latent.

    Raises RequestError where memory runs out, or the autoencoder's numbers do.
    """
    height, width = picture.shape[-2:]
    picture = pad_to_grid(picture, model.autoencoder.config.downscale)

    def encode(network: Autoencoder) -> Tensor:
        with same_bits(network):
            return network.encode(picture.to(next(network.parameters()))).float().cpu()

    try:
        return finite(model.autoencoder, encode, "encoding")
    except Exception as error:
        if not out_of_memory(error):
            raise
        release(model.device)
        raise RequestError(f"memory ran out while encoding {width}x{height} pixels; give a smaller picture") from error


def unchanged(picture: Image.Image) -> Composite:
    """The composite of a job that changes nothing."""
    return Composite(picture, Image.new("L", picture.size, 0), (0, 0, *picture.size), picture.size)
