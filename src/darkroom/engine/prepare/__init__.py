"""Request -> Job, one function a task. What differs between tasks is the data of their jobs, nothing else."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from ...errors import RequestError
from ...request import Request
from ..job import Inputs, Job
from .common import Model
from .control import check_controls, steered
from .extra_channels import depth_to_image, edit, is_editor, takes_depth
from .image import image_to_image, text_to_image
from .inpaint import inpaint
from .loras import carrying, with_loras
from .upscale import enlarge, is_upscaler, second_pass, windowed, with_second_pass

__all__ = [
    "Inputs",
    "Model",
    "depth_to_image",
    "edit",
    "enlarge",
    "image_to_image",
    "inpaint",
    "prepare",
    "prepare_next",
    "text_to_image",
]


def prepare(model: Model, request: Request, id: str, inputs: Inputs | None = None, output: str = "pil") -> Job:
    """The job of a request: the task is what the inputs and the model make it.

    Args:
        output: "pil", "pt" or "latent".

    Raises RequestError where the model can't do what is asked.
    """
    brought = inputs or Inputs()
    bare, inputs = with_loras(model, request, brought)
    check_controls(request, inputs.controls)
    job = with_second_pass(model, _task(model, bare, inputs)(model, bare, id, inputs, output), brought)
    return carrying(model, steered(model, windowed(model, job), inputs.controls), request, inputs.loras)


def prepare_next(model: Model, job: Job, result: Image.Image | Tensor) -> Job:
    """The job of the next pass of a picture, from the result of the one before. Its recipe stays the first one's."""
    coming = job.next
    assert coming is not None
    bare, inputs = with_loras(model, coming.request, coming.inputs)
    after = second_pass(model, bare, job.id, inputs, result, coming.output)
    after = carrying(model, steered(model, windowed(model, after), inputs.controls), coming.request, inputs.loras)
    after.enlarged, after.before, after.request = after.size, job.before + job.steps, job.request
    return after


def _task(model: Model, request: Request, inputs: Inputs) -> Callable[[Model, Request, str, Inputs, str], Job]:
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
        return image_to_image
    return text_to_image
