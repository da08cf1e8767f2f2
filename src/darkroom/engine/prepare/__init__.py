"""Request -> Job, one function a task. What differs between tasks is the data of their jobs, nothing else."""

from __future__ import annotations

from darkroom.engine.inputs import Inputs
from darkroom.engine.job import Job
from darkroom.request import Request

from .common import Model
from .text import text_to_image

__all__ = ["Inputs", "Model", "prepare", "text_to_image"]


def prepare(model: Model, request: Request, id: str, inputs: Inputs | None = None, output: str = "pil") -> Job:
    """The job of a request: the task is what the inputs and the model make it.

    Args:
        output: "pil", "pt" or "latent".

    Raises RequestError where the model can't do what is asked.
    """
    return text_to_image(model, request, id, inputs or Inputs(), output)
