"""A small CLIP-style vocabulary for a model with few words, and the files it is kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from .words import BOS_TOKEN, END_OF_WORD, EOS_TOKEN, byte_symbols, split_words

Pair = tuple[str, str]


def build_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """A vocabulary in which every given word is a single token, and every other text has tokens too.

    `words` may be phrases ("hot dog"), capitals and punctuation: they are split as a prompt would be, and each piece
    becomes one token. Returns `(vocab, merges)`, the contents of `vocab.json` and `merges.txt`: the 256 byte symbols,
    their end-of-word forms, what the merges make, `<|startoftext|>` and `<|endoftext|>` last, ids 0 upwards in that
    order. The same words in the same order give the same vocabulary.

    A merge is only ever added after all others, where it can't disturb a word that is whole already: byte-pair encoding
    takes the earliest merge that applies, and such a word always has an earlier one to take until it is whole.
    """
    ranks: dict[Pair, int] = {}
    done: set[str] = set()
    for phrase in words:
        for word in split_words(phrase):
            if word in done:
                continue
            done.add(word)
            symbols = _merged([*word[:-1], word[-1] + END_OF_WORD], ranks)
            while len(symbols) > 1:
                ranks[symbols[0], symbols[1]] = len(ranks)
                symbols = _merged(symbols, ranks)
    merges = [f"{left} {right}" for left, right in ranks]
    return vocabulary_of(merges), merges


def vocabulary_of(merges: Iterable[str]) -> dict[str, int]:
    """Token to id, from the merges ("a b" each) in order: the way OpenAI's CLIP numbers its 49,408 tokens."""
    symbols = byte_symbols()
    tokens = [
        *symbols,
        *(s + END_OF_WORD for s in symbols),
        *(m.replace(" ", "") for m in merges),
        BOS_TOKEN,
        EOS_TOKEN,
    ]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _merged(symbols: list[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Byte-pair encoding of one word: the earliest merge that applies, leftmost first, until none does."""
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def write_vocabulary(
    folder: str | Path,
    vocab: Mapping[str, int],
    merges: Sequence[str],
    max_length: int = 77,
    *,
    bos_token: str = BOS_TOKEN,
    eos_token: str = EOS_TOKEN,
    pad_token: str = EOS_TOKEN,
    unk_token: str = EOS_TOKEN,
) -> None:
    """Write the `tokenizer` folder of a diffusers model: transformers' CLIPTokenizer loads it.

    `vocab.json`, `merges.txt`, `tokenizer_config.json`, `special_tokens_map.json`; the folder is made if need be.
    `pad_token` is `<|endoftext|>` for Stable Diffusion 1.x and "!" for 2.x.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token, "unk_token": unk_token}
    config = {
        "add_prefix_space": False,
        **special,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": max_length,
        "tokenizer_class": "CLIPTokenizer",
    }
    files = {
        "vocab.json": json.dumps(dict(vocab), ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    for name, text in files.items():
        # Bytes, not text mode: the same file on every platform.
        (folder / name).write_bytes(text.encode())
