"""`darkroom verify`: draw a picture again from its own recipe, and compare."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ImageError, RequestError, visible
from ..formats.picture import Metadata, read_metadata
from ..recipe import recipe_of
from ..request import Request, UsedControl, UsedLora, whole
from . import complain, new_app, options
from .display import Display

if TYPE_CHECKING:
    from PIL import Image

    from ..engine import Engine, Inputs

app = new_app()

DIFFERENT = 1


@app.command()
@options.taking(options.given, "inputs")
def verify(
    picture: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture that holds its recipe.")],
    model: Annotated[
        str | None, typer.Option(metavar="M", help="The model that drew it. [default: the embedded one, if it did]")
    ] = None,
    tolerance: Annotated[
        int,
        typer.Option(
            metavar="N", parser=options.whole_number, help="Largest difference of a pixel that passes, of 255."
        ),
    ] = 2,
    *,
    inputs: options.Reader,
    lora_dir: options.LoraDir = None,
    vae: options.Vae = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> int:
    """Draw a picture again from its recipe and compare the pixels.

    Exits with 0 if they are identical or within the tolerance, with 1 if not, and with 2 if the picture can't be drawn
    again. One that was made from other pictures, LoRAs or embeddings needs the same ones again.
    """
    with options.named_as_options():
        whole("tolerance", tolerance, 0, 255)
    found = read_metadata(picture)
    recipe = recipe_of(found, picture)
    request = recipe.request
    if request.seed is None:
        raise ImageError(f"the recipe of {picture!r} has no seed, so the same picture can't be drawn again")
    for sentence in recipe.warnings:
        complain(sentence)
    with Display("loading the model") as display:
        source = model if model is not None else recorded_model(found, picture)
        pipe = options.load(source, device, dtype, False, threads, lora_dir, vae)
        from ..engine import Engine
        from ..images import open_picture

        theirs = open_picture(picture)
        ours = _draw(Engine(pipe, deterministic=True), request, inputs(pipe, [request]), display)
    result = compare(theirs, ours)
    passed = result["max_difference"] is not None and result["max_difference"] <= tolerance
    lossy = found.format == "JPEG"
    if as_json:
        answer = {"path": picture, "identical": result["max_difference"] == 0, "within_tolerance": passed}
        print(json.dumps(answer | result | {"tolerance": tolerance, "recipe": request.to_dict()}, indent=2))
    else:
        print(_sentence(result, tolerance, passed, lossy))
    return 0 if passed else DIFFERENT


def recorded_model(found: Metadata, image: str) -> str | None:
    """None, for the embedded model, if that is what the recipe names.

    A picture is data from anywhere: it may not choose files of this machine, or repositories on the hub, to load.
    """
    name = found.recipe.get("model")
    if found.source == "darkroom" and name == EMBEDDED:
        return None
    shown = f"the model {visible(name[:100])!r}" if isinstance(name, str) and name else "a model it doesn't name"
    raise ImageError(f"{image!r} was drawn with {shown}: say with --model where that is")


EMBEDDED = "embedded"


def _draw(engine: Engine, request: Request, inputs: Inputs, display: Display) -> Image.Image:
    from ..engine import Failed, Finished, Progress

    job = engine.jobs[engine.add(request, inputs)]
    for sentence in job.warnings:
        display.complain(sentence)
    _check_inputs(request, job.request)
    picture: Any = None
    for event in engine.run():
        if isinstance(event, Progress):
            display.steps(event.step, event.steps, "drawing")
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Finished):
            picture = event.result
    return picture  # type: ignore[no-any-return]  # output is "pil"; a job that nobody aborts ends in an event


def _check_inputs(recorded: Request, given: Request) -> None:
    """Raise `RequestError` where what is given is not what the recipe names; other tools' recipes name little."""
    for name in ("image", "mask", "depth", "latents"):
        theirs, ours = getattr(recorded, name), getattr(given, name)
        if theirs is not None and theirs != ours:
            raise RequestError(
                f"the recipe was made with another {name} (fingerprint {visible(theirs[:40])}) than the one given "
                f"({ours}); give that one"
            )
    for name in ("loras", "controls", "embeddings"):
        theirs, ours = getattr(recorded, name), getattr(given, name)
        if name == "loras" and any(not used.hash for used in theirs):
            continue  # found by their names, all of them: see engine/prepare/complete.py
        if theirs and sorted(map(_content, theirs)) != sorted(map(_content, ours)):
            raise RequestError(
                f"the recipe was made with the {name} {_listed(theirs)}, and given are {_listed(ours)}; give the same"
            )


def _content(used: str | UsedLora | UsedControl) -> str:
    """What counts of an input that a recipe names: all but what its file is called."""
    return used.rpartition(":")[2] if isinstance(used, str) else str(replace(used, name=""))


def _listed(used: tuple[str | UsedLora | UsedControl, ...]) -> str:
    return visible(", ".join(one if isinstance(one, str) else one.words for one in used)[:300]) or "none"


def compare(a: Image.Image, b: Image.Image) -> dict[str, Any]:
    """How far two RGB pictures are apart.

    `max_difference` and `mean_difference` in 8-bit levels, `different_pixels` as a part (0..1) of all. For pictures of
    different sizes these are None, and the sizes are in `sizes`.
    """
    import numpy as np

    if a.size != b.size:
        sizes = [list(a.size), list(b.size)]
        return {"max_difference": None, "mean_difference": None, "different_pixels": None, "sizes": sizes}
    apart = np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16))
    return {
        "max_difference": int(apart.max()),
        "mean_difference": float(apart.mean()),
        "different_pixels": float((apart.max(axis=-1) > 0).mean()),
    }


def _sentence(result: dict[str, Any], tolerance: int, passed: bool, lossy: bool) -> str:
    if result["max_difference"] is None:
        (w, h), (v, g) = result["sizes"]
        return f"different: the picture is {w}x{h} and its recipe gives {v}x{g}"
    if result["max_difference"] == 0:
        return "identical"
    told = (
        f"max difference {result['max_difference']} of 255, mean {result['mean_difference']:.4f}, "
        f"{100 * result['different_pixels']:.2f}% of the pixels differ"
    )
    if passed:
        return f"the same within the tolerance of {tolerance}: {told}"
    return f"different: {told}" + (" (JPEG keeps no exact pixels: see --tolerance)" if lossy else "")
