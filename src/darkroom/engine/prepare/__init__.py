"""Request -> Job, one function a task. What differs between tasks is the data of their jobs, nothing else."""

from __future__ import annotations

from collections.abc import Callable

from darkroom.engine.inputs import Inputs
from darkroom.engine.job import Job
from darkroom.request import Request

from .common import Model
from .image import image_to_image
from .inpaint import inpaint
from .loras import carrying, with_loras
from .text import text_to_image

__all__ = ["Inputs", "Model", "image_to_image", "inpaint", "prepare", "text_to_image"]


def prepare(model: Model, request: Request, id: str, inputs: Inputs | None = None, output: str = "pil") -> Job:
    """The job of a request: the task is what the inputs and the model make it.

    Args:
        output: "pil", "pt" or "latent".

    Raises RequestError where the model can't do what is asked.
    """
    bare, inputs = with_loras(model, request, inputs or Inputs())
    return carrying(model, _task(bare, inputs)(model, bare, id, inputs, output), request, inputs.loras)


def _task(request: Request, inputs: Inputs) -> Callable[[Model, Request, str, Inputs, str], Job]:
    if inputs.mask is not None or request.outpaint is not None:
        return inpaint
    if inputs.image is not None:
        return image_to_image
    return text_to_image
