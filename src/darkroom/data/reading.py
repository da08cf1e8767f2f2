"""A training picture from its file to its pixels: read, checked to be what it was, scaled and cut.

Shapes: H W the height and width that are asked for.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, TrainingError
from ..images import FORMATS, open_picture
from .buckets import Crop, Size
from .examples import Example

FINER = 2  # a JPEG is decoded at no less than this many times the size that is wanted


def read_cut(example: Example, size: Size, crop: Crop) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] of a picture that `crop` shows, `size` = (W, H).

    Raises TrainingError where the file has gone, has changed since it was looked at, or can't be decoded.
    """
    data = example.read()
    if example.digest and hashlib.sha256(data).hexdigest() != example.digest:
        raise TrainingError(
            f"{example.name[:200]!r} has changed since the run looked at it; leave the data alone while it runs, or "
            "begin another run"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _draft(picture, crop)
            whole = open_picture(picture, f"the training picture {example.name[:200]!r}")
    except ImageError as error:
        raise TrainingError(str(error)) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        raise TrainingError(f"{example.name[:200]!r} can't be decoded any more ({error}); replace it") from error
    x, y = (w / s for w, s in zip(whole.size, crop.scaled, strict=True))  # pixels of the file in one of the scaled
    left, top = crop.corner
    if crop.flipped:
        left = crop.scaled[0] - size[0] - left
    box = (left * x, top * y, min((left + size[0]) * x, whole.size[0]), min((top + size[1]) * y, whole.size[1]))
    small = whole.resize(size, Image.Resampling.LANCZOS, box=box)
    if crop.flipped:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(small)


def _draft(picture: Image.Image, crop: Crop) -> None:
    """Let a large JPEG be decoded at a half, a quarter or an eighth of its size, which is several times quicker."""
    if picture.format == "JPEG":
        longest = FINER * max(crop.scaled)  # the file may lie on its side
        shortest = FINER * min(crop.scaled)
        wanted = (longest, shortest) if picture.width > picture.height else (shortest, longest)
        picture.draft(picture.mode, wanted)
