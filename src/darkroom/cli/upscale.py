"""`darkroom upscale`: a picture made larger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ..errors import RequestError
from ..formats.picture import check_picture, read_metadata, shortened
from ..request import Enlarge
from ..settings import changed, to_plain
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
    in_terminal: options.Preview = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Make a picture larger, and print the path of its file.

    By a network that does nothing else (--upscaler FILE, or embedded:upscaler), or by a model: an upscaling model makes
    it four times as large; any other enlarges it and draws detail, in windows of the model's own size that agree
    (--tile, --overlap), as much as --strength says (0.3, or what the model's folder recommends).

    darkroom upscale fox.png --upscaler RealESRGAN_x4plus.pth
    """
    if not Path(options.path(picture)).exists():
        raise RequestError(f"{picture[:200]!r} does not exist; give the path of a picture")
    check_picture(picture)
    wanted = asked.request
    for option, given in (("--image", asked.given.image), ("--mask", asked.given.mask), ("--size", wanted.width)):
        if given is not None:
            raise RequestError(f"{option} is given, which upscale doesn't take; leave it out")
    times = ""
    write = writer(output, 1, overwrite, lambda recipe: _name(picture, times))
    if asked.upscalers:
        return _by_network(picture, prompt, scale, asked, output, overwrite, as_json, in_terminal)
    show = shower(in_terminal)
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


def _name(picture: str, times: str) -> str:
    """A file's name for a picture made larger: "fox-x4"."""
    return f"{shortened(Path(picture).stem, 100, 200) or 'picture'}-x{times}"


def _by_network(
    picture: str,
    prompt: str,
    scale: float | None,
    asked: DrawingOptions,
    output: str,
    overwrite: bool,
    as_json: bool,
    in_terminal: bool,
) -> int:
    """Enlarge by a network alone. A recipe that the picture holds stays with it, and says that it was enlarged."""
    said = ["prompt"] if prompt else [name for name in changed(asked.request) if name != "prompt"]
    if said or len(asked.upscalers) > 1:
        told = "a second --upscaler" if not said else f"--{said[0].replace('_', '-')}"
        raise RequestError(f"{told} is given, and a network enlarges by itself; leave out --upscaler, or that")
    times = ""
    write = writer(output, 1, overwrite, lambda recipe: _name(picture, times))
    show = shower(in_terminal)
    with Display("enlarging") as display:
        from ..engine.enlarge import load_upscaler
        from ..images import normalise

        upscaler = load_upscaler(asked.upscalers[0])
        times = f"{scale or upscaler.scale:.3g}"
        large = upscaler.enlarge(picture, scale)
        suffix = Path(output).suffix.lower()
        if suffix in (".jpg", ".jpeg") or (suffix == ".webp" and large.mode not in ("L", "RGB", "RGBA")):
            large = large.convert("RGBA") if large.mode == "LA" and suffix == ".webp" else normalise(large)
        recipe = _recipe(picture, Enlarge(scale or upscaler.scale, upscaler.name, upscaler.hash))
        path = write(large, recipe)
        answer = {"images": [{"path": str(path), "recipe": recipe}]}
        display.answer(json.dumps(answer, indent=2) if as_json else str(path))
    show(large)
    return 0


def _recipe(picture: str, enlarged: Enlarge) -> dict[str, Any]:
    """The recipe that a picture of ours holds, with its being enlarged; {} where it holds none that says all of it."""
    found = read_metadata(picture)
    if found.source != "darkroom" or found.recipe.get("enlarge") is not None:
        return {}
    return {**found.recipe, "enlarge": to_plain(enlarged)}
