"""Encoded captions, kept on disk where no text encoder learns.

Shapes: T tokens, D width of what the U-Net attends to, P width of the pooled text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..prompts.encoder import Encoded
from .background import interruptible
from .cache import Cache, fingerprint, key_of, missing
from .parallel import Share


def texts_place(folder: Path, text_encoders: Sequence[nn.Module], told: object = "") -> Path:
    """Where in a cache's folder the texts of some text encoders lie. `told`: what else changes the answer."""
    names = [fingerprint(encoder) for encoder in text_encoders]
    return folder / f"texts-{hashlib.sha256(f'{names} {told}'.encode()).hexdigest()[:16]}"


class TextStore:
    """Captions through frozen text encoders: from disk where they are there, computed where not; the same bits.

    Args:
        place: the folder of a cache, as `texts_place` names it.
        encode: a caption to [T, D] and [P] or None, float32; always the same for the same caption.
    """

    def __init__(self, place: Path, encode: Callable[[str], Encoded]) -> None:
        self.cache = Cache(place)
        self.encode = encode

    def __call__(self, caption: str) -> Encoded:
        """[T, D] and [P] or None, float32; on the CPU where it was kept."""
        key = key_of(caption)
        if key not in self.cache:
            return self.encode(caption)
        found = {name: torch.from_numpy(array.copy()) for name, array in self.cache.get(key).items()}
        return found["text"], found.get("pooled")

    def fill(self, captions: Iterable[str], part: Share = Share()) -> None:
        """Encode this process's part of what is missing, in this order: what is of one shape best comes together, since
        a file of the cache is. SIGINT and SIGTERM end it early. Raises TrainingError.
        """
        texts = list(dict.fromkeys(captions))
        self.cache.sweep()
        mine = [text for text in texts if int(key_of(text)[:8], 16) % part.world == part.rank]
        absent = [mine[i] for i in missing(self.cache, (key_of(text) for text in mine))]
        with interruptible() as asked, self.cache.writer() as writer, torch.no_grad():
            for caption in absent:
                if asked():
                    break
                text, pooled = self.encode(caption)
                parts = {"text": text} if pooled is None else {"text": text, "pooled": pooled}
                writer.add(key_of(caption), {name: t.float().cpu().numpy() for name, t in parts.items()})
