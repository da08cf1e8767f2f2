"""What SDXL is told of a picture beside its text (Podell et al. 2023, arXiv 2307.01952, sec. 2.2).

Prompts to what guidance holds: texts become conditions, schedules timelines, AND a composition.

What all tasks share: the complete request, the noise, the plan, the guidance, and the job made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from ... import __version__
from ...adapters import Adapter, Scaled
from ...diffusion.condition import Condition, Prompted, Timeline
from ...diffusion.denoiser import Denoiser
from ...diffusion.guidance import (
    ClassifierFree,
    Composed,
    Guidance,
    Perturbed,
    Projected,
    Rescaled,
    Thresholded,
    Within,
)
from ...diffusion.noise import SeededNoise
from ...diffusion.schedule import Schedule
from ...errors import RequestError
from ...models.autoencoder import Autoencoder
from ...models.config import UNetConfig
from ...models.controlnet import ControlNet
from ...models.unet import UNet
from ...prompts.embeddings import Finder, LearnedWord, fingerprints
from ...prompts.grammar import Part, parts, stages
from ...request import MAX_PIXELS, OF_AN_IMAGE, OUTPUTS, SCORES, SIZES, Request, choice, draw_seed
from ...samplers import entry
from ...samplers.state import Noise, SamplerState
from ..job import Inputs, Job
from ..plan import Plan, plan
from ..preview import Previewer

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what diffusers tells the refiner


def sizes_of(count: int, request: Request, negative: bool) -> tuple[float, ...]:
    """Height and width of the original, top and left of the crop, then height and width of the target: 6 numbers.

    For a refiner, 5 numbers: in place of the target the aesthetic score. `request` is complete. What isn't asked for
    the negative prompt is as for the prompt.
    """
    assert request.width is not None
    assert request.height is not None
    own = (request.width, request.height)
    original = (negative and request.negative_original_size) or request.original_size or own
    crop = (negative and request.negative_crop) or request.crop or (0, 0)
    first = (original[1], original[0], crop[1], crop[0])
    if count == 5:
        score = request.negative_aesthetic_score if negative else request.aesthetic_score
        usual = NEGATIVE_AESTHETIC_SCORE if negative else AESTHETIC_SCORE
        return (*first, usual if score is None else score)
    target = (negative and request.negative_target_size) or request.target_size or own
    return (*first, target[1], target[0])


def check_sizes(request: Request, config: UNetConfig) -> None:
    """Raise RequestError where sizes are asked for that this model is not told."""
    asked = [name for name in (*SIZES, *SCORES) if getattr(request, name) is not None]
    if asked and not config.size_conditioning:
        raise RequestError(
            f"{asked[0]} is {getattr(request, asked[0])!r}, and only SDXL is told such a thing; leave it out"
        )


# --- prompted


def over_steps(text: str, style: str, plan: Plan, condition: Callable[[str], Condition]) -> Prompted:
    """A prompt's condition, or its timeline where its text changes; `condition` is called once for each text.

    The steps counted are those that the plan runs, from where it starts. Raises RequestError as `stages` does.
    """
    if style != "a1111":
        return condition(text)
    found = stages(text, max(plan.steps - plan.start, 1))
    if len(found) == 1:
        return condition(found[0].text)
    conditions = {words: condition(words) for words in dict.fromkeys(stage.text for stage in found)}
    return Timeline(tuple((plan.sigmas[plan.start + stage.until], conditions[stage.text]) for stage in found))


def composed_parts(request: Request) -> tuple[Part, ...]:
    """The prompts that AND joins, with their weights; in a grammar without AND the whole prompt."""
    return parts(request.prompt) if request.prompt_style == "a1111" else (Part(request.prompt),)


def learned_words(request: Request, inputs: Inputs) -> tuple[LearnedWord, ...]:
    """The learned words given that the request's texts use. Raises RequestError where a recipe's are not given."""
    given = {word.hash: word for word in inputs.embeddings}
    for recorded in request.embeddings:
        name, _, digits = recorded.rpartition(":")
        if not any(word.startswith(digits) for word in given):
            raise RequestError(
                f"this picture was drawn with the embedding {name[:60]!r} (hash {digits[:16]}); give that file again"
            )
    finder = Finder(inputs.embeddings, request.prompt_style)
    used = [*finder.used(request.prompt), *finder.used(request.negative_prompt)]
    return tuple({word.hash: word for word in used}.values())


# --- common


GUIDANCE_SCALE = 7.5  # what diffusers, and the published examples, use


class LoadedControlNet(NamedTuple):
    """A ControlNet ready to steer, where it is from, and ten hexadecimal digits of its file's SHA-256."""

    net: ControlNet
    name: str
    hash: str | None


class Prompts(Protocol):
    """What encodes texts (prompts.PromptEncoder)."""

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


class Model(Protocol):
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


NOTHING = Inputs()


def noise_of(
    request: Request, inputs: Inputs, shape: tuple[int, ...], taken: int = 0, before: tuple[int, ...] | None = None
) -> Noise:
    """A picture's noise [C, h, w]: its seed's, or the given latents first. `request` is complete.

    taken: so many of the seed's draws are used already, for other things than noise.
    before: the shape of another draw that comes before all of them.
    """
    assert request.seed is not None
    noise: Noise = SeededNoise(request.seed, shape, before)
    if taken:
        noise = Later(noise, taken)
    return noise if inputs.latents is None else GivenNoise(_checked_latents(inputs.latents, shape), noise)


def plan_of(model: Model, request: Request) -> Plan:
    """Sampler and noise levels of a complete request; the scheduler of the model's folder where it leaves them open."""
    literal = model.unet.config.size_conditioning  # diffusers' pipelines of SDXL take a scheduler's flags as they are
    config, steps = model.scheduler_config, request.steps
    return plan(model.schedule, config, steps, request.sampler, request.schedule, literal=literal)


def assemble(
    id: str, request: Request, plan: Plan, state: SamplerState, noise: Noise, guided: Guidance, output: str
) -> Job:
    """A job whose recipe says what the plan has chosen. `output` is "pil", "pt" or "latent"."""
    choice("output", output, OUTPUTS)
    return Job(
        id=id,
        request=replace(
            request,
            steps=request.steps or _usual_steps(plan.sampler_name),
            sampler=plan.sampler_name,
            schedule=plan.schedule_name,
            version=__version__,
        ),
        sampler=plan.sampler,
        sigmas=tuple(plan.sigmas),
        state=state,
        guidance=guided,
        noise=noise,
        timesteps=plan.timesteps,
        final_scale=plan.final_scale,
        start=plan.start,
        stop=plan.stop,
        output=output,
    )


def _wanted_steps(model: Model, request: Request) -> int | None:
    if request.steps is None and request.sampler is None and "steps" in model.defaults:
        return int(model.defaults["steps"])
    return request.steps


def _usual_steps(sampler: str) -> int:
    """The number of steps a plan has when none was asked for."""
    return entry(sampler).steps


def complete(model: Model, request: Request, inputs: Inputs) -> Request:
    """The request with size, seed and guidance filled in, and the model's name in place of whatever it held."""
    latents = inputs.latents
    if request.latents is not None and latents is None:
        raise RequestError(
            f"this recipe began from noise that was given (fingerprint {request.latents}), not from its seed; "
            f"give the same latents again"
        )
    _check_pictures(request, inputs)
    _check_relay(request, inputs)
    if request.noise_level is not None and model.unet.config.num_class_embeds is None:
        raise RequestError(f"noise_level is {request.noise_level}, which only upscaling models take; leave it out")
    width, height = request.width or model.size[0], request.height or model.size[1]
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width}x{height} is {width * height:,} pixels; ask for {MAX_PIXELS:,} or fewer")
    return replace(
        request,
        width=width,
        height=height,
        steps=_wanted_steps(model, request),
        seed=draw_seed() if request.seed is None else request.seed,
        guidance_scale=_first(request.guidance_scale, model.defaults.get("guidance_scale"), GUIDANCE_SCALE),
        image=None if inputs.image is None else picture_fingerprint(inputs.image),
        mask=None if inputs.mask is None else picture_fingerprint(inputs.mask),
        depth=None if inputs.depth is None else fingerprint(inputs.depth),
        embeddings=fingerprints(learned_words(request, inputs)),
        latents=None if latents is None else fingerprint(latents),
        model=model.name or None,
        model_hash=model.model_hash,
        vae=model.vae,
        vae_hash=model.vae_hash,
    )


def _first(*values: float | None) -> float | None:
    """What was asked for, else what the model's folder recommends, else what everybody uses."""
    return next((value for value in values if value is not None), None)


def _checked_latents(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(latents.shape) != shape:
        raise RequestError(f"latents are of shape {list(latents.shape)} a picture; this size needs {list(shape)}")
    latents = latents.detach().to(device="cpu", dtype=torch.float32)
    if not bool(latents.isfinite().all()):
        raise RequestError("latents hold numbers that are not finite; give noise of unit variance")
    return latents.clone()


def fingerprint(latents: Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of starting noise, as little-endian float32."""
    values = latents.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().astype("<f4")
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def picture_fingerprint(picture: Image.Image) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a picture's "WIDTHxHEIGHT" and its pixels."""
    return hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.tobytes()).hexdigest()[:16]


def _check_relay(request: Request, inputs: Inputs) -> None:
    """Raise RequestError where a picture can't be taken over from, or handed on to, another model."""
    for name in ("start", "stop"):
        if getattr(request, name) is not None and inputs.image is not None:
            raise RequestError(f"{name} is {getattr(request, name)}, which goes with a text alone; leave out the image")
    if request.start is not None and inputs.latents is None:
        raise RequestError(f"start is {request.start}, but there are no latents; give those of a picture that stopped")


def _check_pictures(request: Request, inputs: Inputs) -> None:
    """Raise RequestError where a recipe's pictures are missing, or something is said about a picture there isn't."""
    for name in ("image", "mask", "depth"):
        if getattr(request, name) is not None and getattr(inputs, name) is None:
            raise RequestError(
                f"this recipe was made with {'an' if name == 'image' else 'a'} {name} that was given (fingerprint "
                f"{getattr(request, name)}); give the same {name} again"
            )
    said = [name for name in OF_AN_IMAGE if getattr(request, name) is not None]
    if inputs.image is None and said:
        value = getattr(request, said[0])
        raise RequestError(f"{said[0]} is {value!r}, but there is no image; give one, or leave it out")


Guide = Callable[[Prompted, Prompted, float], Guidance]  # prompt, negative prompt, scale


def guidance(model: Model, request: Request, plan: Plan, inputs: Inputs, guide: Guide = ClassifierFree) -> Guidance:
    """Classifier-free guidance between the prompt and the negative prompt, or the prompt alone at scale 1 or below.

    Prompts may change over the plan's steps, and be composed of parts. A network distilled to take the scale as an
    input (LCM) is told it, and asked once. `guide` is what holds prompt and negative prompt.
    """
    scale = request.guidance_scale
    assert scale is not None
    told = scale if model.unet.config.time_cond_proj_dim is not None else None
    words = learned_words(request, inputs)
    check_sizes(request, model.unet.config)

    def condition(text: str, negative: bool = False) -> Condition:
        style, clip_skip = request.prompt_style, request.clip_skip
        encoded = model.prompts.encode(text, style=style, clip_skip=clip_skip, words=words, loras=inputs.loras)
        pooled = model.prompts.pooled(text, style=style, clip_skip=clip_skip, words=words, loras=inputs.loras)
        if negative and not text and model.zero_negative:
            encoded, pooled = torch.zeros_like(encoded), None if pooled is None else torch.zeros_like(pooled)
        sizes = None if pooled is None else sizes_of(model.unet.config.sizes(len(pooled)), request, negative)
        return Condition(encoded, guidance_scale=told, pooled=pooled, sizes=sizes, negative=negative)

    def prompted(text: str, negative: bool = False) -> Prompted:
        return over_steps(text, request.prompt_style, plan, partial(condition, negative=negative))

    parts = composed_parts(request)
    if told is not None and len(parts) > 1:
        raise RequestError("this model takes its guidance scale as an input and can't compose prompts; leave out AND")
    if len(parts) == 1 and (told is not None or scale <= 1):
        alone = prompted(request.prompt)
        return shaped(model, request, guide(alone, alone, min(scale, 1.0)))
    negative = prompted(request.negative_prompt, negative=True)
    guided = [shaped(model, request, guide(prompted(part.text), negative, scale)) for part in parts]
    if len(parts) == 1:
        return guided[0]
    return Composed(tuple(guided), tuple(part.weight for part in parts), negative)


def shaped(model: Model, request: Request, guided: Guidance) -> Guidance:
    """A guidance with all around it that the request wants, in this order (docs/guidance.md)."""
    scale = request.guidance_scale or 0.0
    if request.pag_scale:
        levels = _attention_levels(model.unet.config, request.pag_levels or ("mid",))
        adaptive = request.pag_adaptive_scale or 0.0
        guided = Perturbed(guided, request.pag_scale, levels, adaptive, model.schedule if adaptive else None)
    if request.guidance_projection:
        guided = Projected(guided, 1.0 - request.guidance_projection)
    if request.guidance_rescale and scale > 1:  # as diffusers does: it is there for high scales
        guided = Rescaled(guided, request.guidance_rescale, model.denoiser.scaling)
    if request.threshold is not None:
        mimic = ((request.threshold_mimic or 1.0) - 1.0) / (scale - 1.0) if scale > 1 else 0.0
        guided = Thresholded(guided, request.threshold, min(mimic, 1.0))
    if request.guidance_interval is not None:
        guided = Within(guided, request.guidance_interval)
    return guided


def _attention_levels(config: UNetConfig, levels: tuple[str, ...]) -> tuple[str, ...]:
    """The levels, if all of them have self-attention that can be perturbed; else RequestError."""
    levels_of = zip(config.attention_levels, config.only_cross_attention, strict=True)
    own = [attends and not only_cross for attends, only_cross in levels_of]
    there = ["mid"] * (config.mid_block and config.mid_block_attention)
    there += [f"down.{i}" for i, attends in enumerate(own) if attends]
    there += [f"up.{i}" for i, attends in enumerate(reversed(own)) if attends]
    for level in levels:
        if level not in there:
            raise RequestError(
                f"pag_levels has {level!r}, where this model's U-Net has no self-attention; "
                f"there is some in {', '.join(there) or 'none of its levels'}"
            )
    return levels
