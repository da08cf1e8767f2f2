"""Spans to chunks: what the text encoder takes at once, BOS, at most 75 tokens, EOS, padding.

A prompt of more tokens becomes several chunks, encoded apart and laid side by side. Where the cut falls depends on the
style:

    a1111   a chunk that is full goes back to its last comma, if that is among its last 20 tokens; BREAK cuts
    comfy   a span of fewer than 8 tokens is not cut
    plain   every 75 tokens

A learned word (`embeddings`) is never cut: where its vectors don't fit any more, it begins the next chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import RequestError
from .embeddings import Finder, LearnedWord
from .grammar import Span, parse
from .tokenizer import Tokenizer

COMMA_REACH = 20  # tokens that a1111 goes back for a comma
WHOLE_BELOW = 8  # tokens of a span that comfy cuts

PLACEHOLDER = 0  # the id where a learned word's vector stands instead


class Token(NamedTuple):
    """What takes one place in a chunk."""

    id: int
    weight: float
    word: LearnedWord | None = None  # whose vector stands here,
    row: int = 0  # and which of them

    @property
    def glued(self) -> bool:
        """Whether it can't be parted from the token before it."""
        return self.row > 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row for the text encoder."""

    ids: tuple[int, ...]  # BOS, tokens, EOS, padding
    weights: tuple[float, ...]  # one an id; 1 for BOS, EOS and padding
    tokens: int  # how many are the prompt's
    learned: tuple[tuple[int, LearnedWord], ...] = ()  # where in `ids` a learned word's vectors begin

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)


def chunk_prompt(
    text: str,
    tokenizer: Tokenizer,
    style: str = "a1111",
    length: int | None = None,
    words: Iterable[LearnedWord] = (),
) -> list[Chunk]:
    """The chunks of a prompt, at least one, each of `length` ids (the tokenizer's `max_length` if None).

    Raises RequestError for a prompt that `grammar.parse` refuses, and for learned words (`words`) that `Finder`
    refuses or that have more vectors than a chunk has room for.
    """
    length = length or tokenizer.max_length
    room = length - 2
    finder = Finder(words, style)
    spans = [(span, list(_tokens(span, tokenizer, finder, room))) for span in parse(text, style)]
    if style == "a1111":
        cut = _cut_at_commas(spans, room, tokenizer.comma_id)
    elif style == "comfy":
        cut = _cut_between_spans(spans, room)
    else:
        cut = _cut_when_full([token for _, span_tokens in spans for token in span_tokens], room)
    return [_chunk(tokens, tokenizer, length) for tokens in cut]


def _tokens(span: Span, tokenizer: Tokenizer, finder: Finder, room: int) -> Iterator[Token]:
    for piece in finder.split(span.text):
        if isinstance(piece, str):
            yield from (Token(i, span.weight) for i in tokenizer.encode(piece))
            continue
        if piece.count > room:
            raise RequestError(
                f"the embedding {piece.name!r} has {piece.count} vectors, more than the {room} tokens that fit into a "
                f"chunk; use one with fewer"
            )
        yield from (Token(PLACEHOLDER, span.weight, piece, row) for row in range(piece.count))


def _cut_at_commas(spans: Iterable[tuple[Span, Sequence[Token]]], room: int, comma_id: int | None) -> list[list[Token]]:
    """A1111's way. A comma only counts for the chunk it was read into, and a chunk may begin with one."""
    done: list[list[Token]] = []
    chunk: list[Token] = []
    after_comma = 0  # tokens of the chunk up to and with its last comma; 0 without one
    for span, tokens in spans:
        if span.new_chunk:
            done.append(chunk)
            chunk, after_comma = [], 0
        for token in tokens:
            if token.glued:
                chunk.append(token)
                continue
            is_comma = token.word is None and token.id == comma_id
            if len(chunk) == room:
                near = after_comma > 0 and room - (after_comma - 1) <= COMMA_REACH
                keep = after_comma if near and not is_comma else room
                done.append(chunk[:keep])
                chunk, after_comma = chunk[keep:], 0
                if is_comma:
                    chunk.append(token)
                    continue
            if token.word is not None and len(chunk) + token.word.count > room:
                done.append(chunk)
                chunk, after_comma = [], 0
            chunk.append(token)
            if is_comma:
                after_comma = len(chunk)
    if chunk or not done:
        done.append(chunk)
    return done


def _cut_between_spans(spans: Iterable[tuple[Span, Sequence[Token]]], room: int) -> list[list[Token]]:
    """ComfyUI's way: a long span fills what is left of a chunk, a short one goes to the next."""
    done: list[list[Token]] = []
    chunk: list[Token] = []
    for _, tokens in spans:
        may_cut = len(tokens) >= min(WHOLE_BELOW, room)
        at = 0
        while len(chunk) + len(tokens) - at > room:
            end = _before_word(tokens, at + room - len(chunk)) if may_cut else at
            done.append([*chunk, *tokens[at:end]])
            chunk, at = [], end
        chunk = [*chunk, *tokens[at:]]
    done.append(chunk)
    return done


def _cut_when_full(tokens: Sequence[Token], room: int) -> list[list[Token]]:
    done: list[list[Token]] = []
    at = 0
    while len(tokens) - at > room:
        end = _before_word(tokens, at + room)
        done.append(list(tokens[at:end]))
        at = end
    return [*done, list(tokens[at:])]


def _before_word(tokens: Sequence[Token], at: int) -> int:
    """The last place up to `at` where a cut parts no learned word."""
    while tokens[at].glued:
        at -= 1
    return at


def _chunk(tokens: Sequence[Token], tokenizer: Tokenizer, length: int) -> Chunk:
    padding = length - 2 - len(tokens)
    return Chunk(
        ids=(tokenizer.bos_id, *(t.id for t in tokens), tokenizer.eos_id, *[tokenizer.pad_id] * padding),
        weights=(1.0, *(t.weight for t in tokens), *[1.0] * (padding + 1)),
        tokens=len(tokens),
        learned=tuple((i, t.word) for i, t in enumerate(tokens, 1) if t.word is not None and not t.glued),
    )
