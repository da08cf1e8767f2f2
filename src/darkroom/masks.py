"""Masks: which pixels are drawn anew, how the rest stays as it is, and what the masked part begins as.

A mask is an 8-bit gray picture: from 128 up a pixel is masked, below it is known. As a tensor it is [1, 1, H, W]
float32, 1 where masked and 0 where known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import RequestError
from .images import to_pil, to_tensor, to_unit

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside


@dataclass(frozen=True, slots=True, eq=False)
class Composite:
    """Where in which picture a drawn part belongs. Picklable."""

    picture: Image.Image  # RGB, of the size of the result
    edge: Image.Image  # 8-bit gray, the same size: 0 keeps the picture's pixel, 255 takes the drawn one
    box: Box  # the part of the picture that was drawn,
    work: tuple[int, int]  # and the (width, height) in pixels it was drawn at

    def put(self, drawn: Tensor) -> Tensor:
        """The whole picture [3, H, W] in 0..1 with what was drawn, [3, h, w] in 0..1, in its place.

        Where `edge` is 0 the values are the picture's, to the last bit.
        """
        left, top, right, bottom = self.box
        size = (bottom - top, right - left)
        if drawn.shape[1:] != size:
            drawn = F.interpolate(drawn[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        result = torch.from_numpy(np.array(self.picture)).permute(2, 0, 1).float() / 255
        edge = torch.from_numpy(np.array(self.edge)).float() / 255
        part, weight = result[:, top:bottom, left:right], edge[top:bottom, left:right]
        result[:, top:bottom, left:right] = torch.where(weight > 0, part.lerp(drawn, weight.expand_as(part)), part)
        return result


def fitting(mask: Image.Image, size: tuple[int, int], whole: tuple[int, int]) -> Tensor:
    """A mask [1, 1, H, W] of 0 and 1 for a picture that was `whole` (width, height) pixels large and is `size` now.

    Raises RequestError for a mask whose aspect is not the picture's.
    """
    wide, high = mask.size
    # Half a pixel to either side is what rounding a scaled picture's size can do.
    if abs(wide * whole[1] - high * whole[0]) > max(whole) + max(mask.size):
        raise RequestError(
            f"the mask is {wide}x{high} pixels and the image {whole[0]}x{whole[1]}; "
            f"give a mask of the same size, or of the same shape"
        )
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(mask) >= 128).float()[None, None]


def as_picture(mask: Tensor) -> Image.Image:
    """A mask [1, 1, H, W] in 0..1 as an 8-bit gray picture."""
    return Image.fromarray((mask[0, 0] * 255).round().to(torch.uint8).numpy())


def on_latents(mask: Tensor, downscale: int) -> Tensor:
    """[1, 1, H, W] -> [1, h, w]: every latent pixel that a masked pixel touches, the part beyond the edge included."""
    height, width = mask.shape[-2:]
    whole = F.pad(mask, (0, -width % downscale, 0, -height % downscale), mode="replicate")
    return F.max_pool2d(whole, downscale)[0]


def soft_edge(mask: Tensor, blur: int) -> Tensor:
    """The mask [1, 1, H, W] with an edge of `blur` pixels that rises from its border inwards; 0 stays 0.

    A pixel's weight is its distance from the known ones, over blur + 1, or over the largest distance nearby where the
    masked part is thinner than two edges, so that thin strokes are drawn as well.
    """
    distance, inner = mask.clone(), mask
    for _ in range(blur):
        inner = -F.max_pool2d(-inner, 3, stride=1, padding=1)  # the border of the picture is no border of the mask
        if not bool(inner.any()):
            break
        distance += inner
    size = 2 * blur + 1
    near = F.max_pool2d(distance, (size, 1), stride=1, padding=(blur, 0))  # a square's maximum, one way at a time
    near = F.max_pool2d(near, (1, size), stride=1, padding=(0, blur))
    return distance / near.clamp(min=1)


def spread(picture: Tensor, mask: Tensor) -> Tensor:
    """The picture [1, C, H, W] with the colours around its masked part spread into it; all masked: zeros.

    Pull and push (Gortler et al. 1996, "The Lumigraph", sec. 3.4): averages of the known pixels at ever coarser
    resolutions, and what is unknown at one of them taken from the next coarser.
    """
    known = 1 - mask
    values = picture * known
    if min(picture.shape[-2:]) == 0 or not bool(known.any()):
        return values
    if bool(known.all()):
        return picture
    coarse, weight = (F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (values, known))
    share = weight.clamp(min=1e-12)
    coarse = spread(coarse / share * (weight > 0), (weight == 0).float())
    pushed = F.interpolate(coarse, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    return values + pushed * mask


def bounds(mask: Tensor) -> Box | None:
    """The smallest box around the masked part of [1, 1, H, W]; None where nothing is masked."""
    rows, columns = (mask[0, 0].amax(dim=dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def surroundings(box: Box, padding: int, size: tuple[int, int], shape: tuple[int, int]) -> Box:
    """A box with padding, grown towards the aspect of `shape` (width, height), inside a picture of `size`."""
    left, top, right, bottom = box
    ends = ((left, right), (top, bottom))
    sides = [
        (max(low - padding, 0), min(high + padding, length)) for (low, high), length in zip(ends, size, strict=True)
    ]
    lengths = [high - low for low, high in sides]
    for axis in (0, 1):
        wanted = -(-lengths[1 - axis] * shape[axis] // shape[1 - axis])
        if wanted > lengths[axis]:
            length = min(wanted, size[axis])
            low = min(max((sum(sides[axis]) - length) // 2, 0), size[axis] - length)
            sides[axis] = (low, low + length)
            break
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def working_size(box: Box, shape: tuple[int, int], grid: int) -> tuple[int, int]:
    """(width, height) of `shape`'s area in the box's aspect, in whole steps of `grid` pixels, one at least."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = (shape[0] * shape[1] / (width * height)) ** 0.5
    most = 4 * max(shape)  # of a sliver's long side
    wide, high = (max(grid, round(min(side * scale, most) / grid) * grid) for side in (width, height))
    return wide, high


def extended(picture: Image.Image, margins: Sequence[int]) -> tuple[Image.Image, Tensor]:
    """A picture on a canvas that is larger by (left, top, right, bottom) pixels, and the mask of what is new.

    The new part has the picture's colours spread into it.
    """
    left, top, right, bottom = margins
    canvas = Image.new("RGB", (picture.width + left + right, picture.height + top + bottom))
    canvas.paste(picture, (left, top))
    mask = torch.ones(1, 1, canvas.height, canvas.width)
    mask[..., top : top + picture.height, left : left + picture.width] = 0
    canvas = to_pil(to_unit(spread(to_tensor(canvas), mask))[0])
    canvas.paste(picture, (left, top))
    return canvas, mask
