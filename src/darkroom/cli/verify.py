"""`darkroom verify`: draw a picture again from its own recipe, and compare."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import ImageError, RequestError, visible
from ..formats.picture import Metadata, read_metadata
from ..recipe import recipe_of
from ..request import Request, UsedControl, UsedLora, whole
from . import complain, options
from .command import App, Argument, Option
from .display import Display

if TYPE_CHECKING:
    from PIL import Image

    from ..engine import Engine, Inputs

app = App()

DIFFERENT = 1
TOLERANCE = 2  # of 255
REDRAWN = 30.0  # dB from which on another tool's picture is the same one: other kernels and half precision round apart
TOOLS = {
    "a1111": "A1111",
    "comfyui": "ComfyUI",
    "drawthings": "Draw Things",
    "easydiffusion": "Easy Diffusion",
    "fooocus": "Fooocus",
    "invokeai": "InvokeAI",
    "novelai": "NovelAI",
    "swarmui": "SwarmUI",
}


@app.command()
@options.taking(options.given, "inputs")
def verify(
    picture: Annotated[str, Argument(metavar="IMAGE", help="A picture that holds its recipe.")],
    model: Annotated[
        str | None, Option(metavar="M", help="The model that drew it. [default: the embedded one, if it did]")
    ] = None,
    models: Annotated[
        str | None,
        Option(metavar="DIR", help="A folder of models; the one is taken whose hash the recipe tells."),
    ] = None,
    tolerance: Annotated[
        int | None,
        Option(
            metavar="N",
            parser=options.whole_number,
            help="Largest difference of a pixel that passes, of 255. [default: 2, or 30 dB of others' pictures]",
        ),
    ] = None,
    *,
    inputs: options.Reader,
    upscaler: options.Upscalers = None,
    lora_dir: options.LoraDir = None,
    vae: options.Vae = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> int:
    """Draw a picture again from its recipe and compare the pixels.

    Any tool's picture will do whose recipe `darkroom info` reads; what of it isn't followed is said. Exits with 0 if
    they are identical or within the tolerance, with 1 if not, and with 2 if the picture can't be drawn again. One that
    was made from other pictures, LoRAs or embeddings needs the same ones again.
    """
    with options.named_as_options():
        allowed = whole("tolerance", TOLERANCE if tolerance is None else tolerance, 0, 255)
    upscalers = options.upscalers(upscaler)
    found = read_metadata(picture)
    recipe = recipe_of(found, picture)
    request = recipe.request
    if request.seed is None:
        raise ImageError(f"the recipe of {picture!r} has no seed, so the same picture can't be drawn again")
    for sentence in recipe.warnings:
        complain(sentence)
    with Display("loading the model") as display:
        source = model if model is not None else recorded_model(found, picture, models)
        pipe = options.load(source, device, dtype, False, threads, lora_dir, vae)
        for file in upscalers:
            pipe.upscaler(file)
        from ..engine import Engine
        from ..images import open_picture

        theirs = open_picture(picture)
        ours = _draw(Engine(pipe, deterministic=True), request, inputs.read(pipe, [request]), display)
    result = compare(theirs, ours)
    passed = result["max_difference"] is not None and result["max_difference"] <= allowed
    foreign = found.source != "darkroom"
    if foreign and tolerance is None:
        passed = passed or (result["psnr"] or 0.0) >= REDRAWN
    lossy = found.format == "JPEG"
    if as_json:
        answer = {"path": picture, "identical": result["max_difference"] == 0, "within_tolerance": passed}
        told = {"source": found.source, "unfollowed": dict(recipe.unfollowed or {})}
        print(json.dumps(answer | result | {"tolerance": allowed, **told, "recipe": request.to_dict()}, indent=2))
    elif foreign:
        by = f"drawn by {_tool(found)} with {visible((request.model or pipe.name or 'a model without a name')[:100])}"
        print(f"{by}: {_redrawn(result, passed)}")
    else:
        print(_sentence(result, allowed, passed, lossy))
    return 0 if passed else DIFFERENT


def recorded_model(found: Metadata, image: str, folder: str | None = None) -> str | None:
    """None, for the embedded model, if that is what the recipe names; else the model of `folder` that it means.

    A picture is data from anywhere: it may not choose files of this machine, or repositories on the hub, to load; of a
    folder that the user names, it may. Raises ImageError with what is missing.
    """
    name, digits = (found.recipe.get(key) for key in ("model", "model_hash"))
    if found.source == "darkroom" and name == EMBEDDED:
        return None
    name, digits = (value if isinstance(value, str) and value else None for value in (name, digits))
    shown = f"the model {visible(name[:100])!r}" if name else "a model it doesn't name"
    shown += f" (hash {visible(digits[:40])})" if digits else ""
    if folder is None:
        raise ImageError(
            f"{image!r} was drawn with {shown}: say with --model where that is, or with --models in which folder"
        )
    from ..formats.at_hand import find_model

    place = find_model(folder, name, digits)
    if place is None:
        raise ImageError(
            f"{image!r} was drawn with {shown}, which is not in {folder!r}: say with --model where that is"
        )
    return str(place)


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

    `max_difference` and `mean_difference` in 8-bit levels, `different_pixels` as a part (0..1) of all, `psnr` in dB
    (None where they are identical). For pictures of different sizes these are None, and the sizes are in `sizes`.
    """
    import numpy as np

    if a.size != b.size:
        sizes = [list(a.size), list(b.size)]
        return dict.fromkeys(("max_difference", "mean_difference", "different_pixels", "psnr")) | {"sizes": sizes}
    apart = np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16))
    error = float(np.square(apart, dtype=np.float64).mean())
    return {
        "max_difference": int(apart.max()),
        "mean_difference": float(apart.mean()),
        "different_pixels": float((apart.max(axis=-1) > 0).mean()),
        "psnr": 10 * math.log10(255**2 / error) if error else None,
    }


def _tool(found: Metadata) -> str:
    """Who drew a picture, for people."""
    extra = found.recipe.get("extra")
    version = str(extra.get("Version", "")) if isinstance(extra, dict) else ""
    if found.source != "a1111":
        return TOOLS[str(found.source)]
    others = {"stable-diffusion.cpp": "stable-diffusion.cpp", "ComfyUI": "ComfyUI", "f": "Forge"}
    return next((tool for mark, tool in others.items() if version.startswith(mark)), "A1111")


def _redrawn(result: dict[str, Any], passed: bool) -> str:
    if result["max_difference"] is None:
        return _sentence(result, 0, passed, lossy=False)
    if result["max_difference"] == 0:
        return "redrawn, identical"
    return f"redrawn, {result['psnr']:.0f} dB" if passed else f"redrawn as another picture, {result['psnr']:.0f} dB"


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
