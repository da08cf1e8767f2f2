"""A vocabulary learned from captions, for a text encoder that is trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ..errors import TrainingError
from ..prompts.tokenizer import (
    END_OF_WORD,
    Tokenizer,
    byte_symbols,
    normalizer,
    pre_tokenizer,
    vocabulary_of,
    without_surrogates,
)

LEAST = len(byte_symbols()) * 2 + 2  # tokens without a merge: bytes, bytes that end a word, begin and end of a text


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
