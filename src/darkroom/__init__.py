"""Stable Diffusion, whole, in one small package.

    import darkroom
    darkroom.load().generate("a large fox on a yellow background").save("out")

Importing the package imports no torch: a name's module is loaded when the name is first used.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, Error, ImageError, RequestError, TrainingError

if TYPE_CHECKING:
    from . import hints
    from .adapters import Lora
    from .arguments import Guidance, Inpaint, Noise, SizeConditioning, Speed, Tiling
    from .engine import Control, Engine, Failed, Finished, Inputs, Progress
    from .evaluate.call import Evaluation, EvaluationProgress, evaluate
    from .formats.embedding import Embedding
    from .loading import load
    from .names import SamplerId
    from .pipeline import Pipeline
    from .recipe import Recipe, read_recipe
    from .request import Enlarge, Hires, Request
    from .result import Result
    from .training.start import Trained, TrainingProgress, train, training_recipe
    from .version import __version__

    def samplers() -> list[
        SamplerId
    ]: ...  # the package of that name, which can be called: it gives the samplers' names


_WHERE = {
    "Control": "engine",
    "Embedding": "formats.embedding",
    "Enlarge": "request",
    "Engine": "engine",
    "Evaluation": "evaluate.call",
    "EvaluationProgress": "evaluate.call",
    "Failed": "engine",
    "Finished": "engine",
    "Guidance": "arguments",
    "Hires": "request",
    "Inpaint": "arguments",
    "Inputs": "engine",
    "Lora": "adapters",
    "Noise": "arguments",
    "Pipeline": "pipeline",
    "Progress": "engine",
    "Recipe": "recipe",
    "Request": "request",
    "Result": "result",
    "SizeConditioning": "arguments",
    "Speed": "arguments",
    "Tiling": "arguments",
    "Trained": "training.start",
    "TrainingProgress": "training.start",
    "__version__": "version",
    "evaluate": "evaluate",
    "hints": "hints",
    "load": "loading",
    "read_recipe": "recipe",
    "samplers": "samplers",
    "train": "training.start",
    "training_recipe": "training.start",
}

__all__ = [
    "CheckpointError",
    "Control",
    "Embedding",
    "Engine",
    "Enlarge",
    "Error",
    "Evaluation",
    "EvaluationProgress",
    "Failed",
    "Finished",
    "Guidance",
    "Hires",
    "ImageError",
    "Inpaint",
    "Inputs",
    "Lora",
    "Noise",
    "Pipeline",
    "Progress",
    "Recipe",
    "Request",
    "RequestError",
    "Result",
    "SizeConditioning",
    "Speed",
    "Tiling",
    "Trained",
    "TrainingError",
    "TrainingProgress",
    "__version__",
    "evaluate",
    "hints",
    "load",
    "read_recipe",
    "samplers",
    "train",
    "training_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'darkroom' has no attribute {name!r}")
    collecting = gc.isenabled()
    gc.disable()  # what an import makes stays: looking through it for garbage is a tenth of torch's import
    try:
        module = import_module(f".{_WHERE[name]}", __name__)
    finally:
        if collecting:
            gc.enable()
    value = module if name == _WHERE[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
