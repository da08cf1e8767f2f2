"""What all tasks share: what they need of a model, a picture's noise, and the job made of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...adapters import Adapter, Scaled
from ...diffusion.brownian import BrownianNoise
from ...diffusion.denoiser import Denoiser
from ...diffusion.guidance import Guidance
from ...diffusion.noise import PhiloxNoise, SeededNoise, centred, first_draw, slerp
from ...diffusion.schedule import Schedule
from ...errors import RequestError
from ...models.autoencoder import Autoencoder
from ...models.controlnet import ControlNet
from ...models.unet import UNet
from ...prompts.embeddings import LearnedWord
from ...prompts.tokenizer import Tokenizer
from ...request import SEEDS, Request
from ...samplers.state import Noise, SamplerState, Stochastic
from ..decode import Previewer
from ..enlarge import Upscaler
from ..job import Job, LoadedControlNet, ParsedRequest
from ..plan import Plan


class Prompts(Protocol):
    """What encodes texts (prompts.PromptEncoder)."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    def encode(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor: ...
    def pooled(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor | None: ...


class LoadedModel(Protocol):
    """What the engine needs of a loaded model (pipeline.Pipeline has it)."""

    @property
    def unet(self) -> UNet: ...
    @property
    def autoencoder(self) -> Autoencoder: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def scheduler_config(self) -> Mapping[str, Any]: ...
    @property
    def low_res_schedule(self) -> Schedule: ...
    @property
    def denoiser(self) -> Denoiser: ...
    @property
    def prompts(self) -> Prompts: ...
    @property
    def zero_negative(self) -> bool: ...
    @property
    def previewer(self) -> Previewer: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def name(self) -> str: ...
    @property
    def model_hash(self) -> str | None: ...
    @property
    def vae(self) -> str | None: ...
    @property
    def vae_hash(self) -> str | None: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def defaults(self) -> Mapping[str, float]: ...
    def find_upscaler(self, name: str, hash: str | None = None) -> Upscaler: ...
    @property
    def merged_loras(self) -> tuple[Scaled, ...]: ...
    def find_lora(self, name: str) -> Adapter: ...
    def controlnet(self, source: str | Path | ControlNet) -> LoadedControlNet: ...


class GivenNoise:
    """Starting noise that was given, and a seed's draws after it. Picklable."""

    def __init__(self, first: Tensor, rest: Noise) -> None:
        self.first = first
        self.rest = rest

    def __call__(self, k: int) -> Tensor:
        return self.first if k == 0 else self.rest(k)


@dataclass(frozen=True)
class Later:
    """Noise whose first draws are taken already. Picklable."""

    noise: Noise
    taken: int

    def __call__(self, k: int) -> Tensor:
        return self.noise(k + self.taken)


_KINDS: Mapping[str, type[SeededNoise] | type[PhiloxNoise]] = {"cpu": SeededNoise, "nv": PhiloxNoise}


def noise_of(
    model: LoadedModel,
    recipe: Request,
    plan: Plan,
    latents: Tensor | None,
    shape: tuple[int, ...],
    taken: int = 0,
    before: tuple[int, ...] | None = None,
) -> Noise:
    """A picture's noise [C, h, w]: its seed's, or the given latents first. `recipe` is complete.

    taken: so many of the seed's draws are used already, for other things than noise; "nv" noise gives none of its own
        to those (as A1111).
    before: the shape of another draw that comes before all of them.
    """
    assert recipe.seed is not None
    kind = _KINDS[recipe.noise]
    taken = taken if recipe.noise == "cpu" else 0

    def stream(seed: int, shape: tuple[int, ...] = shape) -> Noise:
        noise = kind(seed, shape, before)
        return Later(noise, taken) if taken else noise

    noise = stream(recipe.seed)
    if latents is not None:
        first = _checked_latents(latents, shape)
    else:
        small = _small(model, recipe, shape)
        first = stream(recipe.seed, small)(0)
        if recipe.variation_strength:
            assert recipe.variation_seed is not None
            first = slerp(recipe.variation_strength, first, stream(recipe.variation_seed, small)(0))
        if small != shape:
            first = centred(first, noise(0))
    on_the_way = _KINDS[recipe.sampler_noise or recipe.noise]
    if recipe.ensd or recipe.sampler_noise:
        noise = Later(on_the_way((recipe.seed + recipe.ensd) % SEEDS, shape), -1)  # the first on the way is its first
    if recipe.brownian and isinstance(plan.sampler, Stochastic):
        levels = [level for level in plan.sigmas if level > 0]
        spans = plan.sampler.spans(plan.sigmas[plan.start :])
        first_of = partial(first_draw, on_the_way)
        noise = BrownianNoise(recipe.seed, shape, (min(levels), max(levels)), spans, noise, first_of)
    return GivenNoise(first, noise)


def _small(model: LoadedModel, recipe: Request, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the latent whose noise a picture begins with."""
    if recipe.seed_resize is None:
        return shape
    width, height = recipe.seed_resize
    grid = model.autoencoder.config.downscale
    return (shape[0], max(height // grid, 1), max(width // grid, 1))


def _checked_latents(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(latents.shape) != shape:
        raise RequestError(f"latents are of shape {list(latents.shape)} a picture; this size needs {list(shape)}")
    latents = latents.detach().to(device="cpu", dtype=torch.float32)
    if not bool(latents.isfinite().all()):
        raise RequestError("latents hold numbers that are not finite; give noise of unit variance")
    return latents.clone()


def assemble(
    parsed: ParsedRequest, recipe: Request, plan: Plan, state: SamplerState, noise: Noise, guided: Guidance
) -> Job:
    """The job that goes a plan's way from a first state."""
    return Job(
        id=parsed.id,
        request=recipe,
        sampler=plan.sampler,
        sigmas=tuple(plan.sigmas),
        state=state,
        guidance=guided,
        noise=noise,
        timesteps=plan.timesteps,
        final_scale=plan.final_scale,
        start=plan.start,
        stop=plan.stop,
        output=parsed.output,
    )
