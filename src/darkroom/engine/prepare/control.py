"""ControlNets of a request: their hints made and fitted, and when each acts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ... import hints
from ...diffusion.condition import ControlInput, Controls, window
from ...errors import RequestError
from ...images import open_picture, pad_to_grid, to_tensor, to_unit
from ...models.controlnet import ControlNet
from ...request import Request, UsedControl
from ..job import Control, Job
from .common import picture_fingerprint

if TYPE_CHECKING:
    from .common import Model

BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of their text


def check_controls(request: Request, controls: tuple[Control, ...]) -> None:
    """Raise RequestError for a recipe that was steered, where nothing steers now."""
    if request.controls and not controls:
        names = ", ".join(repr(used.name[:60]) for used in request.controls)
        raise RequestError(
            f"this recipe was made with pictures that were given to ControlNets ({names}); give the same controls again"
        )


def steered(model: Model, job: Job, controls: tuple[Control, ...]) -> Job:
    """A job with its controls, and a recipe that names them. Raises RequestError for one that doesn't fit the model."""
    if not controls:
        return job
    if job.request.cache_interval > 1:
        raise RequestError(
            f"cache_interval is {job.request.cache_interval}, which doesn't go with ControlNets; leave it out, or them"
        )
    used, windows = [], []
    count = evaluations(job)
    for control in controls:
        loaded = model.controlnet(control.net)
        for problem in _problems(loaded.net, loaded.name, model):
            raise RequestError(problem)
        picture = hints.make(control.hint, control.image) if control.hint else open_picture(control.image, "a hint")
        used.append(
            UsedControl(
                loaded.name, loaded.hash, picture_fingerprint(picture), control.scale, control.start, control.stop,
                control.guess,
            )
        )  # fmt: skip
        guess = control.guess or loaded.net.config.global_pool
        steering = ControlInput(loaded.net, _fitted(model, job, picture), control.scale, guess)
        windows.append((steering, window(control.start, control.stop, count)))
    job.controls = Controls(tuple(windows))
    job.request = replace(job.request, controls=tuple(used))
    return job


def evaluations(job: Job) -> int:
    """How often a job's sampler will ask the network: found out by letting it step over a picture of one number."""
    state, nothing = replace(job.state, x=torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1)
    count = 0
    while state.interval < len(job.sigmas) - 1:
        state = job.sampler.step(state, nothing, job.sigmas, lambda k: nothing)
        count += 1
    return count


def _fitted(model: Model, job: Job, picture: Image.Image) -> Tensor:
    """A hint [3, H, W] in 0..1 over exactly the job's latent: resized (Lanczos) to what is drawn, then padded.

    Where only part of a picture is drawn, the hint is of the whole picture, and that part of it counts.
    """
    if job.composite is not None:
        whole = job.composite.picture.size
        picture = _resized(picture, whole)
        picture = picture if job.composite.box == (0, 0, *whole) else picture.crop(job.composite.box)
    seen = pad_to_grid(to_unit(to_tensor(_resized(picture, job.size))), model.autoencoder.config.downscale)
    return seen[0].to(model.device)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _problems(net: ControlNet, name: str, model: Model) -> Iterator[str]:
    """What keeps a ControlNet from steering a model, in words."""
    config, unet, this = net.config, model.unet.config, f"the ControlNet {name[:60]!r}"
    if config.cross_attention_dim != unet.cross_attention_dim:
        theirs, ours = (
            f"{BASES.get(width, 'a custom model')} (texts of width {width})"
            for width in (config.cross_attention_dim, unet.cross_attention_dim)
        )
        yield f"{this} is made for {theirs}, and this model is {ours}; take a ControlNet of the model's own kind"
    for what in ("block_out_channels", "layers_per_block", "size_conditioning", "num_class_embeds"):
        if getattr(config, what) != getattr(unet, what):
            yield (
                f"{this} is made for another model: its {what} is {getattr(config, what)}, the U-Net's "
                f"{getattr(unet, what)}"
            )
    if config.in_channels > unet.in_channels:
        yield f"{this} takes latents of {config.in_channels} channels, and the U-Net {unet.in_channels}; take another"
    if config.hint_channels != 3 or config.hint_downscale != model.autoencoder.config.downscale:
        yield (
            f"{this} takes hints of {config.hint_channels} channels, {config.hint_downscale} times a latent's size; "
            f"this model needs 3, and {model.autoencoder.config.downscale}"
        )
