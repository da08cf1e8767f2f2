"""Reading a tokenizer's files: every fault in them ends as a CheckpointError of one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MAX_BYTES = 64 << 20  # CLIP's vocab.json has under a megabyte
MAX_ID = 2**31 - 1
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a `tokenizer` folder says."""

    vocab: dict[str, int]
    merges: list[str]
    special: dict[str, str]  # of SPECIAL_NAMES, those that are named
    max_length: int | None  # None where the folder doesn't say


def read_folder(folder: Path) -> TokenizerFiles:
    """Read a `tokenizer` folder with transformers' precedence: tokenizer.json over vocab.json and merges.txt,
    special_tokens_map.json over tokenizer_config.json."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        vocab, merges = _read_whole(whole)
    else:
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} is not a CLIP tokenizer's folder: it has no {name}")
        vocab, merges = read_vocab(folder / "vocab.json"), read_merges(folder / "merges.txt")
    config = _read_optional(folder / "tokenizer_config.json")
    special = _special_tokens(config, folder / "tokenizer_config.json")
    # A config with "added_tokens_decoder" is complete, and transformers ignores the older file then.
    if "added_tokens_decoder" not in config:
        path = folder / "special_tokens_map.json"
        special |= _special_tokens(_read_optional(path), path)
    length = config.get("model_max_length")
    # transformers writes 1e30 for "no limit".
    sane = isinstance(length, int) and not isinstance(length, bool) and 0 < length < 1_000_000
    return TokenizerFiles(vocab, merges, special, length if sane else None)


def read_vocab(path: Path) -> dict[str, int]:
    """Token to id, from a `vocab.json`."""
    return _checked_vocab(_read_json(path), path)


def read_merges(path: Path) -> list[str]:
    """The merges "left right" in order, from a `merges.txt`."""
    try:
        return parse_merges(_read_bytes(path).decode(), str(path))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text, as a list of merges is") from error


def parse_merges(text: str, source: str) -> list[str]:
    """The merges in the text of a `merges.txt`: its lines without the version line and empty ones."""
    merges = []
    # Not splitlines(), which also splits at characters that a merge may hold.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        if not _is_pair(line.split(" ")):
            raise CheckpointError(f"{source}, line {number}: {line[:60]!r} is not two symbols with a space between")
        merges.append(line)
    return merges


def _is_pair(parts: Sequence[Any]) -> bool:
    return len(parts) == 2 and all(isinstance(p, str) and p and " " not in p for p in parts)


def _read_whole(path: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and merges of a `tokenizer.json`. Its other parts are CLIP's, or it is no CLIP tokenizer."""
    content = _read_json(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} holds no byte-pair encoding, as a CLIP tokenizer does")
    listed = model.get("merges", [])
    if not isinstance(listed, list):
        raise CheckpointError(f"{path}: its merges are not a list")
    merges = []
    for merge in listed:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or not _is_pair(parts):
            raise CheckpointError(f"{path}: the merge {str(merge)[:60]!r} is not two symbols")
        merges.append(" ".join(parts))
    return _checked_vocab(model.get("vocab"), path), merges


def _checked_vocab(content: object, path: Path) -> dict[str, int]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no vocabulary: a JSON object of tokens and their ids is expected")
    for token, i in content.items():
        if type(i) is not int or not 0 <= i <= MAX_ID:
            raise CheckpointError(
                f"{path}: the id of token {token[:60]!r} is {str(i)[:60]}, not a whole number from 0 up"
            )
    return content


def _special_tokens(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Names to tokens. A token is a string, or an object that holds it as "content"."""
    found = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            continue
        if not isinstance(content, str):
            raise CheckpointError(f"{path}: {name} is {str(value)[:60]}, not a token")
        found[name] = content
    return found


def _read_optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = _read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object, as a tokenizer's configuration is")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes, more than any CLIP vocabulary ({MAX_BYTES:,})")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
