"""Several text encoders that read one prompt (SDXL: Podell et al. 2023, arXiv 2307.01952, sec. 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import Scaled
from ..models.text_encoder import TextEncoder
from .chunks import Chunk
from .embeddings import LearnedWord
from .encoder import PromptEncoder
from .tokenizer import Tokenizer


def encoder_of(texts: Sequence[tuple[Tokenizer, TextEncoder]], *, penultimate: bool) -> PromptEncoder | JointEncoder:
    """What encodes prompts with a model's tokenizers and text encoders. `penultimate`: in SDXL's way."""
    widths = tuple(encoder.config.hidden_size for _, encoder in texts)
    encoders = [
        PromptEncoder(tokenizer, encoder, widths=widths, part=part, penultimate=penultimate)
        for part, (tokenizer, encoder) in enumerate(texts)
    ]
    return encoders[0] if len(encoders) == 1 else JointEncoder(encoders)


class JointEncoder:
    """Lays what each encoder makes of a prompt side by side. A prompt's encoding is [k L, sum of D].

    The encoders have one length of chunk. Where they need different numbers of chunks, the shorter prompts are
    continued with empty ones.
    """

    def __init__(self, encoders: Sequence[PromptEncoder]) -> None:
        self.encoders = tuple(encoders)

    @property
    def tokenizer(self) -> Tokenizer:
        """The first encoder's."""
        return self.encoders[0].tokenizer

    @property
    def widths(self) -> tuple[int, ...]:
        """The text encoders' widths."""
        return self.encoders[0].widths

    @property
    def length(self) -> int:
        """L, the ids of a chunk."""
        return self.encoders[0].length

    def chunks(self, text: str, style: str = "a1111", words: Sequence[LearnedWord] = ()) -> list[Chunk]:
        """What the first text encoder is shown of a prompt."""
        return self.encoders[0].chunks(text, style, words)

    def encode(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor:
        """A prompt as [k L, sum of D] float32. Arguments and errors as of `PromptEncoder.encode`."""
        parts = [encoder.encode(text, style, clip_skip, words, loras) for encoder in self.encoders]
        longest = max(len(part) for part in parts)
        for i, encoder in enumerate(self.encoders):
            missing = (longest - len(parts[i])) // self.length
            if missing:
                parts[i] = torch.cat([parts[i], *[encoder.encode("", "plain", clip_skip, loras=loras)] * missing])
        return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)

    def pooled(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor | None:
        """The last encoder's pooled text [P] float32, of the prompt's first chunk."""
        return self.encoders[-1].pooled(text, style, clip_skip, words, loras)

    def clear(self) -> None:
        """Forget all encoded prompts."""
        for encoder in self.encoders:
            encoder.clear()
