"""Pictures that A1111's clients send, made to the size that they ask for; what its extras make larger. No torch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ...errors import RequestError
from ...request import MAX_PIXELS, MAX_SIDE, whole
from ..uploads import from_text, received

Size = tuple[int, int]
LANCZOS = Image.Resampling.LANCZOS


def bytes_of(name: str, text: Any) -> bytes:
    """A picture's file from base64 or a data URL. Raises RequestError for anything else."""
    found = from_text(name, text)
    if isinstance(found, str):
        raise RequestError(f"{name} names an input; A1111's fields take the picture itself, as base64")
    return found


def opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """A picture from outside, checked as every upload is. Raises ImageError."""
    return Image.open(io.BytesIO(received(data, name, max_pixels).png))


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def mask_from(data: bytes, invert: bool, max_pixels: int) -> Image.Image:
    """A mask as A1111 reads one: white is drawn anew; of a picture with transparency, what is opaque."""
    picture = opened(data, "mask", max_pixels)
    mask = picture.getchannel("A") if picture.mode == "RGBA" else None
    if mask is None or mask.getextrema() == (255, 255):
        mask = picture.convert("RGB").convert("L")
    return mask.point([255 - value for value in range(256)]) if invert else mask


def fitted(picture: Image.Image, how: str, size: Size, border: str = "edge") -> Image.Image:
    """A picture at a size (width, height), as A1111's resize modes make it.

    how: "stretch"; "crop": covers it, and the middle is kept; "pad": lies in the middle of it, and beyond is the
    picture's border: `border` "edge" goes on with its pixels, "median" is one colour, as ControlNet's.
    """
    width, height = (whole(name, side, 1, MAX_SIDE) for name, side in zip(("width", "height"), size, strict=True))
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    if how == "stretch" or picture.width * height == picture.height * width:
        return picture if picture.size == (width, height) else picture.resize((width, height), LANCZOS)
    # Whole numbers and halves as there, so that no pixel lies elsewhere.
    by_width = (width * picture.height > height * picture.width) == (how == "crop")
    wide = width if by_width else max(1, picture.width * height // picture.height)
    high = max(1, picture.height * width // picture.width) if by_width else height
    large = picture.resize((wide, high), LANCZOS)
    left, top = wide // 2 - width // 2, high // 2 - height // 2
    if how == "crop":
        return large.crop((left, top, left + width, top + height))
    pixels = np.asarray(large)
    around = ((-top, height - high + top), (-left, width - wide + left))
    if border == "edge":
        return Image.fromarray(np.pad(pixels, (*around, (0, 0))[: pixels.ndim], "edge"))
    ring = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    colour = np.median(np.concatenate(ring), axis=0).astype(np.uint8)
    canvas = Image.new(picture.mode, (width, height), tuple(colour.tolist()) if colour.ndim else int(colour))
    canvas.paste(large, (-left, -top))
    return canvas


def target(given: Size, mode: int, factor: float, size: Size) -> Size:
    """The size that a picture is enlarged to: by a factor (mode 0), to cover a size (mode 1). Raises RequestError."""
    if mode == 1:
        factor = max(size[0] / given[0], size[1] / given[1])
    wide, high = (max(1, round(side * factor)) for side in given)
    if max(wide, high) > MAX_SIDE or wide * high > MAX_PIXELS:
        raise RequestError(
            f"the picture would be {wide}x{high} pixels; sides may have {MAX_SIDE:,}, and all {MAX_PIXELS:,}"
        )
    return wide, high


def enlarged(picture: Image.Image, upscaler: str, mode: int, factor: float, size: Size, crop: bool) -> Image.Image:
    """A picture as A1111's extras make it: by a factor (mode 0), or to cover a size (mode 1). Raises RequestError."""
    if upscaler == "None":
        return picture
    wide, high = target(picture.size, mode, factor, size)
    how = Image.Resampling.NEAREST if upscaler == "Nearest" else LANCZOS
    large = picture.resize((wide, high), how)
    if mode == 1 and crop:
        left, top = (wide - size[0]) // 2, (high - size[1]) // 2
        large = large.crop((left, top, left + size[0], top + size[1]))
    return large
