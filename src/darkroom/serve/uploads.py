"""Pictures that people send: looked at before they are decoded, decoded under a cap, and kept as plain PNG files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from .. import picture_headers
from ..errors import ImageError, RequestError
from ..formats.picture import Metadata, read_metadata

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_HASH = re.compile(r"input:([0-9a-f]{64})")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture as it is kept: the SHA-256 of what was sent, and a PNG of its pixels and nothing else."""

    sha256: str
    png: bytes
    width: int
    height: int


def from_text(name: str, text: object) -> bytes | str:
    """The bytes of base64 or a data URL, or the SHA-256 of "input:SHA256". Raises RequestError, for addresses too."""
    if not isinstance(text, str):
        raise RequestError(f"{name} is no text; give a picture as base64, or input:SHA256")
    if found := _HASH.fullmatch(text):
        return found[1]
    if _ADDRESS.match(text):
        raise RequestError(f"{name} is an address, and pictures are not fetched from there; send the picture itself")
    if found := _DATA_URL.match(text):
        text = text[found.end() :]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not base64; give a picture as base64, or input:SHA256") from None
    if not data:
        raise RequestError(f"{name} is empty; give a picture")
    return data


def received(data: bytes, name: str, max_pixels: int) -> Upload:
    """Decode a picture from outside and encode its pixels anew: upright, 8 bits (16 of gray), alpha kept, no texts.

    Raises ImageError for anything but one frame of PNG, JPEG or WebP of at most `max_pixels`.
    """
    kind = picture_headers.format_of(data[:16])
    if kind not in FORMATS:
        raise ImageError(f"{name} is not a PNG, JPEG or WebP picture")
    frames = picture_headers.check(io.BytesIO(data), name)
    if frames > 1:
        raise ImageError(f"{name} is an animation; give a picture of one frame")
    width, height = picture_headers.size_of(data[:30])
    if width * height > max_pixels:
        raise ImageError(f"{name} is {width}x{height} pixels; at most {max_pixels:,} are taken")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise ImageError(f"{name} is {opened.width}x{opened.height} pixels; at most {max_pixels:,} are taken")
            picture = _plain(ImageOps.exif_transpose(opened))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on hostile bytes
        raise ImageError(f"{name} can't be decoded ({error}); save it again") from None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return Upload(hashlib.sha256(data).hexdigest(), buffer.getvalue(), picture.width, picture.height)


def _plain(picture: Image.Image) -> Image.Image:
    """Pixels alone, in a mode that PNG has."""
    if picture.mode.startswith("I"):
        kept = picture.copy()
    elif picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        kept = picture.convert("RGBA")
    else:
        kept = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    kept.info.clear()
    return kept


def read_picture(data: bytes) -> Metadata:
    """What a picture's file says of how it was made; nothing is kept. Raises ImageError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        path.write_bytes(data)
        return read_metadata(path)
