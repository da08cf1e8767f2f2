"""What a model will not read of a prompt as it was meant: a sentence for each thing, to be told.

A prompt is never refused for it: all of it is text, and text is drawn. The rules are made to be silent about ordinary
prompts, so they leave out what may be meant (numbers, a name in Latin letters that has many pieces).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ..errors import clip, visible
from .embeddings import Finder, LearnedWord, normal
from .grammar import Prompt
from .tokenizer import END_OF_WORD, Tokenizer

_TEMPLATE = re.compile(r"\{[^{}|]{0,200}\|[^{}]{0,200}\}|(?<!\w)__[\w/*-]{1,60}__(?!\w)")
_CALLED = re.compile(r"<[^<>\s]{1,60}>")  # how learned words are usually called
_WORD = re.compile(r"[^\W\d_]+")
_NAMED = 5  # at most so many words in one sentence
_FEW = 10_000  # tokens: a vocabulary below it is of whole words, as the embedded model's; CLIP's has 49,408
_LEAST = 20  # whole words, of which a vocabulary is said to be


def unread(
    prompt: Prompt, tokenizer: Tokenizer, words: Sequence[LearnedWord] = (), *, taught: bool = False
) -> Iterator[str]:
    """One sentence for each kind of thing in a prompt that is read otherwise than it seems to be meant.

    Args:
        words: learned words that the prompt may call.
        taught: LoRAs or learned words may have taught the model more words than its vocabulary has.
    """
    finder = Finder(words, prompt.style)
    texts = [part.text.replace("BREAK", " ") if prompt.style == "a1111" else part.text for part in prompt.parts]
    text = " ".join(piece for part in texts for piece in finder.split(part) if isinstance(piece, str))
    if called := listed(_CALLED.findall(text)):
        yield (
            f"{called} in the prompt is no learned word that was given, and is read as plain text: "
            f"give its file, or leave it out"
        )
    if templates := listed(_TEMPLATE.findall(text)):
        hint = ", or [red|blue] to change from step to step" if prompt.style == "a1111" else ""
        yield (
            f"{templates} in the prompt is read as plain text: templates are not filled in; "
            f"write one of its words{hint}"
        )
    plain = _TEMPLATE.sub(" ", _CALLED.sub(" ", text))
    found = list(dict.fromkeys(_WORD.findall(normal(plain))))
    known = whole_words(tokenizer)
    if known:
        if not taught and (unknown := [word for word in found if len(tokenizer.tokens(word)) > 1]):
            near = [like for word in unknown[:_NAMED] for like in difflib.get_close_matches(word, known, 1)]
            also = f" (near: {', '.join(dict.fromkeys(near))})" if near else ""
            yield f"this model doesn't know {listed(unknown)}, and draws something else{also}"
    elif spelled := [word for word in found if not word.isascii() and len(tokenizer.tokens(word)) > len(word)]:
        yield (
            f"this model knows no words such as {listed(spelled)}, and reads them byte by byte; "
            f"write the prompt in the language that it was trained on, mostly English"
        )


def spelled(captions: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """The words of training captions that a text encoder has likely not met as they are meant, and in how many captions
    each is: of a model that was taught some words and no others all that it spells in pieces; of any other those in
    half of the captions and more, which are what the pictures have in common, as "sks" is.
    """
    counts = Counter(word for caption in captions for word in set(_WORD.findall(normal(caption))))
    least = 1 if whole_words(tokenizer) else max(len(captions) / 2, 2)
    return {word: n for word, n in counts.items() if n >= least and len(tokenizer.tokens(word)) > 1}


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """The words of a model that was taught some and no others, such as the embedded one; none of any other's."""
    if tokenizer.vocab_size >= _FEW:
        return []
    whole = (token.removesuffix(END_OF_WORD) for token in tokenizer.vocab if token.endswith(END_OF_WORD))
    found = sorted(word for word in whole if len(word) > 1 and word.isalpha())
    return found if len(found) >= _LEAST else []


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them, each once."""
    once = list(dict.fromkeys(words))
    told = ", ".join(repr(visible(clip(word, 40))) for word in once[:_NAMED])
    return told + (f" and {len(once) - _NAMED} more" if len(once) > _NAMED else "")
