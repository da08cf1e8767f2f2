"""Spans to chunks: what the text encoder takes at once, BOS, at most 75 tokens, EOS, padding.

A prompt of more tokens becomes several chunks, encoded apart and laid side by side. Where the cut falls depends on the
style:

    a1111   a chunk that is full goes back to its last comma, if that is among its last 20 tokens; BREAK cuts
    comfy   a span of fewer than 8 tokens is not cut
    plain   every 75 tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from darkroom.prompts.grammar import Span, parse
from darkroom.prompts.tokenizer import Tokenizer

COMMA_REACH = 20  # tokens that a1111 goes back for a comma
WHOLE_BELOW = 8  # tokens of a span that comfy cuts

Token = tuple[int, float]  # id, weight


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row for the text encoder."""

    ids: tuple[int, ...]  # BOS, tokens, EOS, padding
    weights: tuple[float, ...]  # one an id; 1 for BOS, EOS and padding
    tokens: int  # how many are the prompt's

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)


def chunk_prompt(text: str, tokenizer: Tokenizer, style: str = "a1111", length: int | None = None) -> list[Chunk]:
    """The chunks of a prompt, at least one, each of `length` ids (the tokenizer's `max_length` if None).

    Raises RequestError for a prompt that `grammar.parse` refuses.
    """
    length = length or tokenizer.max_length
    spans = [(span, [(i, span.weight) for i in tokenizer.encode(span.text)]) for span in parse(text, style)]
    room = length - 2
    if style == "a1111":
        cut = _cut_at_commas(spans, room, tokenizer.comma_id)
    elif style == "comfy":
        cut = _cut_between_spans(spans, room)
    else:
        tokens = [token for _, span_tokens in spans for token in span_tokens]
        cut = [tokens[i : i + room] for i in range(0, len(tokens), room)] or [[]]
    return [_chunk(tokens, tokenizer, length) for tokens in cut]


def _cut_at_commas(spans: Iterable[tuple[Span, list[Token]]], room: int, comma_id: int | None) -> list[list[Token]]:
    """A1111's way. A comma only counts for the chunk it was read into, and a chunk may begin with one."""
    done: list[list[Token]] = []
    chunk: list[Token] = []
    after_comma = 0  # tokens of the chunk up to and with its last comma; 0 without one
    for span, tokens in spans:
        if span.new_chunk:
            done.append(chunk)
            chunk, after_comma = [], 0
        for token in tokens:
            if len(chunk) == room:
                is_comma = token[0] == comma_id
                near = after_comma > 0 and room - (after_comma - 1) <= COMMA_REACH
                keep = after_comma if near and not is_comma else room
                done.append(chunk[:keep])
                chunk, after_comma = chunk[keep:], 0
                if is_comma:
                    chunk.append(token)
                    continue
            chunk.append(token)
            if token[0] == comma_id:
                after_comma = len(chunk)
    if chunk or not done:
        done.append(chunk)
    return done


def _cut_between_spans(spans: Iterable[tuple[Span, list[Token]]], room: int) -> list[list[Token]]:
    """ComfyUI's way: a long span fills what is left of a chunk, a short one goes to the next."""
    done: list[list[Token]] = []
    chunk: list[Token] = []
    for _, tokens in spans:
        may_cut = len(tokens) >= min(WHOLE_BELOW, room)
        at = 0
        while len(chunk) + len(tokens) - at > room:
            fits = room - len(chunk) if may_cut else 0
            done.append(chunk + tokens[at : at + fits])
            chunk, at = [], at + fits
        chunk = chunk + tokens[at:]
    done.append(chunk)
    return done


def _chunk(tokens: list[Token], tokenizer: Tokenizer, length: int) -> Chunk:
    padding = length - 2 - len(tokens)
    ids = (tokenizer.bos_id, *(i for i, _ in tokens), tokenizer.eos_id, *[tokenizer.pad_id] * padding)
    return Chunk(ids, (1.0, *(w for _, w in tokens), *[1.0] * (padding + 1)), len(tokens))
