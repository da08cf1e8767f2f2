"""`darkroom generate`: pictures from texts."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli import INTERRUPTED, USER_ERROR, complain, new_app, options
from darkroom.cli.display import Display, uninterrupted
from darkroom.cli.verify import recorded_request
from darkroom.errors import RequestError
from darkroom.formats.picture import PictureExists, file_stem, read_metadata, write_into, write_picture
from darkroom.formats.recipe import load_json
from darkroom.request import MAX_IMAGES, SEEDS, Hires, Request, draw_seed, whole

if TYPE_CHECKING:
    from PIL import Image

    from darkroom.engine import Engine, Inputs
    from darkroom.pipeline import Pipeline

app = new_app()

_MAX_PROMPT_FILE = 64 * 2**20  # bytes


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
    lora_dir: options.LoraDir = None,
    vae: options.Vae = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    compile: options.Compile = False,
    threads: options.Threads = None,
) -> Asked:
    """The options that all commands which draw have in common, checked as far as no model is needed for it."""
    width, height = options.size(size)
    margins = options.margins(outpaint)
    with options.named_as_options():
        request = Request(
            prompt="",
            negative_prompt=negative,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance,
            guidance_rescale=guidance_rescale,
            guidance_projection=guidance_projection,
            pag_scale=pag,
            pag_levels=tuple(pag_levels.split(",")) if pag_levels is not None else None,
            threshold=threshold,
            threshold_mimic=threshold_mimic,
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
            tile=tile,
            overlap=overlap,
            hires=_hires(scale=hires, strength=hires_strength, steps=hires_steps, upscaler=hires_upscaler),
        )
    if sampler is not None:
        from darkroom.samplers import canonical

        canonical(sampler)  # says so before a model is loaded

    def load() -> Pipeline:
        if schedule is not None:
            from darkroom.diffusion.spacings import spacing_name
            from darkroom.engine.plan import AUTOMATIC

            if schedule.lower() != AUTOMATIC:
                spacing_name(schedule)
        return options.load(model, device, dtype, compile, threads, lora_dir, vae)

    return Asked(request, load, inputs)


@app.command()
@options.taking(drawing)
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help='What to draw; "-" reads prompts from stdin, one a line.'),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR|FILE", help="A folder, or FILE.png, .jpg, .webp.")
    ] = ".",
    prompts_file: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Read prompts from a file, one a line.")
    ] = None,
    count: Annotated[
        int,
        typer.Option("-n", "--num-images", metavar="N", parser=options.whole_number, help="Pictures of each prompt."),
    ] = 1,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Begin with the recipe of this picture (or JSON); options change it."),
    ] = None,
    *,
    asked: Asked,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: options.Json = False,
) -> int:
    """Draw pictures from texts, and print the paths of their files.

    darkroom generate "a fox on a yellow background" -n 4 --seed 1 -o out/
    """
    if recipe is not None:
        asked = replace(asked, request=_changed(_recipe(recipe), asked.request))
    texts = _prompts(prompts or [], prompts_file, None if recipe is None else asked.request.prompt)
    with options.named_as_options():
        whole("num_images", count, 1, MAX_IMAGES)
    first = draw_seed() if asked.request.seed is None else asked.request.seed
    with options.named_as_options():
        requests = [
            replace(asked.request, prompt=text, seed=(first + number) % SEEDS)
            for number, text in enumerate(text for text in texts for _ in range(count))
        ]
    write = writer(output, len(requests), overwrite)
    with Display("loading the model") as display:
        pipe = asked.load()
        from darkroom.engine import Engine

        # On a CPU a wider batch gains nothing, and alone each picture has the same bits as when it is drawn again.
        on_cpu = pipe.device.type == "cpu"
        engine = Engine(pipe, deterministic=on_cpu)
        together = 1 if on_cpu else max(1, engine.max_rows // 2)
        return draw(engine, requests, asked.inputs(pipe, requests), write, display, as_json, together)


def draw(
    engine: Engine,
    requests: Sequence[Request],
    inputs: Inputs,
    write: Callable[[Image.Image, dict[str, Any]], Path],
    display: Display,
    as_json: bool,
    together: int,
) -> int:
    """Draw the requests, at most `together` at a time, and write each picture as soon as it is finished."""
    from darkroom.engine import Failed, Finished, Progress

    waiting = deque(requests)
    written: list[dict[str, Any]] = []
    crossed, per_picture, failed, code = 0, 0, 0, 0
    try:
        while waiting or engine.jobs:
            while waiting and len(engine.jobs) < together:
                job = engine.jobs[engine.add(waiting.popleft(), inputs)]
                per_picture = job.total
            for event in engine.step():
                if isinstance(event, Progress):
                    crossed += 1
                    now = f"picture {len(written) + failed + 1} of {len(requests)}" if len(requests) > 1 else "drawing"
                    display.steps(crossed, max(crossed, per_picture * len(requests)), now)
                elif isinstance(event, Failed):
                    failed += 1
                    code = USER_ERROR
                    display.complain(str(event.error))
                elif isinstance(event, Finished):
                    recipe = event.request.to_dict()
                    with uninterrupted():
                        path = write(event.result, recipe)  # type: ignore[arg-type]  # output is "pil"
                        written.append({"path": str(path), "recipe": recipe})
                        if not as_json:
                            display.answer(str(path))
    except KeyboardInterrupt:
        display.close()
        complain(f"interrupted; {len(written)} of {len(requests)} pictures are written")
        code = INTERRUPTED
    finally:
        if as_json:
            display.answer(json.dumps({"images": written}, indent=2))
    return code


def _recipe(file: str) -> Request:
    """The request in a picture's metadata, or in a JSON file of its fields. Raises `ImageError`, `RequestError`."""
    if Path(file).suffix.lower() != ".json":
        return recorded_request(read_metadata(file), file)
    try:
        if (size := os.stat(file).st_size) > _MAX_PROMPT_FILE:
            raise RequestError(f"{file!r} has {size} bytes, which is more than any recipe")
        values = load_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"can't read a recipe from {file!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Request.from_dict(values)
    except RequestError as error:
        raise RequestError(f"the recipe in {file!r} can't be followed: {error}") from error


def _changed(recipe: Request, asked: Request) -> Request:
    """A recipe with what the options say in place of its own; what they leave at the default stays."""
    plain = Request(prompt="")
    names = [field.name for field in fields(Request)]
    return replace(recipe, **{name: value for name in names if (value := getattr(asked, name)) != getattr(plain, name)})


def _hires(**given: Any) -> Hires | None:
    """The second pass that the options say, or none. Raises `RequestError`."""
    said = {name: value for name, value in given.items() if value is not None}
    if said and "scale" not in said:
        raise RequestError(f"--hires-{next(iter(said))} is given without --hires; give it too, such as --hires 2")
    return Hires(**said) if said else None


def _prompts(arguments: list[str], file: str | None, otherwise: str | None = None) -> list[str]:
    """The prompts of the arguments and the file, in this order; else the recipe's. Raises `RequestError`."""
    texts: list[str] = []
    for argument in arguments:
        texts += _lines("-") if argument == "-" else [argument]
    if file is not None:
        texts += _lines(file)
    if not texts and otherwise is not None:
        return [otherwise]
    if not texts:
        raise RequestError('no prompt was given: darkroom generate "a fox on a yellow background"')
    return texts


def _lines(file: str) -> list[str]:
    """The lines of a UTF-8 file, or of stdin for "-", without the empty ones. Raises `RequestError`."""
    name = "stdin" if file == "-" else repr(file)
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_PROMPT_FILE + 1)
        else:
            if not stat.S_ISREG(os.stat(file).st_mode) and not stat.S_ISFIFO(os.stat(file).st_mode):
                raise RequestError(f"can't read prompts from {name}: it is not a file")
            with open(file, "rb") as stream:
                data = stream.read(_MAX_PROMPT_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"can't read prompts from {name}: {reason.lower()}") from error
    if len(data) > _MAX_PROMPT_FILE:
        raise RequestError(f"{name} is larger than {_MAX_PROMPT_FILE // 2**20} MB: split it into several files")
    try:
        texts = [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    texts = [text for text in texts if text]
    if not texts:
        raise RequestError(f"{name} holds no prompts: write one a line")
    return texts


def writer(output: str, pictures: int, overwrite: bool) -> Callable[[Image.Image, dict[str, Any]], Path]:
    """How finished pictures are written. What can be known to fail fails now, before a model is loaded."""
    if options.is_file_name(options.path(output)):
        file = Path(output)
        if pictures > 1:
            raise RequestError(f"{pictures} pictures don't fit into one file {output!r}: give a folder")
        if os.path.lexists(file) and not overwrite:
            raise PictureExists(f"{output!r} exists already: choose another name, or add --overwrite")
        if not file.parent.is_dir():
            raise RequestError(f"there is no folder {str(file.parent)!r}: create it first, or choose another place")
        options.check_folder(file.parent)
        return lambda image, recipe: write_picture(image, file, recipe, overwrite=overwrite)
    folder = Path(output)
    options.check_folder(folder)

    def write(image: Image.Image, recipe: dict[str, Any]) -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"can't create the folder {output!r}: {str(error.strerror).lower()}") from error
        if overwrite:
            return write_picture(image, folder / f"{file_stem(recipe)}.png", recipe, overwrite=True)
        return write_into(folder, image, recipe)

    return write
