"""CLIP's tokenizer: text to token ids by byte-pair encoding, from a vocabulary of any size.

Equal, id for id, to transformers' `CLIPTokenizer` with two deliberate differences:

- the words `<|startoftext|>` and `<|endoftext|>` in a text are read as text, letter by letter. transformers reads them
  as the special tokens themselves, so that a prompt can end itself;
- a lone surrogate is read as U+FFFD. transformers raises a TypeError.

One oddity of transformers is kept: where the padding token is an ordinary character (Stable Diffusion 2.x pads with
"!"), that character in a text gets the padding token's id (0, where "!" as a word has 256): diffusers draws so.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ..errors import CheckpointError
from .files import parse_merges, read_folder, read_merges, read_vocab
from .vocabulary import vocabulary_of, write_vocabulary
from .words import BOS_TOKEN, END_OF_WORD, EOS_TOKEN, byte_symbols, normalizer, pre_tokenizer, without_surrogates

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
