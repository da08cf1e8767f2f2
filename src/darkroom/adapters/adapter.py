"""An adapter: one file's changes to the layers of a model's networks."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from .updates import Update


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Changes by network ("unet", "text_encoder", ...) and by the layer's native name. Picklable."""

    parts: Mapping[str, Mapping[str, Update]]
    name: str = ""  # for people, and in recipes: the file's stem
    hash: str = field(default_factory=lambda: secrets.token_hex(32))  # 64 hexadecimal digits: the file's SHA-256
    metadata: Mapping[str, str] = field(default_factory=dict)  # ss_*, modelspec.* and what else the file says
    unmatched: tuple[str, ...] = ()  # keys of the file that found no home and were allowed to

    def to(self, device: torch.device | str) -> Adapter:
        """The same with its factors on a device."""
        moved = {part: {path: u.to(device) for path, u in updates.items()} for part, updates in self.parts.items()}
        return replace(self, parts=moved)

    def __repr__(self) -> str:
        kinds = Counter(update.kind for updates in self.parts.values() for update in updates.values())
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"Adapter({self.name!r}, {self.hash[:12]}: {told})"


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """An adapter at the strength it is asked for. Strength 0 is as if it were not there."""

    adapter: Adapter
    scale: float = 1.0  # on the U-Net
    text_scale: float = 1.0  # on the text encoders

    def on(self, part: str) -> float:
        """The strength for a network."""
        return self.scale if part == "unet" else self.text_scale
