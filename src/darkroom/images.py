"""Pictures from outside, made safe and plain; tensors to pictures; any size to the latent grid and back.

Tensors of pictures are [N, 3, H, W], float32, in -1..1 (what the autoencoder speaks) or 0..1 (where it says so). torch
is imported where tensors are made: a server's web process reads pictures without it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from . import picture_headers
from .errors import ImageError
from .request import MAX_PIXELS, MAX_SIDE

if TYPE_CHECKING:
    from torch import Tensor

Picture = Image.Image | str | Path
Opened = TypeVar("Opened")
FORMATS = picture_headers.FORMATS
log = logging.getLogger(__name__)


def latent_size(width: int, height: int, downscale: int) -> tuple[int, int]:
    """(h, w) of the latent that covers width x height pixels, rounded up to whole latent pixels."""
    return -(-height // downscale), -(-width // downscale)


def open_picture(source: Picture, name: str = "image", tell: Callable[[str], None] = log.warning) -> Image.Image:
    """A picture as 8-bit RGB, upright, transparency over white.

    Files are of `picture_headers.FORMATS`, their size checked before they are decoded. Of an animation the first frame
    is taken, and `tell` is told so in a sentence (a warning is logged).
    Raises ImageError for everything else; `name` is what the sentence calls the picture.
    """
    return _opened(source, name, normalise, tell)


PLAIN = ("L", "LA", "RGB", "RGBA", "I;16")  # the modes of `open_plain`


def open_plain(source: Picture, name: str = "image", tell: Callable[[str], None] = log.warning) -> Image.Image:
    """A picture as it is, upright: grey or RGB, with its transparency, of 8 bits or, grey ones, of 16 (`PLAIN`).

    Raises ImageError as `open_picture` does.
    """
    return _opened(source, name, _plain, tell)


def _plain(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ImageError("a picture of floating-point numbers (mode F) has no known range; convert it to 8 bits first")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        deep = picture.mode != "I" or values.max(initial=0) > 255
        return Image.fromarray(values.astype(np.uint16 if deep else np.uint8))
    if picture.mode in ("RGBA", "PA", "RGBa") or (picture.mode not in ("LA", "La") and "transparency" in picture.info):
        return picture.convert("RGBA")
    if picture.mode in ("LA", "La"):
        return picture.convert("LA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def open_mask(source: Picture, name: str = "mask", tell: Callable[[str], None] = log.warning) -> Image.Image:
    """A picture as an 8-bit gray mask, upright, colours by their brightness, transparency over black.

    Raises ImageError as `open_picture` does.
    """
    return _opened(source, name, lambda picture: normalise(picture, "black").convert("L"), tell)


def open_map(source: Picture, name: str = "map") -> NDArray[np.float32]:
    """A picture that stands for numbers (depth, a height map) as [H, W], upright, as fine as it is: of 8 bits (colours
    by their brightness), 16 bits, or floating-point. Raises ImageError as `open_picture` does.
    """
    return _opened(source, name, _numbers)


def depth_map(source: Picture | NDArray[Any] | Tensor, name: str = "depth") -> Tensor:
    """Depths as [H, W] float32 on the CPU, as they are: of an array or tensor [H, W], or of a picture (`open_map`).

    Raises ImageError for other shapes, for numbers that are not finite, and as `open_map` does.
    """
    import torch
    from torch import Tensor

    if not isinstance(source, (np.ndarray, Tensor)):
        return torch.from_numpy(open_map(source, name))
    if isinstance(source, np.ndarray):
        if source.dtype.kind not in "fiub":
            raise ImageError(f"{name} is an array of {source.dtype}; give numbers")
        source = torch.from_numpy(source.astype(np.float32))
    values = source.detach().to(device="cpu", dtype=torch.float32)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or 0 in values.shape or values.numel() > 4 * MAX_PIXELS:
        shape, most = list(values.shape), 4 * MAX_PIXELS
        raise ImageError(f"{name} is of shape {shape}; give a map [H, W] of at most {most:,} values")
    if not bool(values.isfinite().all()):
        raise ImageError(f"{name} holds numbers that are not finite; replace them")
    return values


def _opened(
    source: Picture, name: str, turned: Callable[[Image.Image], Opened], tell: Callable[[str], None] = log.warning
) -> Opened:
    """What `turned` makes of a picture from outside, whose size is checked before it is decoded."""
    if isinstance(source, (str, Path)):
        try:
            what = f"{name} {str(source)!r}"
            if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe or a device might never end
                raise ImageError(f"{what} is not a file; give a picture")
            with open(source, "rb") as file:
                frames = picture_headers.check(file, what)
            with Image.open(source, formats=FORMATS) as picture:
                _check_size(picture, what)
                # Pillow would walk through all frames to count them, where the header's walk has not.
                if frames > 1 or (picture.format == "AVIF" and getattr(picture, "n_frames", 1) > 1):
                    tell(f"{what} is an animation: its first frame is taken")
                return turned(picture)
        except ImageError:
            raise
        except FileNotFoundError as error:
            raise ImageError(f"{name} {str(source)!r} does not exist; check the path") from error
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
            raise ImageError(
                f"{name} {str(source)!r} can't be read as a picture ({error}); convert or replace it"
            ) from error
    if not isinstance(source, Image.Image):
        raise ImageError(f"{name} is of type {type(source).__name__}; give a PIL image or a path")
    _check_size(source, name)
    try:
        return turned(source)
    except ImageError:
        raise
    except Exception as error:  # a lazily opened file may fail only now
        raise ImageError(f"{name} can't be decoded ({error}); open it again or replace it") from error


def _check_size(picture: Image.Image, what: str) -> None:
    width, height = picture.size
    if not width or not height:
        raise ImageError(f"{what} is {width}x{height} pixels; give a picture that is not empty")
    if width > 4 * MAX_SIDE or height > 4 * MAX_SIDE or width * height > 4 * MAX_PIXELS:
        raise ImageError(f"{what} is {width}x{height} pixels; make it smaller ({4 * MAX_PIXELS:,} pixels at most)")


def normalise(picture: Image.Image, background: str = "white") -> Image.Image:
    """Turn upright by its EXIF, drop transparency onto a colour, convert any mode to 8-bit RGB. A new picture."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ImageError("a picture of floating-point numbers (mode F) has no known range; convert it to 8 bits first")
    if picture.mode.startswith("I"):  # 16-bit gray ("I;16", or "I" from older files), which convert() would clip
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        deep = picture.mode != "I" or values.max(initial=0) > 255
        picture = Image.fromarray((values // 257 if deep else values).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    return picture.convert("RGB")


def _numbers(picture: Image.Image) -> NDArray[np.float32]:
    """A picture's values as they are, upright."""
    picture = ImageOps.exif_transpose(picture)
    if not picture.mode.startswith(("I", "F")):
        picture = normalise(picture).convert("L")
    values = np.asarray(picture).astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError("the map holds numbers that are not finite; replace it")
    return values


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as [1, 3, H, W] float32 in -1..1."""
    return from_pixels(np.asarray(picture.convert("RGB")).copy())[None]


def from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels [..., H, W, 3] of 0..255 as [..., 3, H, W] float32 in -1..1."""
    import torch

    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1.0


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures [..., 3, H, W] in about -1..1 as pixels [..., H, W, 3] of 0..255: `from_pixels` the other way."""
    pixels: NDArray[np.uint8] = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).numpy()
    return pixels


def pad_to_grid(pictures: Tensor, downscale: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of `downscale`: [N, 3, H, W] -> [N, 3, H', W']."""
    import torch.nn.functional as F

    height, width = pictures.shape[-2:]
    return F.pad(pictures, (0, -width % downscale, 0, -height % downscale), mode="replicate")


def to_unit(pictures: Tensor) -> Tensor:
    """Pictures in about -1..1 to float32 in 0..1, clamped."""
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def to_pil(picture: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 to an 8-bit RGB picture, rounded to the nearest value."""
    import torch

    values = (picture.detach().float() * 255).round().clamp(0, 255).to(device="cpu", dtype=torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def tiled(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures on one sheet, close together and without words; `sweeps.sheet` draws one with labels."""
    width = max(sum(picture.width for picture in row) for row in rows)
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights)))
    for y, row in enumerate(rows):
        x = 0
        for picture in row:
            sheet.paste(picture, (x, sum(heights[:y])))
            x += picture.width
    return sheet
