"""The options that all commands which draw have in common: what a request is, and the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from ..request import Hires, Request
from . import options

if TYPE_CHECKING:
    from ..engine import Inputs
    from ..pipeline import Pipeline


@dataclass(frozen=True)
class Asked:
    """What the options of a drawing command say."""

    request: Request  # with an empty prompt
    load: Callable[[], Pipeline]
    inputs: Callable[[Pipeline, Sequence[Request]], Inputs]  # what all its pictures are made from beside requests


@options.taking(options.given, "inputs")
def drawing(
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", parser=options.whole_number, help="The first picture's; the next takes the next."),
    ] = None,
    model: options.Model = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", parser=options.whole_number, help="[default: the sampler's]")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            parser=options.real_number,
            help="How closely to follow the prompt; 1: no guidance. [default: the model's, or 7.5]",
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="See `darkroom samplers`. [default: the model's]")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME", help="Spacing of the noise levels: karras, exponential, ...")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels. [default: the model's]")] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What to lead away from.")] = "",
    clip_skip: Annotated[
        int,
        typer.Option(metavar="N", parser=options.whole_number, help="2: the text encoder's last layer but one."),
    ] = 0,
    prompt_style: Annotated[
        str, typer.Option(metavar="STYLE", help="The prompt's grammar: a1111, comfy or plain.")
    ] = "a1111",
    guidance_rescale: Annotated[
        float,
        typer.Option(metavar="X", parser=options.real_number, help="0 to 1: against overexposure at high guidance."),
    ] = 0.0,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Guide at noise levels (sigma) above LOW, up to HIGH. [default: all]"),
    ] = None,
    guidance_projection: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="0 to 1: against oversaturation at high guidance."),
    ] = None,
    pag: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="Perturbed-attention guidance, such as 3."),
    ] = None,
    pag_levels: Annotated[
        str | None, typer.Option(metavar="LIST", help="With --pag: U-Net levels, such as mid,up.1. [default: mid]")
    ] = None,
    pag_adaptive: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="With --pag: by how much it falls a timestep."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="Dynamic thresholding: a percentile, as 0.995."),
    ] = None,
    threshold_mimic: Annotated[
        float | None,
        typer.Option(
            metavar="X", parser=options.real_number, help="With --threshold: the guidance whose range stays; else 1."
        ),
    ] = None,
    image_guidance: Annotated[
        float | None,
        typer.Option(
            metavar="X", parser=options.real_number, help="Of editing models: how closely to follow --image; else 1.5."
        ),
    ] = None,
    *,
    inputs: options.Reader,
    strength: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="0 to 1: how much --image changes. [default: 0.75]"),
    ] = None,
    exact_steps: Annotated[
        bool, typer.Option("--exact-steps", help="With --image: take all --steps, not steps x strength.")
    ] = False,
    fill: Annotated[
        str | None, typer.Option(metavar="HOW", help="What the masked part begins as: original, fill or noise.")
    ] = None,
    only_masked: Annotated[
        bool, typer.Option("--only-masked", help="Redraw around the mask at the model's own size, and put it back.")
    ] = False,
    mask_padding: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=options.whole_number, help="With --only-masked: pixels around it. [default: 32]"
        ),
    ] = None,
    mask_blur: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=options.whole_number, help="The mask's soft edge in pixels, inside it. [default: 4]"
        ),
    ] = None,
    outpaint: Annotated[
        str | None, typer.Option(metavar="SIDES", help="Extend --image: left=128,top=64,right=0,bottom=0.")
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(metavar="N", parser=options.whole_number, help="0 to 350, of upscaling models. [default: 20]"),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=options.whole_number, help="Draw in overlapping windows of N pixels that agree."
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="N", parser=options.whole_number, help="What windows share. [default: a quarter]"),
    ] = None,
    hires: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="Then enlarge X times, and draw it over once more."),
    ] = None,
    hires_strength: Annotated[
        float | None, typer.Option(metavar="X", parser=options.real_number, help="Of that. [default: 0.7]")
    ] = None,
    hires_steps: Annotated[
        int | None, typer.Option(metavar="N", parser=options.whole_number, help="Of that. [default: --steps]")
    ] = None,
    hires_upscaler: Annotated[
        str | None, typer.Option(metavar="HOW", help="What is enlarged: latent or lanczos. [default: latent]")
    ] = None,
    cache_interval: Annotated[
        int,
        typer.Option(metavar="N", parser=options.whole_number, help="Faster, lossy: deep features every N-th step."),
    ] = 1,
    token_merging: Annotated[
        float,
        typer.Option(metavar="X", parser=options.real_number, help="Faster, lossy: 0 to 0.75 of the finest tokens."),
    ] = 0.0,
    original_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Told to SDXL: what the picture was cut out of. [default: --size]")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="LEFT,TOP", help="Told to SDXL: where it was cut out. [default: 0,0]")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Told to SDXL: the size it is for. [default: --size]")
    ] = None,
    aesthetic_score: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="Told to SDXL's refiner, 0 to 10. [default: 6]"),
    ] = None,
    negative_original_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="The same with --negative. [default: --original-size]")
    ] = None,
    negative_crop: Annotated[
        str | None, typer.Option(metavar="LEFT,TOP", help="The same with --negative. [default: --crop]")
    ] = None,
    negative_target_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="The same with --negative. [default: --target-size]")
    ] = None,
    negative_aesthetic_score: Annotated[
        float | None,
        typer.Option(metavar="X", parser=options.real_number, help="The same with --negative. [default: 2.5]"),
    ] = None,
    lora_dir: options.LoraDir = None,
    vae: options.Vae = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    compile: options.Compile = False,
    quantize: options.Quantize = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
) -> Asked:
    """The options that all commands which draw have in common, checked as far as no model is needed for it."""
    width, height = options.size(size) or (None, None)
    margins = options.margins(outpaint)
    told = {
        "original_size": options.size(original_size, "--original-size"),
        "crop": options.two_numbers(crop, "--crop", "pixels, such as 64,0"),
        "target_size": options.size(target_size, "--target-size"),
        "negative_original_size": options.size(negative_original_size, "--negative-original-size"),
        "negative_crop": options.two_numbers(negative_crop, "--negative-crop", "pixels, such as 64,0"),
        "negative_target_size": options.size(negative_target_size, "--negative-target-size"),
    }
    interval = options.two_numbers(guidance_interval, "--guidance-interval", "noise levels, such as 0.3,5")
    with options.named_as_options():
        request = Request(
            prompt="",
            negative_prompt=negative,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance,
            guidance_rescale=guidance_rescale,
            guidance_interval=interval,
            guidance_projection=guidance_projection,
            pag_scale=pag,
            pag_adaptive_scale=pag_adaptive,
            pag_levels=tuple(pag_levels.split(",")) if pag_levels is not None else None,
            threshold=threshold,
            threshold_mimic=threshold_mimic,
            cache_interval=cache_interval,
            token_merging=token_merging,
            image_guidance_scale=image_guidance,
            sampler=sampler,
            schedule=schedule,
            seed=seed,
            clip_skip=clip_skip,
            prompt_style=prompt_style,
            strength=strength,
            exact_steps=exact_steps or None,
            fill=fill,
            only_masked=only_masked or None,
            mask_padding=mask_padding,
            mask_blur=mask_blur,
            outpaint=margins,  # type: ignore[arg-type]  # a Request makes four numbers of it
            noise_level=noise_level,
            tile=tile,
            overlap=overlap,
            hires=_hires(scale=hires, strength=hires_strength, steps=hires_steps, upscaler=hires_upscaler),
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
            **told,  # type: ignore[arg-type]  # a Request makes whole numbers of them
        )
    if sampler is not None:
        from ..samplers import canonical

        canonical(sampler)  # says so before a model is loaded

    def load() -> Pipeline:
        if schedule is not None:
            from ..diffusion import spacing_name
            from ..engine.plan import AUTOMATIC

            if schedule.lower() != AUTOMATIC:
                spacing_name(schedule)
        return options.load(model, device, dtype, compile, threads, lora_dir, vae, backend, quantize=quantize)

    return Asked(request, load, inputs)


def _hires(**given: Any) -> Hires | None:
    """The second pass that the options say, or none. Raises `RequestError`."""
    said = {name: value for name, value in given.items() if value is not None}
    if said and "scale" not in said:
        raise RequestError(f"--hires-{next(iter(said))} is given without --hires; give it too, such as --hires 2")
    return Hires(**said) if said else None
