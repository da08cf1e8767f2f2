"""Prompts to what the U-Net attends to: chunks through the text encoder, weighted, laid side by side.

Shapes: k chunks of L ids (77 in the published models), D the text encoder's width.

Several text encoders that read one prompt (SDXL: Podell et al. 2023, arXiv 2307.01952, sec. 2.1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock

import torch
from torch import Tensor

from ..adapters import Scaled, attached
from ..errors import CheckpointError, RequestError
from ..models.text_encoder import TextEncoder
from .chunks import Chunk, chunk_prompt
from .embeddings import LearnedWord, check_widths
from .grammar import check_prompt
from .tokenizer import Tokenizer

CACHE_BYTES = 64 << 20  # of encoded prompts kept: about 280 of one chunk for Stable Diffusion 1.5
ROWS = 16  # chunks in one call of the text encoder
NO_MEAN = 1e-3  # a mean smaller than this, against the root mean square, is rounding and no property of the text


Encoded = tuple[Tensor, Tensor | None]  # tokens' vectors, and the pooled text where there is one


class PromptEncoder:
    """Encodes prompts with one tokenizer and one text encoder, and remembers the latest.

    Safe to call from several threads. Call `clear` when the text encoder's weights have changed.

    Args:
        widths: of all the model's text encoders, where there are several (default: this one's alone),
        part: and which of them this is. A learned word must have vectors for all of them.
        penultimate: SDXL's way: the last layer but one, without the final norm, and a pooled text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        cache_bytes: int = CACHE_BYTES,
        *,
        widths: tuple[int, ...] | None = None,
        part: int = 0,
        penultimate: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.cache_bytes = cache_bytes
        self.widths = widths or (text_encoder.config.hidden_size,)
        self.part = part
        self.penultimate = penultimate
        self._cache: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()

    @property
    def length(self) -> int:
        """L, the ids of a chunk: what both the tokenizer and the text encoder can take."""
        return min(self.tokenizer.max_length, self.text_encoder.config.max_position_embeddings)

    def chunks(self, text: str, style: str = "a1111", words: Sequence[LearnedWord] = ()) -> list[Chunk]:
        """What the text encoder is shown of a prompt: ids and weights. Raises RequestError as `encode` does."""
        return chunk_prompt(text, self.tokenizer, style, self.length, words)

    def encode(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor:
        """A prompt as [k L, D] float32 on the text encoder's device; yours to change.

        `style` is the grammar: "a1111", "comfy" or "plain". `clip_skip` n takes the output of the n-th layer from the
        end (0 and 1: the last), then the final norm. `words` are learned words the text may use; `loras` are
        attached to the text encoder meanwhile. A text without weights is exactly the text encoder's output.

        Raises RequestError for a prompt over 32,000 characters, a weight or a style that can't be, a `clip_skip`
        outside the text encoder's layers, a learned word for another model; CheckpointError where tokenizer and text
        encoder don't fit.
        """
        return self._recall(text, style, clip_skip, words, loras)[0].clone()

    def pooled(
        self,
        text: str,
        style: str = "a1111",
        clip_skip: int = 0,
        words: Sequence[LearnedWord] = (),
        loras: Sequence[Scaled] = (),
    ) -> Tensor | None:
        """The whole prompt as one vector [P] float32, of its first chunk; None where the text encoder has none.

        Arguments and errors as of `encode`; neither weights nor `clip_skip` change it.
        """
        pooled = self._recall(text, style, clip_skip, words, loras)[1]
        return None if pooled is None else pooled.clone()

    def _recall(
        self, text: str, style: str, clip_skip: int, words: Sequence[LearnedWord], loras: Sequence[Scaled]
    ) -> Encoded:
        check_prompt(text, style)
        layers = self.text_encoder.config.num_hidden_layers
        if type(clip_skip) is not int or not 0 <= clip_skip <= layers:
            raise RequestError(
                f"clip_skip={clip_skip!r} is not a whole number from 0 to {layers}, the layers there are"
            )
        network = "text_encoder" if self.part == 0 else f"text_encoder_{self.part + 1}"
        changes = tuple((lora.adapter.hash, lora.text_scale) for lora in loras if network in lora.adapter.parts)
        # All that changes the answer: whatever else is to change it belongs into the key.
        key = (text, style, max(clip_skip, 1), tuple((word.names, word.hash) for word in words), changes)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        with attached(self.text_encoder, network, [loras]):
            encoded = self._encode(self.chunks(text, style, words), style, clip_skip)
        self._remember(key, encoded)
        return encoded

    def clear(self) -> None:
        """Forget all encoded prompts."""
        with self._lock:
            self._cache.clear()
            self._cached_bytes = 0

    def _remember(self, key: Hashable, encoded: Encoded) -> None:
        if _bytes(encoded) > self.cache_bytes:
            return
        with self._lock:
            if key not in self._cache:
                self._cache[key] = encoded
                self._cached_bytes += _bytes(encoded)
            while self._cached_bytes > self.cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= _bytes(oldest)

    def _encode(self, chunks: list[Chunk], style: str, clip_skip: int) -> Encoded:
        z, pooled = self._through_text_encoder(chunks, clip_skip)
        if any(chunk.weighted for chunk in chunks):
            weights = torch.tensor([chunk.weights for chunk in chunks], device=z.device).unsqueeze(-1)
            if style == "comfy":
                empty, _ = self._through_text_encoder(self.chunks("", "plain"), clip_skip)
                z = weigh_against_empty(z, weights, empty)
            else:
                z = weigh_and_rescale(z, weights)
        return z.flatten(0, 1), None if pooled is None else pooled[0]

    @torch.no_grad()
    def _through_text_encoder(self, chunks: Sequence[Chunk], clip_skip: int) -> Encoded:
        """k chunks -> [k, L, D] and [k, P] or None, float32. Chunks that are the same are encoded once."""
        keys = [(chunk.ids, tuple((at, word.hash) for at, word in chunk.learned)) for chunk in chunks]
        distinct = dict(zip(keys, chunks, strict=True))
        size = self.text_encoder.config.vocab_size
        largest = max(max(ids) for ids, _ in distinct)
        if largest >= size:
            raise CheckpointError(
                f"the tokenizer gives token id {largest}, but this model's text encoder has only {size} tokens;"
                " they belong to different models"
            )
        rows = list(distinct.values())
        parts = [self.run(rows[i : i + ROWS], clip_skip) for i in range(0, len(rows), ROWS)]
        places = {key: i for i, key in enumerate(distinct)}
        order = [places[key] for key in keys]
        pooled = [vectors for _, vectors in parts if vectors is not None]
        return torch.cat([z for z, _ in parts])[order], torch.cat(pooled)[order] if pooled else None

    def run(self, chunks: Sequence[Chunk], clip_skip: int = 0) -> Encoded:
        """One call of the text encoder: [k, L, D] and [k, P] or None, float32. Gradients reach learned words."""
        table = self.text_encoder.token_embedding.weight
        ids = torch.tensor([chunk.ids for chunk in chunks], device=table.device)
        embeddings = None
        if any(chunk.learned for chunk in chunks):
            embeddings = self.text_encoder.token_embedding(ids)
            for i, chunk in enumerate(chunks):
                for at, word in chunk.learned:
                    check_widths(word, self.widths)
                    embeddings[i, at : at + word.count] = word.parts[self.part].to(table)
        if self.penultimate:
            z, pooled = self.text_encoder.penultimate(ids, clip_skip, embeddings)
            return z.float(), None if pooled is None else pooled.float()
        encoded: Tensor = self.text_encoder(ids, clip_skip=clip_skip, embeddings=embeddings)
        return encoded.float(), None


def weigh_and_rescale(z: Tensor, weights: Tensor) -> Tensor:
    """A1111's weighting of z [k, L, D] by [k, L, 1]: each chunk multiplied, then scaled to the mean that it had.

    The scaling means nothing where a chunk has no mean to speak of (a text encoder whose final norm has no bias gives
    zero up to rounding); it is left out there, where A1111 would multiply by noise.
    """
    weighted = z * weights
    before, after = z.mean((1, 2), keepdim=True), weighted.mean((1, 2), keepdim=True)
    meaningful = (before.abs() > NO_MEAN * _rms(z)) & (after.abs() > NO_MEAN * _rms(weighted))
    scale = torch.where(meaningful, before / after, torch.ones_like(before))
    # A chunk without weights stays as it is to the last bit.
    return torch.where((weights == 1).all(1, keepdim=True), z, weighted * scale)


def weigh_against_empty(z: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """ComfyUI's weighting of z [k, L, D] by [k, L, 1]: away from or towards the empty prompt's encoding [1, L, D]."""
    return torch.where(weights == 1, z, empty + weights * (z - empty))


def _bytes(encoded: Encoded) -> int:
    return sum(tensor.nbytes for tensor in encoded if tensor is not None)


def _rms(z: Tensor) -> Tensor:
    return z.square().mean((1, 2), keepdim=True).sqrt()


# --- joint


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
