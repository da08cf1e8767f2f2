"""What the model will read of a prompt, told: LoRAs, parts, steps, chunks, tokens, ids, weights, learned words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import visible
from .chunks import Chunk, chunk_prompt
from .embeddings import LearnedWord, check_widths
from .grammar import Prompt, Tag
from .tokenizer import END_OF_WORD, Tokenizer


@dataclass(frozen=True, slots=True)
class ToldToken:
    """One place in a chunk."""

    text: str  # as the prompt would be written; a learned word's name
    id: int | None  # None for a learned word's vector
    weight: float
    ends_word: bool  # False: the word goes on with the next token
    vector: int | None = None  # of a learned word: which of its vectors, from 1


@dataclass(frozen=True, slots=True)
class ToldText:
    """A text, the steps in which it is read, as pairs of the first and the last (counted from 1), and its chunks."""

    steps: tuple[tuple[int, int], ...]
    text: str
    chunks: tuple[tuple[ToldToken, ...], ...]


@dataclass(frozen=True, slots=True)
class ToldPart:
    """One of the prompts that AND joins."""

    weight: float
    texts: tuple[ToldText, ...]


@dataclass(frozen=True, slots=True)
class ToldWord:
    """A learned word that the prompt uses."""

    name: str
    hash: str
    vectors: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the model will read. `str` of it is for a terminal of 80 columns, `to_dict` for programs."""

    prompt: str
    style: str
    steps: int
    room: int  # tokens of a chunk, without its begin and end
    loras: tuple[Tag, ...]
    parts: tuple[ToldPart, ...]
    embeddings: tuple[ToldWord, ...]
    split: tuple[tuple[str, tuple[str, ...]], ...]  # words of several tokens, each once, and their tokens
    spelled: tuple[str, ...]  # those that are spelled letter by letter: the vocabulary knows nothing of them

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(
    prompt: str,
    tokenizer: Tokenizer,
    style: str = "a1111",
    steps: int = 30,
    *,
    words: Sequence[LearnedWord] = (),
    negative: bool = False,
    length: int | None = None,
    widths: tuple[int, ...] | None = None,
) -> Explanation:
    """Say what becomes of a prompt.

    Args:
        steps: that the picture takes.
        words: learned words that the prompt may use.
        negative: whether it is a negative prompt: in one AND and tags are words like others.
        length: ids of a chunk (the tokenizer's `max_length` if None).
        widths: of the model's text encoders, to check learned words against.

    Raises RequestError for a prompt that can't be drawn.
    """
    parsed = Prompt.parse(prompt, style, negative)
    length = length or tokenizer.max_length
    told: list[ToldPart] = []
    used: dict[str, ToldWord] = {}
    split: dict[str, tuple[str, ...]] = {}
    spelled: dict[str, None] = {}
    for part in parsed.parts:
        ranges: dict[str, list[tuple[int, int]]] = {}
        first = 1
        for stage in parsed.stages(part, steps):
            ranges.setdefault(stage.text, []).append((first, stage.until))
            first = stage.until + 1
        texts: list[ToldText] = []
        for text, read in ranges.items():
            chunks = chunk_prompt(text, tokenizer, style, length, words)
            for word in (word for chunk in chunks for _, word in chunk.learned):
                if widths is not None:
                    check_widths(word, widths)
                used[word.hash] = ToldWord(word.name, word.hash, word.count)
            tokens = tuple(tuple(_told(chunk, tokenizer)) for chunk in chunks)
            texts.append(ToldText(tuple(read), text, tokens))
            for pieces in _words(tokens):
                if len(pieces) > 1:
                    whole = tokenizer.decode([piece.id for piece in pieces if piece.id is not None])
                    split[whole] = tuple(piece.text for piece in pieces)
                    if all(_is_symbol(tokenizer, piece) for piece in pieces):
                        spelled[whole] = None
        told.append(ToldPart(part.weight, tuple(texts)))
    return Explanation(
        prompt=prompt,
        style=style,
        steps=steps,
        room=length - 2,
        loras=parsed.loras,
        parts=tuple(told),
        embeddings=tuple(used.values()),
        split=tuple(split.items()),
        spelled=tuple(spelled),
    )


def _told(chunk: Chunk, tokenizer: Tokenizer) -> Iterator[ToldToken]:
    learned = dict(chunk.learned)
    at = 1
    while at <= chunk.tokens:
        word = learned.get(at)
        if word is None:
            i = chunk.ids[at]
            yield ToldToken(tokenizer.decode([i]), i, chunk.weights[at], tokenizer.token(i).endswith(END_OF_WORD))
            at += 1
            continue
        for row in range(1, word.count + 1):
            yield ToldToken(word.name, None, chunk.weights[at], row == word.count, row)
            at += 1


def _words(chunks: Sequence[Sequence[ToldToken]]) -> Iterator[list[ToldToken]]:
    """The tokens of each word that the vocabulary makes of the text; a word may go on in the next chunk."""
    word: list[ToldToken] = []
    for token in (token for chunk in chunks for token in chunk):
        if token.id is None:
            continue
        word.append(token)
        if token.ends_word:
            yield word
            word = []
    if word:
        yield word


def _is_symbol(tokenizer: Tokenizer, token: ToldToken) -> bool:
    return token.id is not None and len(tokenizer.token(token.id).removesuffix(END_OF_WORD)) == 1


WIDTH = 80


def _lines(told: Explanation) -> Iterator[str]:
    for tag in told.loras:
        also = "" if tag.text_scale == tag.scale else f", text encoder {tag.text_scale:g}"
        yield from _wrapped(f"LoRA {visible(tag.name)} at {tag.scale:g}{also}")
    for number, part in enumerate(told.parts, 1):
        if len(told.parts) > 1:
            yield f"part {number} of {len(told.parts)}, weight {part.weight:g}"
        for text in part.texts:
            if len(part.texts) > 1:
                steps = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in text.steps)
                yield from _wrapped(f"step{'' if steps.isdigit() else 's'} {steps} of {told.steps}")
            yield from _wrapped(f'"{visible(text.text)}"')
            for place, chunk in enumerate(text.chunks, 1):
                yield f"  chunk {place} of {len(text.chunks)}: {len(chunk)} of {told.room} tokens"
                yield from _columns([_cell(token) for token in chunk])
    for word in told.embeddings:
        several = "vector" if word.vectors == 1 else "vectors"
        yield from _wrapped(f"embedding {visible(word.name)}: {word.vectors} {several}, hash {word.hash}")
    known = [
        f"{visible(word)} = {' + '.join(map(visible, pieces))}"
        for word, pieces in told.split
        if word not in told.spelled
    ]
    if known:
        yield from _wrapped(f"words of several tokens: {', '.join(known)}")
    if told.spelled:
        unknown = ", ".join(map(visible, told.spelled))
        yield from _wrapped(f"words this model doesn't know, spelled letter by letter: {unknown}")


def _cell(token: ToldToken) -> str:
    what = f"#{token.vector}" if token.id is None else str(token.id)
    weight = "" if token.weight == 1 else f" x{token.weight:.4g}"
    return f"{visible(token.text)}{'' if token.ends_word else '-'} {what}{weight}"


def _columns(cells: Sequence[str]) -> Iterator[str]:
    """Cells in rows, one below the other where they fit; a long one is cut to a line."""
    cells = [cell if len(cell) <= WIDTH - 4 else f"{cell[: WIDTH - 7]}..." for cell in cells]
    width = max(map(len, cells), default=0) + 2
    count = max(1, (WIDTH - 4 + 2) // width)
    for i in range(0, len(cells), count):
        yield "    " + "".join(f"{cell:{width}}" for cell in cells[i : i + count]).rstrip()


def _wrapped(text: str) -> Iterator[str]:
    """A line folded at spaces, its further lines indented."""
    indent = ""
    while len(indent) + len(text) > WIDTH:
        room = WIDTH - len(indent)
        cut = text.rfind(" ", 1, room + 1)
        cut = cut if cut > 0 else room
        yield indent + text[:cut].rstrip()
        text, indent = text[cut:].lstrip(), "    "
    if text or not indent:
        yield indent + text
