"""Pictures in progress: requests become jobs, jobs move together, pictures come out."""

from .engine import Engine, Event, Failed, Finished, Progress
from .inputs import Control, Inputs
from .job import Job

__all__ = ["Control", "Engine", "Event", "Failed", "Finished", "Inputs", "Job", "Progress"]
