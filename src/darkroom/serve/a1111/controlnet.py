"""sd-webui-controlnet's part: units of a request as our controls, and its routes.

A unit's hint is made here, with the unit's own resolution and thresholds, and is what the ControlNet is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from ...errors import shown
from ...hints import make
from ...request import whole
from ..answers import Json, Refused
from ..bodies import json_body, server_of
from ..jobs import ControlAsked
from ..models import ModelIndex
from .fields import Fields
from .pictures import LANCZOS, bytes_of, fitted, opened, png

router = APIRouter(prefix="/controlnet")

UNITS = 3  # that clients offer; a job takes as many as it may have pictures
RESOLUTION = 512  # pixels of the shorter side that a hint is made at, where nothing is said
NONE = ("", "none")


@dataclass(frozen=True, slots=True)
class Module:
    """A preprocessor: sd-webui-controlnet's name, our hint, and what its two thresholds are.

    Attributes:
        sliders: (label, option of the hint, usual value, lowest, highest).
        also: beginnings of other preprocessors' names whose pictures are of the same kind.
    """

    name: str
    hint: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sliders: Sequence[tuple[str, str, float, float, float]] = ()
    also: tuple[str, ...] = ()


MODULES = (
    Module(
        "canny",
        "canny",
        {"sigma": 0.0},  # as OpenCV
        (("Low Threshold", "low", 100, 1, 255), ("High Threshold", "high", 200, 1, 255)),
    ),
    Module("softedge", "soft-edges", also=("softedge", "hed", "pidinet")),
    Module("lineart_standard (from white bg & black line)", "line-art", also=("lineart", "line-art")),
    Module("scribble_xdog", "scribble", also=("scribble", "fake_scribble")),
    Module("tile_resample", "tile", {}, (("Down Sampling Rate", "factor", 1, 1, 8),), ("tile",)),
    Module("t2ia_color_grid", "palette", also=("color", "palette")),
    Module("recolor_luminance", "recolour", {"by": "luminance"}, (("Gamma Correction", "gamma", 1, 0.1, 2),)),
    Module("recolor_intensity", "recolour", {"by": "intensity"}, (("Gamma Correction", "gamma", 1, 0.1, 2),)),
    Module("invert (from white bg & black line)", "invert", also=("invert",)),
    Module("depth_map", "depth", also=("depth-map",)),  # of a depth map; there is no network that guesses one
)
_RESIZE = {
    0: "stretch", 1: "crop", 2: "pad", "just resize": "stretch", "crop and resize": "crop", "resize and fill": "pad",
    "scale to fit (inner fit)": "crop", "inner fit (scale to fit)": "crop", "envelope (outer fit)": "pad",
    "outer fit (shrink to fit)": "pad",
}  # fmt: skip
_MODES = {0: 0, 1: 1, 2: 2, "balanced": 0, "my prompt is more important": 1, "controlnet is more important": 2}
_FOLLOWED = (
    "enabled", "image", "input_image", "mask", "module", "model", "weight", "guidance", "guidance_start",
    "guidance_end", "control_mode", "guessmode", "pixel_perfect", "processor_res", "threshold_a", "threshold_b",
    "resize_mode", "low_vram", "lowvram", "save_detected_map", "use_preview_as_input",
)  # fmt: skip
_USUAL = {"hr_option": "Both", "inpaint_crop_input_image": True}


@dataclass(frozen=True, slots=True)
class Unit:
    """A control of a job, and the PNG that it is shown."""

    control: ControlAsked
    hint: bytes


def module_of(name: str) -> Module | None:
    """A preprocessor by its name; None: the picture is shown as it is. Raises Refused (422) where it isn't there."""
    key = name.strip().casefold()
    if key in NONE:
        return None
    for one in MODULES:
        if key in (one.name.casefold(), one.hint) or key.startswith(one.also):
            return one
    names = ", ".join(one.name for one in MODULES)
    raise Refused(422, f"Module {shown(name)} not available; there are {names}", field="module")


def hint_of(module: Module | None, picture: Image.Image, side: int, thresholds: Sequence[float]) -> Image.Image:
    """What a preprocessor makes of a picture whose shorter side becomes `side` pixels (0: as it is)."""
    if module is None:
        return picture
    if side > 0:
        scale = side / min(picture.size)
        wide, high = (max(64, round(length * scale / 64) * 64) for length in picture.size)
        picture = picture.resize((wide, high), LANCZOS)
    options = dict(module.options)
    for (_, option, usual, low, high_end), given in zip(module.sliders, thresholds, strict=False):
        options[option] = float(given if low <= given <= high_end else usual)
    if module.hint == "canny" and options["low"] > options["high"]:
        options["low"], options["high"] = options["high"], options["low"]  # as OpenCV
    return make(module.hint, picture, **options)


def read_units(
    f: Fields, size: tuple[int | None, int | None], image: bytes | None, index: ModelIndex, max_pixels: int
) -> list[Unit]:
    """The units of a request that are on.

    size: of the picture to draw; (None, None): of the given one. image: what img2img was given, which is the unit's
    where it has none. Raises Refused, RequestError and ImageError.
    """
    scripts = {name.casefold(): script for name, script in f.object("alwayson_scripts").items()}
    script = scripts.get("controlnet") or {}
    args = script.get("args", []) if isinstance(script, Mapping) else None
    if not isinstance(args, list) or len(args) > 16:
        raise Refused(422, "alwayson_scripts.ControlNet is no object with a list of args; give one", field="args")
    units = []
    for i, arg in enumerate(args):
        if isinstance(arg, bool | int | float | str) or arg is None:
            continue  # flags of old versions
        if not isinstance(arg, Mapping):
            raise Refused(422, f"ControlNet's unit {i} is {shown(arg)}; give an object", field="args")
        unit = _unit(f, Fields("txt2img", arg, {}), f"ControlNet {i}", size, image, index, max_pixels)
        units += [] if unit is None else [unit]
    return units


def _unit(
    f: Fields,
    of: Fields,
    name: str,
    size: tuple[int | None, int | None],
    image: bytes | None,
    index: ModelIndex,
    max_pixels: int,
) -> Unit | None:
    if of["enabled"] is not None and not of.flag("enabled"):
        return None
    module = module_of(of.text("module"))
    if of.text("model").casefold() in NONE:
        f.ignore(f"{name}: module", "a unit without a model does nothing")
        return None
    net = index.get("controlnet", of.text("model")).name
    given = of["image"] or of["input_image"]
    if isinstance(given, Mapping):
        of = Fields(of.kind, {"mask": given.get("mask"), **of.given}, {})
        given = given.get("image")
    data = bytes_of(f"{name}: image", given) if given else image
    if not isinstance(data, bytes):
        raise Refused(422, f"{name} is enabled, but no input image is given", field="image")
    picture = opened(data, f"{name}: image", max_pixels).convert("RGB")
    target = (size[0] or picture.width, size[1] or picture.height)
    how = _one_of(of, "resize_mode", _RESIZE, "crop")
    thresholds = [_or(of, "threshold_a", -1.0), _or(of, "threshold_b", -1.0)]
    if of["pixel_perfect"] is not None and of.flag("pixel_perfect"):
        hint = hint_of(module, fitted(picture, how, target, "median"), 0, thresholds)
    else:
        side = int(_or(of, "processor_res", -1.0))
        side = RESOLUTION if side < 0 else whole(f"{name}: processor_res", side, 64, 2048)
        hint = fitted(hint_of(module, picture, side, thresholds), how, target, "median")
    _name_the_rest(f, of, name, module)
    mode = _one_of(of, "control_mode", _MODES, 0)
    if mode == 1:
        f.ignore(f"{name}: control_mode", "only balanced, and more important than the prompt, are there")
    control = ControlAsked(
        net=net,
        scale=_or(of, "weight", 1.0),
        start=_or(of, "guidance_start", 0.0),
        stop=_or(of, "guidance_end", _or(of, "guidance", 1.0)),
        guess=mode == 2 or bool(of["guessmode"]),
    )
    return Unit(control, png(hint))


def _or(of: Fields, name: str, usual: float) -> float:
    return usual if of[name] is None else of.number(name)


def _one_of(of: Fields, name: str, known: Mapping[Any, Any], usual: Any) -> Any:
    value = of[name]
    if value is None:
        return usual
    key = value.casefold() if isinstance(value, str) else value
    if isinstance(key, str | int) and key in known:
        return known[key]
    raise Refused(422, f"ControlNet's {name} is {shown(value)}; give 0, 1 or 2", field=name)


def _name_the_rest(f: Fields, of: Fields, name: str, module: Module | None) -> None:
    asked = of.text("module").strip().casefold()
    if module is not None and asked not in (module.name.casefold(), module.hint):
        f.ignore(f"{name}: module", f"{asked[:60]} is drawn as Darkroom's {module.hint}, without a network")
    for key, value in of.given.items():
        if key == "mask" and value:
            f.ignore(f"{name}: mask", "the whole picture steers")
        elif key not in _FOLLOWED and value not in (None, "", False, 0, [], {}, _USUAL.get(key)):
            f.ignore(f"{name}: {key}", "it is not known here")


# --- the extension's routes


@router.get("/version")
async def version(request: Request) -> Response:
    """The version of the interface."""
    return Json({"version": 3})


@router.get("/model_list")
async def model_list(request: Request) -> Response:
    """The ControlNets there are."""
    return Json({"model_list": list(server_of(request).index.found["controlnet"])})


@router.get("/module_list")
async def module_list(request: Request) -> Response:
    """The preprocessors there are, with their sliders."""
    resolution = {"name": "Resolution", "value": RESOLUTION, "min": 64, "max": 2048, "step": 8}
    detail: dict[str, Any] = {"none": {"model_free": False, "sliders": []}}
    for one in MODULES:
        sliders = [
            {"name": label, "value": usual, "min": low, "max": high, "step": 0.01 if isinstance(low, float) else 1}
            for label, _, usual, low, high in one.sliders
        ]
        detail[one.name] = {"model_free": False, "sliders": [resolution, *sliders]}
    return Json({"module_list": list(detail), "module_detail": detail})


@router.get("/control_types")
async def control_types(request: Request) -> Response:
    """Preprocessors and models, in one group: which go together their names tell."""
    models = ["None", *server_of(request).index.found["controlnet"]]
    modules = ["none", *(one.name for one in MODULES)]
    group = {"module_list": modules, "model_list": models, "default_option": "none", "default_model": models[-1]}
    return Json({"control_types": {"All": group}})


@router.get("/settings")
async def settings(request: Request) -> Response:
    """How many units clients may offer."""
    return Json({"control_net_unit_count": UNITS})


@router.post("/detect")
async def detect(request: Request) -> Response:
    """Hints of pictures."""
    server = server_of(request)
    return await server.in_pool(_detected, await json_body(request), server.options.max_pixels)


def _detected(body: Mapping[str, Any], max_pixels: int) -> Response:
    of = Fields("txt2img", {name.removeprefix("controlnet_"): value for name, value in body.items()})
    module = module_of(of.text("module"))
    given = of["input_images"] or of["images"]
    if not isinstance(given, list) or not given or len(given) > 8:
        raise Refused(422, "No image selected; give 1 to 8 in controlnet_input_images")
    side = int(_or(of, "processor_res", -1.0))
    side = RESOLUTION if side < 0 else whole("controlnet_processor_res", side, 64, 2048)
    thresholds = [_or(of, "threshold_a", -1.0), _or(of, "threshold_b", -1.0)]
    images = []
    for i, text in enumerate(given):
        picture = opened(bytes_of(f"controlnet_input_images[{i}]", text), "the picture", max_pixels).convert("RGB")
        images.append(base64.b64encode(png(hint_of(module, picture, side, thresholds))).decode("ascii"))
    return Json({"images": images, "info": "Success"})
