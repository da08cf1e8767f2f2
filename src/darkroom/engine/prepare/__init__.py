"""Request -> Job, one function a task. What differs between tasks is the data of their jobs, nothing else.

A request is parsed and what it brings is opened (`complete.parse`); its task plans the way; then it is completed to the
recipe (`complete.complete`), its noise is drawn, its texts are encoded (`guidance`), and all of it becomes a job.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from ...errors import RequestError
from ...request import Request
from ..job import Inputs, Job, ParsedRequest
from .common import LoadedModel
from .complete import parse
from .control import steered
from .extra_channels import depth_to_image, edit, is_editor, takes_depth
from .image import from_image, from_text
from .inpaint import inpaint
from .upscale import check_enlarged, enlarge, enlarged, is_upscaler, second_pass, windowed, with_second_pass

__all__ = ["Inputs", "LoadedModel", "enlarged", "prepare", "prepare_next", "text_to_image"]


def prepare(model: LoadedModel, request: Request, id: str, inputs: Inputs | None = None, output: str = "pil") -> Job:
    """The job of a request: the task is what the inputs and the model make it.

    Args:
        output: "pil", "pt" or "latent".

    Raises RequestError where the model can't do what is asked.
    """
    parsed = parse(model, request, id, inputs or Inputs(), output)
    job = with_second_pass(model, _task(model, parsed)(model, parsed), parsed)
    job = steered(model, windowed(model, job), parsed.controls)
    check_enlarged(job)
    job.warnings = parsed.warnings
    return job


text_to_image = prepare  # its name where a text is all there is


def prepare_next(model: LoadedModel, job: Job, result: Image.Image | Tensor) -> Job:
    """The job of the next pass of a picture, from the result of the one before. Its recipe stays the first one's."""
    coming = job.next
    assert coming is not None
    after = second_pass(model, coming, result)
    after = steered(model, windowed(model, after), coming.parsed.controls)
    after.first = job.state.x
    after.enlarged, after.before, after.request = after.size, job.before + job.steps, job.request
    after.warnings = job.warnings
    return after


def _task(model: LoadedModel, parsed: ParsedRequest) -> Callable[[LoadedModel, ParsedRequest], Job]:
    request, inputs = parsed.asked, parsed.inputs
    if is_upscaler(model):
        return enlarge
    if is_editor(model):
        return edit
    if request.image_guidance_scale is not None:
        raise RequestError(
            f"image_guidance_scale is {request.image_guidance_scale:g}, which only editing models take; leave it out"
        )
    if inputs.depth is not None or takes_depth(model):
        return depth_to_image
    if inputs.mask is not None or request.outpaint is not None:
        return inpaint
    if inputs.image is not None:
        return from_image
    return from_text
