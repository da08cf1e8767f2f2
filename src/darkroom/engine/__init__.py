"""Pictures in progress: requests become jobs, jobs move together, pictures come out."""

from .engine import Engine, Event, Failed, Finished, Progress
from .job import Control, Inputs, Job

__all__ = ["Control", "Engine", "Event", "Failed", "Finished", "Inputs", "Job", "Progress"]
