"""Pictures made larger without a model, and the recipe in a picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from ...formats.infotext import to_infotext
from ...request import MAX_SIDE, real, whole
from ..answers import Json, Refused
from ..bodies import json_body, server_of
from ..uploads import read_picture
from .fields import Fields
from .lists import UPSCALERS
from .pictures import bytes_of, enlarged, opened, png

router = APIRouter(prefix="/sdapi/v1")

MOST = 8  # pictures of a batch


@router.post("/extra-single-image")
async def extra_single_image(request: Request) -> Response:
    """A picture made larger."""
    server = server_of(request)
    return await server.in_pool(_single, await json_body(request), server.options.max_pixels)


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request) -> Response:
    """Several pictures made larger."""
    server = server_of(request)
    return await server.in_pool(_batch, await json_body(request), server.options.max_pixels)


def _single(body: Mapping[str, Any], max_pixels: int) -> Response:
    image, told = _enlarged(body, "image", body.get("image"), max_pixels)
    return Json({"html_info": told, "image": image})


def _batch(body: Mapping[str, Any], max_pixels: int) -> Response:
    given = body.get("imageList")
    if not isinstance(given, list) or len(given) > MOST or not all(isinstance(one, Mapping) for one in given):
        raise Refused(422, f"imageList must be a list of at most {MOST} objects with data", field="imageList")
    done = [_enlarged(body, f"imageList[{i}]", one.get("data"), max_pixels) for i, one in enumerate(given)]
    return Json({"html_info": done[0][1] if done else "", "images": [image for image, _ in done]})


def _enlarged(body: Mapping[str, Any], name: str, given: Any, max_pixels: int) -> tuple[str, str]:
    """A picture's base64, and in words what of the request wasn't done."""
    f = Fields("txt2img", body)
    upscaler, told = f.text("upscaler_1") or "None", []
    if upscaler not in UPSCALERS:
        told.append(f"there is no upscaler {upscaler[:60]!r}; Lanczos was taken")
        upscaler = "Lanczos"
    for field in ("extras_upscaler_2_visibility", "gfpgan_visibility", "codeformer_visibility"):
        if f[field]:
            told.append(f"{field} is not followed")
    mode = _or(f, "resize_mode", 0, 0, 1)
    factor = 2.0 if f["upscaling_resize"] is None else real("upscaling_resize", f.number("upscaling_resize"), 0.01, 64)
    size = _or(f, "upscaling_resize_w", 512, 1, MAX_SIDE), _or(f, "upscaling_resize_h", 512, 1, MAX_SIDE)
    crop = f["upscaling_crop"] is None or f.flag("upscaling_crop")
    large = enlarged(opened(bytes_of(name, given), name, max_pixels), upscaler, mode, factor, size, crop)
    image = "" if f["show_extras_results"] is not None and not f.flag("show_extras_results") else _text(large)
    return image, "; ".join(told)


def _or(f: Fields, name: str, usual: int, low: int, high: int) -> int:
    return usual if f[name] is None else whole(name, f.whole(name), low, high)


def _text(picture: Image.Image) -> str:
    return base64.b64encode(png(picture)).decode("ascii")


@router.post("/png-info")
async def png_info(request: Request) -> Response:
    """The recipe in a picture, as A1111's text; what other tools wrote, too."""
    body = await json_body(request)
    return await server_of(request).in_pool(_png_info, body.get("image"))


def _png_info(given: Any) -> Response:
    found = read_picture(bytes_of("image", given))
    texts = dict(found.texts)
    info = texts.pop("parameters", "")
    if not info and found.source is not None:
        info = to_infotext(found.recipe)
    return Json({"info": info, "items": texts})
