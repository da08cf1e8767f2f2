"""`darkroom upscale`: a picture made larger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ..errors import RequestError
from ..formats.picture import check_picture, shortened
from . import options
from .command import App, Argument, Option
from .display import Display
from .drawing import DrawingOptions, drawing
from .generate import draw, writer
from .terminal import shower

app = App()


@app.command()
@options.taking(drawing)
def upscale(
    picture: Annotated[str, Argument(metavar="IMAGE", help="The picture to make larger.")],
    prompt: Annotated[str, Option(metavar="TEXT", help="What it shows.")] = "",
    scale: Annotated[
        float | None,
        Option(metavar="X", parser=options.real_number, help="How many times. [default: 2, or the model's own]"),
    ] = None,
    output: options.Output = ".",
    *,
    asked: DrawingOptions,
    preview: options.Preview = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Make a picture larger, and print the path of its file.

    An upscaling model makes it four times as large; any other enlarges it and draws detail, in windows of the model's
    own size that agree (--tile, --overlap), as much as --strength says (0.3, or what the
    model's folder recommends).

    darkroom upscale fox.png --scale 2
    """
    if not Path(options.path(picture)).exists():
        raise RequestError(f"{picture[:200]!r} does not exist; give the path of a picture")
    check_picture(picture)
    wanted = asked.request
    for option, given in (("--image", asked.given.image), ("--mask", asked.given.mask), ("--size", wanted.width)):
        if given is not None:
            raise RequestError(f"{option} is given, which upscale doesn't take; leave it out")
    times = ""

    def name(recipe: dict[str, Any]) -> str:
        return f"{shortened(Path(picture).stem, 100, 200) or 'picture'}-x{times}"

    write = writer(output, 1, overwrite, name)
    show = shower(preview)
    with Display(f"loading {asked.model or 'the model'}") as display:
        from ..engine import Engine
        from ..engine.prepare.upscale import upscaling
        from ..images import open_picture

        small = open_picture(picture)
        pipe = asked.load()
        inputs = asked.inputs(pipe, [replace(asked.request, prompt=prompt)])
        with options.named_as_options():
            fields = upscaling(pipe, small.size, scale, wanted.strength, wanted.tile)
            request = replace(wanted, prompt=prompt, **fields)
        times = f"{fields['width'] / small.width:.3g}"
        engine = Engine(pipe, deterministic=pipe.device.type == "cpu")
        return draw(engine, [request], replace(inputs, image=small), write, display, as_json, 1, show)
