"""From text to words, as CLIP reads it: normalise, split, write each word in byte symbols.

The three steps in front of CLIP's byte-pair encoding (Radford et al. 2021, section 2.4; the byte symbols are those of
GPT-2). They are built from the `tokenizers` library's parts, configured as in the published CLIP tokenizers.

Reading a tokenizer's files: every fault in them ends as a CheckpointError of one sentence.

A small CLIP-style vocabulary for a model with few words, and the files it is kept in.

CLIP's tokenizer: text to token ids by byte-pair encoding, from a vocabulary of any size.

Equal, id for id, to transformers' `CLIPTokenizer` with two deliberate differences:

- the words `<|startoftext|>` and `<|endoftext|>` in a text are read as text, letter by letter. transformers reads them
  as the special tokens themselves, so that a prompt can end itself;
- a lone surrogate is read as U+FFFD. transformers raises a TypeError.

One oddity of transformers is kept: where the padding token is an ordinary character (Stable Diffusion 2.x pads with
"!"), that character in a text gets the padding token's id (0, where "!" as a word has 256): diffusers draws so.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ..errors import CheckpointError
from ..files import read_bytes

END_OF_WORD = "</w>"  # marks a word's last symbol, so that "cat" in "cats" and the word "cat" are different tokens
BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"

# English endings, runs of letters, single digits, runs of everything else but white space. The special tokens' spelling
# stays one piece here, as in the published tokenizers; ByteLevel below takes it apart.
_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@lru_cache(maxsize=1)
def byte_symbols() -> dict[str, int]:
    """The printable character that stands for each byte, to that byte; in the order of CLIP's vocabulary.

    First the bytes that are printable in Latin-1, as themselves; then the other 68, as U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def normalizer() -> normalizers.Normalizer:
    """Unicode NFC, white space collapsed to one space, lower case."""
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Normalised text to words in byte symbols; white space is dropped."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def split_words(text: str) -> list[str]:
    """The words of a text in byte symbols: `split_words("A fox's")` is `["a", "fox", "'s"]`."""
    return [word for word, _ in pre_tokenizer().pre_tokenize_str(normalizer().normalize_str(text))]


def without_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates, which UTF-8 can't hold, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# --- files


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
        return parse_merges(read_bytes(path, MAX_BYTES, "a CLIP vocabulary").decode(), str(path))
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
        return json.loads(read_bytes(path, MAX_BYTES, "a CLIP vocabulary"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error


# --- vocabulary


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


# --- tokenizer


MAX_LENGTH = 77  # tokens the published CLIP text encoders take at once, BOS and EOS included


class Tokenizer:
    """Text to token ids and back. Safe to share between threads; never changed after it is made.

    Args:
        vocab: token to id, as in `vocab.json`.
        merges: pairs "left right" in order of priority, as the lines of `merges.txt`.
        bos_token, eos_token: begin and end every chunk that the text encoder sees.
        pad_token: fills a chunk after EOS; EOS itself if None (Stable Diffusion 1.x; 2.x has "!").
        unk_token: what a character outside the vocabulary becomes; EOS if None.
        max_length: tokens of a chunk, BOS and EOS included.
        source: the name of the file or folder it came from, for messages.

    Raises CheckpointError where the merges or the special tokens don't fit the vocabulary.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[str],
        *,
        bos_token: str = BOS_TOKEN,
        eos_token: str = EOS_TOKEN,
        pad_token: str | None = None,
        unk_token: str | None = None,
        max_length: int = MAX_LENGTH,
        source: str = "the tokenizer's vocabulary",
    ) -> None:
        self.bos_token, self.eos_token = bos_token, eos_token
        self.pad_token = eos_token if pad_token is None else pad_token
        self.unk_token = eos_token if unk_token is None else unk_token
        for token in (self.bos_token, self.eos_token, self.pad_token, self.unk_token):
            if token not in vocab:
                raise CheckpointError(f"{source} has no token {token!r}, which its tokenizer needs")
        if max_length < 3:
            raise CheckpointError(f"{source} allows {max_length} tokens at once; a text encoder takes 3 or more")
        self.max_length = max_length
        self._merges = tuple(merges)
        self._backend = _backend(vocab, self._merges, self.unk_token, source)
        if self.pad_token in byte_symbols():
            self._backend.add_special_tokens([AddedToken(self.pad_token, normalized=False, special=True)])
        self._ids = dict(vocab)
        self._tokens = {i: token for token, i in vocab.items()}

    @classmethod
    def default(cls, pad_token: str = EOS_TOKEN) -> Tokenizer:
        """OpenAI CLIP's 49,408 tokens, shipped with the package: for single-file checkpoints, which carry none."""
        return _default(pad_token)

    @classmethod
    def from_files(
        cls,
        vocab: str | Path,
        merges: str | Path,
        *,
        bos_token: str = BOS_TOKEN,
        eos_token: str = EOS_TOKEN,
        pad_token: str | None = None,
        unk_token: str | None = None,
        max_length: int = MAX_LENGTH,
    ) -> Tokenizer:
        """From the paths of a `vocab.json` and a `merges.txt`. Raises CheckpointError where they are broken."""
        return cls(
            read_vocab(Path(vocab)),
            read_merges(Path(merges)),
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            max_length=max_length,
            source=str(vocab),
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From the `tokenizer` folder of a diffusers model, with its special tokens and length.

        Reads `tokenizer.json` (what transformers 5 saves) or `vocab.json` and `merges.txt` (what all others ship), then
        `tokenizer_config.json` and `special_tokens_map.json` if they are there. Raises CheckpointError.
        """
        found = read_folder(Path(folder))
        return cls(
            found.vocab,
            found.merges,
            bos_token=found.special.get("bos_token", BOS_TOKEN),
            eos_token=found.special.get("eos_token", EOS_TOKEN),
            pad_token=found.special.get("pad_token", EOS_TOKEN),
            unk_token=found.special.get("unk_token", EOS_TOKEN),
            max_length=found.max_length or MAX_LENGTH,
            source=str(folder),
        )

    def save(self, folder: str | Path) -> None:
        """Write the `tokenizer` folder of a diffusers model."""
        write_vocabulary(
            folder,
            self._ids,
            self._merges,
            self.max_length,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            pad_token=self.pad_token,
            unk_token=self.unk_token,
        )

    @property
    def vocab(self) -> Mapping[str, int]:
        """Token to id. Don't change it."""
        return self._ids

    @property
    def merges(self) -> tuple[str, ...]:
        """The merges "left right", most important first."""
        return self._merges

    @property
    def vocab_size(self) -> int:
        """Rows a token embedding needs: the largest id plus one."""
        return max(self._tokens) + 1

    @property
    def bos_id(self) -> int:
        """The id that begins a chunk."""
        return self._ids[self.bos_token]

    @property
    def eos_id(self) -> int:
        """The id that ends a chunk."""
        return self._ids[self.eos_token]

    @property
    def pad_id(self) -> int:
        """The id that fills a chunk after EOS."""
        return self._ids[self.pad_token]

    @property
    def comma_id(self) -> int | None:
        """The id of a comma that stands alone, or None in a vocabulary without one."""
        return self._ids.get("," + END_OF_WORD)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text of any length, without BOS, EOS or padding."""
        return list(self._backend.encode(without_surrogates(text), add_special_tokens=False).ids)

    def token(self, id: int) -> str:
        """A token as the vocabulary spells it. Raises KeyError for an id that is none."""
        return self._tokens[id]

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as the vocabulary spells them: `["a</w>", "photo</w>"]`.

        Letters outside ASCII appear as the symbols of their UTF-8 bytes ("é" is "Ã©").
        """
        return [self._tokens[i] for i in self.encode(text)]

    def padded(self, text: str) -> list[int]:
        """`max_length` ids: BOS, the text cut to what fits, EOS, padding. What training shows the text encoder."""
        ids = self.encode(text)[: self.max_length - 2]
        return [self.bos_id, *ids, self.eos_id, *[self.pad_id] * (self.max_length - 2 - len(ids))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, lower-cased and spaced as the tokens have it; BOS, EOS and padding are left out.

        Raises ValueError for an id outside the vocabulary.
        """
        listed = [int(i) for i in ids]
        while self.eos_id in listed and listed[-1] == self.pad_id != self.eos_id:
            listed.pop()
        unknown = next((i for i in listed if i not in self._tokens), None)
        if unknown is not None:
            raise ValueError(f"token id {unknown} is not in a vocabulary of {self.vocab_size}")
        spelled = "".join(self._tokens[i] for i in listed if i not in (self.bos_id, self.eos_id))
        values = byte_symbols()
        words = []
        for word in spelled.split(END_OF_WORD):
            raw = b"".join(bytes([values[c]]) if c in values else c.encode() for c in word)
            words.append(raw.decode("utf-8", "replace"))
        return " ".join(words).strip()


@lru_cache(maxsize=4)
def _default(pad_token: str) -> Tokenizer:
    data = resources.files("darkroom.prompts").joinpath("data", "clip_merges.txt.gz").read_bytes()
    merges = parse_merges(gzip.decompress(data).decode(), "the built-in merges")
    return Tokenizer(vocabulary_of(merges), merges, pad_token=pad_token)


def _backend(vocab: Mapping[str, int], merges: Sequence[str], unk_token: str, source: str) -> Backend:
    pairs = [(left, right) for left, _, right in (m.partition(" ") for m in merges)]
    try:
        model = BPE(
            vocab=dict(vocab),
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
            fuse_unk=False,
            unk_token=unk_token,
        )
    except Exception as error:  # the library raises a bare Exception
        bad = next((p for p in pairs if not {p[0], p[1], p[0] + p[1]} <= vocab.keys()), None)
        why = f"merges {bad[0]!r} and {bad[1]!r}, but the vocabulary lacks one of them or the result" if bad else error
        raise CheckpointError(f"{source}: {why}") from error
    backend = Backend(model)
    # Neither truncation nor padding is ever set here: changing them while another thread encodes raises
    # "Already borrowed".
    backend.normalizer = normalizer()
    backend.pre_tokenizer = pre_tokenizer()
    return backend
