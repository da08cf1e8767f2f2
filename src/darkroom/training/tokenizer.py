"""Tokenizers of text encoders that are trained from nothing: learned from captions, or of the built-in scenes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ..errors import TrainingError
from ..prompts.tokenizer import (
    END_OF_WORD,
    Tokenizer,
    build_vocabulary,
    byte_symbols,
    normalizer,
    pre_tokenizer,
    vocabulary_of,
    without_surrogates,
)
from ..toy.objects import vocabulary

TOKENIZER = "tokenizer"  # in a run's folder
LEAST = len(byte_symbols()) * 2 + 2  # tokens without a merge: bytes, bytes that end a word, begin and end of a text


def run_tokenizer(run: Path, make: Callable[[], Tokenizer] | None = None) -> Tokenizer:
    """What the captions of a run are read with, kept in its folder; `make` makes it when the run begins."""
    folder = run / TOKENIZER
    if make is None:
        return Tokenizer.from_folder(folder)
    made = make()
    shutil.rmtree(folder, ignore_errors=True)
    made.save(folder)
    return made


def of_length(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """A tokenizer whose texts are padded and cut to `length` tokens."""
    if tokenizer.max_length == length:
        return tokenizer
    return Tokenizer(
        tokenizer.vocab, tokenizer.merges, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token, unk_token=tokenizer.unk_token, max_length=length,
    )  # fmt: skip


def scene_tokenizer() -> Tokenizer:
    """The tokenizer of the built-in scenes: every word of a caption is one token."""
    vocab, merges = build_vocabulary(vocabulary())
    return Tokenizer(vocab, merges)


def texts_of(recipe: Any, captions: Sequence[str]) -> list[str]:
    """The texts that a tokenizer is learned from: captions, and what a recipe puts around them."""
    return [*captions, recipe.prefix, *recipe.template.replace("{}", " ").split("|")]


def learn_tokenizer(captions: Sequence[str], size: int, max_length: int = 77) -> Tokenizer:
    """A tokenizer of at most `size` tokens in CLIP's form, by byte-pair encoding (Sennrich et al., arXiv 1508.07909).

    Any text can be told in it, since every byte has a token. Pairs that come once are not merged. Raises TrainingError
    where `size` is too small for the bytes.
    """
    if size < LEAST:
        raise TrainingError(f"vocabulary is {size}; it must be {LEAST} or more, since every byte needs a token")
    backend = Backend(BPE(end_of_word_suffix=END_OF_WORD))
    backend.normalizer = normalizer()
    backend.pre_tokenizer = pre_tokenizer()
    symbols = byte_symbols()
    trainer = BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        initial_alphabet=[*symbols],
        end_of_word_suffix=END_OF_WORD,
        limit_alphabet=len(symbols),
        show_progress=False,
    )
    backend.train_from_iterator((without_surrogates(caption) for caption in captions), trainer)
    merges = _merges(backend)
    # The library counts its alphabet otherwise (a byte that never ends a word is not there), we have all of it.
    merges = merges[: size - LEAST]
    return Tokenizer(vocabulary_of(merges), merges, max_length=max_length)


def _merges(backend: Backend) -> list[str]:
    """ "left right" each, in order; earlier versions of the library keep them so, later ones in pairs."""
    found = json.loads(backend.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in found]
