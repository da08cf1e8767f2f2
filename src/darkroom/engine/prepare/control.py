"""The ControlNets of a job: whether they fit the model, what each is shown of the picture, and when it acts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ...diffusion.condition import ControlInput, Controls, window
from ...errors import RequestError
from ...images import pad_to_grid, to_tensor, to_unit
from ...models.controlnet import ControlNet
from ..job import Job, OpenedControl
from .common import LoadedModel

BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of their text


def steered(model: LoadedModel, job: Job, controls: tuple[OpenedControl, ...]) -> Job:
    """A job with its controls. Raises RequestError for one that doesn't fit the model."""
    if not controls:
        return job
    windows = []
    count = evaluations(job)
    for control in controls:
        for problem in _problems(control.net, control.used.name, model):
            raise RequestError(problem)
        used = control.used
        guess = used.guess or control.net.config.global_pool
        steering = ControlInput(control.net, _fitted(model, job, control.hint), used.scale, guess)
        windows.append((steering, window(used.start, used.stop, count)))
    job.controls = Controls(tuple(windows))
    return job


def evaluations(job: Job) -> int:
    """How often a job's sampler will ask the network: found out by letting it step over a picture of one number."""
    state, nothing = replace(job.state, x=torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1)
    count = 0
    while state.interval < len(job.sigmas) - 1:
        state = job.sampler.step(state, nothing, job.sigmas, lambda k: nothing)
        count += 1
    return count


def _fitted(model: LoadedModel, job: Job, picture: Image.Image) -> Tensor:
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


def _problems(net: ControlNet, name: str, model: LoadedModel) -> Iterator[str]:
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
