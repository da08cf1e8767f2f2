"""Pictures in progress: requests become jobs, jobs move together, pictures come out.

Names are fetched on first use: `scheduler` needs no torch, and neither do those who only use that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine, Event, Failed, Finished, Progress
    from .job import Control, Inputs, Job

__all__ = ["Control", "Engine", "Event", "Failed", "Finished", "Inputs", "Job", "Progress"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'darkroom.engine' has no attribute {name!r}")
    module = ".job" if name in ("Control", "Inputs", "Job") else ".engine"
    return getattr(import_module(module, __name__), name)
