"""Pictures made larger without a model, and the recipe in a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from ...errors import RequestError
from ...formats.infotext import to_infotext
from ...request import MAX_SIDE, real, whole
from ..answers import Json, Refused
from ..bodies import json_body, server_of
from ..models import Found
from ..server import Server
from ..uploads import read_picture
from .fields import Fields
from .lists import UPSCALERS
from .pictures import bytes_of, enlarged, opened, png, target

router = APIRouter(prefix="/sdapi/v1")

MOST = 8  # pictures of a batch
MOST_SECONDS = 600.0  # that a network may take for one


@router.post("/extra-single-image")
async def extra_single_image(request: Request) -> Response:
    """A picture made larger."""
    body = await json_body(request)
    image, told = await _enlarged(server_of(request), body, "image", body.get("image"))
    return Json({"html_info": told, "image": image})


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request) -> Response:
    """Several pictures made larger."""
    server, body = server_of(request), await json_body(request)
    given = body.get("imageList")
    if not isinstance(given, list) or len(given) > MOST or not all(isinstance(one, Mapping) for one in given):
        raise Refused(422, f"imageList must be a list of at most {MOST} objects with data", field="imageList")
    done = [await _enlarged(server, body, f"imageList[{i}]", one.get("data")) for i, one in enumerate(given)]
    return Json({"html_info": done[0][1] if done else "", "images": [image for image, _ in done]})


async def _enlarged(server: Server, body: Mapping[str, Any], name: str, given: Any) -> tuple[str, str]:
    """A picture's base64, and in words what of the request wasn't done."""
    f = Fields("txt2img", body)
    upscaler, told = f.text("upscaler_1") or "None", []
    network: Found | None = None
    if upscaler not in UPSCALERS:
        try:
            network = server.index.upscaler(upscaler)
        except RequestError:
            told.append(f"there is no upscaler {upscaler[:60]!r}; Lanczos was taken")
        upscaler = "Lanczos"
    for field in ("extras_upscaler_2_visibility", "gfpgan_visibility", "codeformer_visibility"):
        if f[field]:
            told.append(f"{field} is not followed")
    mode = _or(f, "resize_mode", 0, 0, 1)
    factor = 2.0 if f["upscaling_resize"] is None else real("upscaling_resize", f.number("upscaling_resize"), 0.01, 64)
    size = _or(f, "upscaling_resize_w", 512, 1, MAX_SIDE), _or(f, "upscaling_resize_h", 512, 1, MAX_SIDE)
    crop = f["upscaling_crop"] is None or f.flag("upscaling_crop")
    shown = f["show_extras_results"] is None or f.flag("show_extras_results")
    picture = await server.in_pool(opened, bytes_of(name, given), name, server.options.max_pixels)
    if network is not None:
        picture = await _by_network(server, network, picture, target(picture.size, mode, factor, size))
        factor = 1.0  # what is left is to cut it
    large = await server.in_pool(enlarged, picture, upscaler, mode, factor, size, crop)
    image = await server.in_pool(_text, large) if shown else ""
    return image, "; ".join(told)


async def _by_network(server: Server, network: Found, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture at a size by a network, in an engine's process: this one has no torch."""
    answer = await server.dispatcher.call(
        "enlarge", png(picture), seconds=MOST_SECONDS,
        path=network.path, fingerprint=network.fingerprint, size=list(size),
    )  # fmt: skip
    return Image.open(io.BytesIO(base64.b64decode(answer["value"])))


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
