"""From prompts to guidance: texts become conditions, schedules timelines, AND a composition."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from ...diffusion.condition import Condition, Prompted, Timeline
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
from ...errors import RequestError
from ...models.config import UNetConfig
from ...prompts.grammar import Part, Prompt
from ...request import SCORES, SIZES, Request
from ..job import ParsedRequest
from ..plan import Plan
from .common import LoadedModel

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what diffusers tells the refiner

Guide = Callable[[Prompted, Prompted, float], Guidance]  # prompt, negative prompt, scale


def guidance(
    model: LoadedModel,
    parsed: ParsedRequest,
    recipe: Request,
    plan: Plan,
    guide: Guide = ClassifierFree,
    channels: Tensor | None = None,
    class_label: int | None = None,
) -> Guidance:
    """Classifier-free guidance between the prompt and the negative prompt, or the prompt alone at scale 1 or below.

    Prompts may change over the plan's steps, and be composed of parts. A network distilled to take the scale as an
    input (LCM) is told it, and asked once.

    Args:
        recipe: the complete request.
        guide: what holds prompt and negative prompt.
        channels: what the network sees beside the latent, [C', h, w].
        class_label: the class it is told.
    """
    scale, style = recipe.guidance_scale, recipe.prompt_style
    assert scale is not None
    distilled = scale if model.unet.config.time_cond_proj_dim is not None else None
    _check_sizes(recipe, model.unet.config)

    def condition(text: str, negative: bool) -> Condition:
        words, loras = parsed.words, parsed.inputs.loras
        encoded = model.prompts.encode(text, style=style, clip_skip=recipe.clip_skip, words=words, loras=loras)
        pooled = model.prompts.pooled(text, style=style, clip_skip=recipe.clip_skip, words=words, loras=loras)
        if negative and not text and model.zero_negative:
            encoded, pooled = torch.zeros_like(encoded), None if pooled is None else torch.zeros_like(pooled)
        count = 0 if pooled is None else model.unet.config.sizes(len(pooled))
        return Condition(
            encoded,
            channels=channels,
            class_label=class_label,
            guidance_scale=distilled,
            pooled=pooled,
            sizes=size_conditioning(count, recipe, negative) if count else None,
            loras=loras,
            negative=negative,
        )

    def prompted(prompt: Prompt, part: Part) -> Prompted:
        return over_steps(prompt, part, plan, partial(condition, negative=prompt is parsed.negative))

    parts = parsed.prompt.parts
    if distilled is not None and len(parts) > 1:
        raise RequestError("this model takes its guidance scale as an input and can't compose prompts; leave out AND")
    if len(parts) == 1 and (distilled is not None or scale <= 1):
        alone = prompted(parsed.prompt, parts[0])
        return _shaped(model, recipe, guide(alone, alone, min(scale, 1.0)))
    negative = prompted(parsed.negative, parsed.negative.parts[0])
    guided = [_shaped(model, recipe, guide(prompted(parsed.prompt, part), negative, scale)) for part in parts]
    if len(parts) == 1:
        return guided[0]
    return Composed(tuple(guided), tuple(part.weight for part in parts), negative)


def over_steps(prompt: Prompt, part: Part, plan: Plan, condition: Callable[[str], Condition]) -> Prompted:
    """A part's condition, or its timeline where its text changes; `condition` is called once for each text.

    The steps counted are those that the plan runs, from where it starts. Raises RequestError as `Prompt.stages` does.
    """
    found = prompt.stages(part, max(plan.steps - plan.start, 1))
    condition_of = cache(condition)
    if len(found) == 1:
        return condition_of(found[0].text)
    return Timeline(tuple((plan.sigmas[plan.start + stage.until], condition_of(stage.text)) for stage in found))


def _shaped(model: LoadedModel, recipe: Request, guided: Guidance) -> Guidance:
    """A guidance with all around it that the recipe wants, in this order (docs/guidance.md)."""
    scale = recipe.guidance_scale or 0.0
    if recipe.pag_scale:
        levels = _attention_levels(model.unet.config, recipe.pag_levels or ("mid",))
        adaptive = recipe.pag_adaptive_scale or 0.0
        guided = Perturbed(guided, recipe.pag_scale, levels, adaptive, model.schedule if adaptive else None)
    if recipe.guidance_projection:
        guided = Projected(guided, 1.0 - recipe.guidance_projection)
    if recipe.guidance_rescale and scale > 1:  # as diffusers does: it is there for high scales
        guided = Rescaled(guided, recipe.guidance_rescale, model.denoiser.scaling)
    if recipe.threshold is not None:
        mimic = ((recipe.threshold_mimic or 1.0) - 1.0) / (scale - 1.0) if scale > 1 else 0.0
        guided = Thresholded(guided, recipe.threshold, min(mimic, 1.0))
    if recipe.guidance_interval is not None:
        guided = Within(guided, recipe.guidance_interval)
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


# --- size conditioning (SDXL: Podell et al. 2023, arXiv 2307.01952, sec. 2.2)


def size_conditioning(count: int, recipe: Request, negative: bool) -> tuple[float, ...]:
    """Height and width of the original, top and left of the crop, then height and width of the target: 6 numbers.

    For a refiner, 5 numbers: in place of the target the aesthetic score. What isn't asked for the negative prompt is
    as for the prompt.
    """
    assert recipe.width is not None
    assert recipe.height is not None
    own = (recipe.width, recipe.height)
    original = (negative and recipe.negative_original_size) or recipe.original_size or own
    crop = (negative and recipe.negative_crop) or recipe.crop or (0, 0)
    first = (original[1], original[0], crop[1], crop[0])
    if count == 5:
        score = recipe.negative_aesthetic_score if negative else recipe.aesthetic_score
        usual = NEGATIVE_AESTHETIC_SCORE if negative else AESTHETIC_SCORE
        return (*first, usual if score is None else score)
    target = (negative and recipe.negative_target_size) or recipe.target_size or own
    return (*first, target[1], target[0])


def _check_sizes(recipe: Request, config: UNetConfig) -> None:
    """Raise RequestError where sizes are asked for that this model is not conditioned on."""
    asked = [name for name in (*SIZES, *SCORES) if getattr(recipe, name) is not None]
    if asked and not config.size_conditioning:
        raise RequestError(
            f"{asked[0]} is {getattr(recipe, asked[0])!r}, and only SDXL is told such a thing; leave it out"
        )
