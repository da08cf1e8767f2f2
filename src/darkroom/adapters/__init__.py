"""LoRA: small changes to a network's layers, attached from outside and removed without a trace.

A file's factors become an `Adapter`; `attached` applies adapters to the rows of one call, each row its own; `Merged`
adds them to the weights for good, or until it is undone; `init_lora` makes one to be trained.
"""

from __future__ import annotations

from .adapter import Adapter, Group, Lora, Merged, Scaled, attached, attached_to
from .train import TrainableLora, init_lora
from .updates import Update

__all__ = [
    "Adapter",
    "Group",
    "Lora",
    "Merged",
    "Scaled",
    "TrainableLora",
    "Update",
    "attached",
    "attached_to",
    "init_lora",
]
