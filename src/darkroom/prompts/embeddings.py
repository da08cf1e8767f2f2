"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a learned word, whose vectors stand in for tokens' own.

A learned word is found in a prompt by its name. "a1111" and "plain": the name itself, whatever its capitals; where it
begins or ends in a letter, no letter may stand next to it, as CLIP's own words end there too ("cat" is in "cat's" and
in "cat1", but not in "cats"). "comfy": `embedding:name`, perhaps with the file's ending. Of several names that fit at a
place it is the longest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import RequestError
from .tokenizer import normalizer, without_surrogates

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAME = 200  # characters

_FAMILIES = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "SDXL"}


def _bytes(vectors: Tensor) -> bytes:
    """The values, little-endian; none of a tensor that has no values (`training.memory`)."""
    plain = vectors.cpu().contiguous()
    return plain.numpy().astype("<f4").tobytes() if type(plain).__name__ == "Tensor" else b""


@dataclass(frozen=True, slots=True, eq=False)
class LearnedWord:
    """A word and its vectors. Compare `hash`, which is a function of the vectors alone."""

    names: tuple[str, ...]  # what calls it in a prompt; the first is what it is called by us
    parts: tuple[Tensor, ...]  # [n, D] float32, one for each of the model's text encoders
    hash: str = field(init=False)  # 16 hexadecimal digits of the SHA-256 of the parts as little-endian float32

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        values = b"".join(_bytes(part.detach()) for part in self.parts)
        object.__setattr__(self, "hash", hashlib.sha256(values).hexdigest()[:16])

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def count(self) -> int:
        """n, the tokens that it takes in a prompt."""
        return self.parts[0].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each part."""
        return tuple(part.shape[1] for part in self.parts)


def check_name(name: object) -> str:
    """A name that can be found in a prompt, or RequestError."""
    if not isinstance(name, str) or not normal(name) or len(name) > MAX_NAME:
        shown = repr(name)[:60]
        raise RequestError(f"an embedding can't be called {shown}; give it a name of 1 to {MAX_NAME} characters")
    return name


def check_widths(word: LearnedWord, widths: tuple[int, ...]) -> None:
    """Raise RequestError unless a learned word is for text encoders of these widths."""
    if word.widths == widths:
        return
    theirs, ours = (_family(w) for w in (word.widths, widths))
    raise RequestError(f"the embedding {word.name!r} is for {theirs}, and this model is {ours}; use one made for it")


def _family(widths: tuple[int, ...]) -> str:
    numbers = " and ".join(map(str, widths))
    known = _FAMILIES.get(widths)
    return f"{known or 'a custom model'} (width {numbers})"


def normal(text: str) -> str:
    """Text as CLIP reads it: NFC, lower case, one space for any white space; none around it."""
    return normalizer().normalize_str(without_surrogates(text)).strip()


class Finder:
    """Finds learned words in a text of a style. Raises RequestError where two of them have the same name."""

    def __init__(self, words: Iterable[LearnedWord] = (), style: str = "a1111") -> None:
        self.words: dict[str, LearnedWord] = {}
        for word in words:
            for name in map(normal, word.names):
                other = self.words.setdefault(name, word)
                if other.hash != word.hash:
                    raise RequestError(f"two embeddings are called {name[:60]!r}; give one of them another name")
        self._comfy = style == "comfy"
        self._pattern = _pattern(self.words, self._comfy) if self.words else None

    def split(self, text: str) -> Iterator[str | LearnedWord]:
        """The text in pieces: texts, as CLIP reads them, and learned words. Without any the text as it is.

        Raises RequestError for an `embedding:name` in ComfyUI's style that is none of them.
        """
        if self._pattern is None:
            yield text
            return
        text = normalizer().normalize_str(without_surrogates(text))
        at = 0
        for match in self._pattern.finditer(text):
            if self._comfy and match["name"] is None:
                known = ", ".join(sorted(self.words))
                raise RequestError(
                    f"the prompt asks for {match.group()[:60]!r}; the embeddings given are {known[:200]}"
                )
            if at < match.start():
                yield text[at : match.start()]
            yield self.words[match["name"]]
            at = match.end()
        if at < len(text):
            yield text[at:]

    def used(self, text: str) -> list[LearnedWord]:
        """The learned words that a text holds, each once, in order."""
        found = [piece for piece in self.split(text) if isinstance(piece, LearnedWord)]
        return list({word.hash: word for word in found}.values())


def names_in(text: str, names: Iterable[str], style: str = "a1111") -> set[str]:
    """Which of the names a text calls."""
    by_normal = {normal(name): name for name in names}
    if not by_normal:
        return set()
    found = _pattern(by_normal, style == "comfy").finditer(normal(text))
    return {by_normal[match["name"]] for match in found if match["name"] is not None}


def unused(words: Iterable[LearnedWord], texts: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each learned word that is given and that none of the (text, style) calls."""
    called = list(texts)
    told = []
    for word in words:
        if not any(names_in(text, word.names, style) for text, style in called):
            start = "embedding:" if called and all(style == "comfy" for _, style in called) else ""
            names = " or ".join(repr(start + name) for name in word.names)
            told.append(
                f"the embedding {word.name!r} has no effect: no prompt calls it; write {names}, or leave it out"
            )
    return told


def _pattern(names: Iterable[str], comfy: bool) -> re.Pattern[str]:
    listed = "|".join(_bounded(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    if not comfy:
        return re.compile(f"(?P<name>{listed})")
    return re.compile(rf"embedding:(?:(?P<name>{listed})(?:\.(?:safetensors|pt|bin)(?!\w))?|\S+)")


def _bounded(name: str) -> str:
    """A name's pattern. Letters are what CLIP's words are made of; anything else may touch them."""
    left = r"(?<![^\W\d_])" if name[0].isalpha() else ""
    right = r"(?![^\W\d_])" if name[-1].isalpha() else ""
    return left + re.escape(name) + right


def fingerprints(words: Sequence[LearnedWord]) -> tuple[str, ...]:
    """ "name:hash" of each: what a recipe says of them."""
    return tuple(f"{word.name}:{word.hash}" for word in words)
