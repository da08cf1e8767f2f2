"""From text to words, as CLIP reads it: normalise, split, write each word in byte symbols.

The three steps in front of CLIP's byte-pair encoding (Radford et al. 2021, section 2.4; the byte symbols are those of
GPT-2). They are built from the `tokenizers` library's parts, configured as in the published CLIP tokenizers.
"""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Regex, normalizers, pre_tokenizers

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
