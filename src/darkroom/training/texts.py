"""Encoded captions, kept on disk where no text encoder learns.

Shapes: T tokens, D width of what the U-Net attends to, P width of the pooled text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from darkroom.prompts.encoder import Encoded

from .background import interruptible
from .cache import Cache, fingerprint, key_of, missing
from .parallel import Share


def place(folder: Path, text_encoders: Sequence[nn.Module], told: object = "") -> Path:
    """Where in a cache's folder the texts of some text encoders lie. `told`: what else changes the answer."""
    names = [fingerprint(encoder) for encoder in text_encoders]
    return folder / f"texts-{hashlib.sha256(f'{names} {told}'.encode()).hexdigest()[:16]}"


class TextStore:
    """Captions through frozen text encoders: from disk where they are there, computed where not.

    Either way an answer has been rounded to float16, so that its bits do not depend on whether it was kept.

    Args:
        place: the folder of a cache, as `place` names it.
        encode: a caption to [T, D] and [P] or None, always the same for the same caption.
    """

    def __init__(self, place: Path, encode: Callable[[str], Encoded]) -> None:
        self.cache = Cache(place)
        self.encode = encode

    def __call__(self, caption: str) -> Encoded:
        """[T, D] and [P] or None, float32 on the CPU."""
        key = key_of(caption)
        if key not in self.cache:
            text, pooled = self._rounded(caption)
            return text.float(), None if pooled is None else pooled.float()
        found = self.cache.get(key)
        pooled = found.get("pooled")
        return torch.from_numpy(found["text"].copy()).float(), (
            None if pooled is None else torch.from_numpy(pooled.copy()).float()
        )

    def fill(self, captions: Iterable[str], part: Share = Share()) -> None:
        """Encode this process's part of what is missing; SIGINT and SIGTERM end it early. Raises TrainingError."""
        texts = sorted(set(captions))
        self.cache.sweep()
        mine = [text for text in texts if int(key_of(text)[:8], 16) % part.world == part.rank]
        absent = [mine[i] for i in missing(self.cache, (key_of(text) for text in mine))]
        with interruptible() as asked, self.cache.writer() as writer:
            for caption in absent:
                if asked():
                    break
                text, pooled = self._rounded(caption)
                arrays = {"text": text.numpy()}
                if pooled is not None:
                    arrays["pooled"] = pooled.numpy()
                writer.add(key_of(caption), arrays)

    @torch.no_grad()
    def _rounded(self, caption: str) -> tuple[Tensor, Tensor | None]:
        text, pooled = self.encode(caption)
        return text.detach().half().cpu(), None if pooled is None else pooled.detach().half().cpu()
