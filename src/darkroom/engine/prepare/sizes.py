"""What SDXL is told of a picture beside its text (Podell et al. 2023, arXiv 2307.01952, sec. 2.2)."""

from __future__ import annotations

from ...errors import RequestError
from ...models.config import UNetConfig
from ...request import SCORES, SIZES, Request

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what diffusers tells the refiner


def sizes_of(count: int, request: Request, negative: bool) -> tuple[float, ...]:
    """Height and width of the original, top and left of the crop, then height and width of the target: 6 numbers.

    For a refiner, 5 numbers: in place of the target the aesthetic score. `request` is complete. What isn't asked for
    the negative prompt is as for the prompt.
    """
    assert request.width is not None
    assert request.height is not None
    own = (request.width, request.height)
    original = (negative and request.negative_original_size) or request.original_size or own
    crop = (negative and request.negative_crop) or request.crop or (0, 0)
    first = (original[1], original[0], crop[1], crop[0])
    if count == 5:
        score = request.negative_aesthetic_score if negative else request.aesthetic_score
        usual = NEGATIVE_AESTHETIC_SCORE if negative else AESTHETIC_SCORE
        return (*first, usual if score is None else score)
    target = (negative and request.negative_target_size) or request.target_size or own
    return (*first, target[1], target[0])


def check_sizes(request: Request, config: UNetConfig) -> None:
    """Raise RequestError where sizes are asked for that this model is not told."""
    asked = [name for name in (*SIZES, *SCORES) if getattr(request, name) is not None]
    if asked and not config.told_sizes:
        raise RequestError(
            f"{asked[0]} is {getattr(request, asked[0])!r}, and only SDXL is told such a thing; leave it out"
        )
