"""Request -> Job, one function a task. What differs between tasks is the data of their jobs, nothing else."""

from __future__ import annotations

from collections.abc import Callable

from darkroom.engine.inputs import Inputs
from darkroom.engine.job import Job
from darkroom.errors import RequestError
from darkroom.request import Request

from .common import Model
from .control import check_controls, steered
from .depth import depth_to_image, takes_depth
from .edit import edit, is_editor
from .image import image_to_image
from .inpaint import inpaint
from .loras import carrying, with_loras
from .text import text_to_image
from .upscale import enlarge, is_upscaler, windowed

__all__ = ["Inputs", "Model", "depth_to_image", "edit", "enlarge", "image_to_image", "inpaint", "prepare", "text_to_image"]


def prepare(model: Model, request: Request, id: str, inputs: Inputs | None = None, output: str = "pil") -> Job:
    """The job of a request: the task is what the inputs and the model make it.

    Args:
        output: "pil", "pt" or "latent".

    Raises RequestError where the model can't do what is asked.
    """
    bare, inputs = with_loras(model, request, inputs or Inputs())
    check_controls(request, inputs.controls)
    job = _task(model, bare, inputs)(model, bare, id, inputs, output)
    return carrying(model, steered(model, windowed(model, job), inputs.controls), request, inputs.loras)


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
