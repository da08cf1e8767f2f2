"""What is told of a prompt that a model won't read as it was meant, and that ordinary prompts are told nothing of."""

from __future__ import annotations

import random

import pytest
import torch

from darkroom.embedded import MODEL
from darkroom.formats.checkpoint import open_checkpoint
from darkroom.prompts.embeddings import LearnedWord
from darkroom.prompts.grammar import Prompt
from darkroom.prompts.readable import spelled, unread, whole_words
from darkroom.prompts.tokenizer import Tokenizer
from darkroom.toy.objects import BACKGROUNDS, OBJECTS, RELATIONS, plural, vocabulary, with_article

CLIP = Tokenizer.default()
ORDINARY = [
    "a photograph of an astronaut riding a horse",
    "masterpiece, best quality, 1girl, solo, long hair, looking at viewer, (smile:1.2), [sketch], depth of field",
    "RAW photo, 8k uhd, dslr, soft lighting, high quality, film grain, Fujifilm XT3",
    "cinematic still of a café in Zürich, naïve art, Großstadt, señorita, by Alphonse Mucha and Hans Rüdi Giger",
    "i <3 you, a < b > c, 100%, #art, @someone, f/1.8, 35mm, C++, {curly}, snake_case_name, ___",
    "a [red:blue:0.5] car AND a [cat|dog] :1.2 BREAK in the rain, \\(series\\)",
    "score_9, score_8_up, source_anime, rating_safe, <lora:ink:0.8>",
    "a cat 🐱 ❤️ on a 1980s poster that says “HELLO” — trending on artstation",
    "isometric voxel diorama, xqzptw style, supercalifragilisticexpialidocious",
    "portrait of Daenerys Targaryen, Ukiyo-e, Studio Ghibli, Makoto Shinkai, wlop, greg rutkowski",
]


def told(text: str, tokenizer: Tokenizer = CLIP, style: str = "a1111", **more) -> list[str]:
    return list(unread(Prompt.parse(text, style), tokenizer, **more))


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return open_checkpoint(MODEL).tokenizer()


def test_ordinary_prompts_are_told_nothing_of(embedded: Tokenizer) -> None:
    subjects = ["knight", "fox", "old fisherman", "spaceship", "bowl of ramen", "lighthouse", "gothic cathedral"]
    manners = ["oil on canvas", "low poly", "in the style of Monet", "(bokeh:1.3)", "pixel art", "[fog:sun:0.5]", "4k"]
    prompts = [*ORDINARY, *(f"{with_article(a)}, {b}, highly detailed" for a in subjects for b in manners)]
    chance, nouns = random.Random(1), list(OBJECTS)
    drawn = [
        f"a large {noun} on a {ground} background" for noun, ground in zip(nouns, [*BACKGROUNDS] * 9, strict=False)
    ]
    for _ in range(50):
        a, b, where = chance.choice(nouns), chance.choice(nouns), chance.choice(RELATIONS)
        drawn.append(f"two {plural(a)} {where} {with_article(b)} on a red background")
    assert len(prompts) + len(drawn) > 150
    for prompt in prompts:
        for style in ("a1111", "comfy", "plain"):
            # Another style's tags are text in this one, which is to be told.
            assert style == "a1111" or "<l" in prompt or told(prompt, style=style) == [], prompt
        assert told(prompt) == [], prompt
    assert [sentence for prompt in drawn for sentence in told(prompt, embedded)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <blue-heart> on a table", "'<blue-heart>' in the prompt is no learned word that was given"),
        ("a {red|blue} car", r"'{red|blue}' in the prompt is read as plain text: templates are not filled in"),
        ("a __color__ car, __sub/dir__", "'__color__', '__sub/dir__' in the prompt is read as plain text"),
        ("노란 배경의 여우", "'노란', '배경의', '여우', and reads them byte by byte"),
        ("рыжая лиса", "'рыжая', and reads them byte by byte"),
        ("a fox <lyco:ink:1>", "'<lyco:ink:1>' in the prompt is no learned word"),
        ("黄色い背景の狐", "reads them byte by byte"),
    ],
)
def test_what_is_not_read_is_told(text: str, words: str) -> None:
    (sentence,) = told(text)
    assert words in sentence


def test_a_learned_word_that_is_given_is_read() -> None:
    word = LearnedWord(("<blue-heart>",), (torch.zeros(1, 8),))
    assert told("a <blue-heart> on a table", words=(word,)) == []
    assert len(told("a <blue-heart> and a <cat-toy>", words=(word,))) == 1


def test_words_outside_a_small_vocabulary_are_told_with_near_ones(embedded: Tokenizer) -> None:
    assert set(whole_words(embedded)) >= {word for word in vocabulary() if len(word) > 1}
    assert whole_words(CLIP) == []
    (sentence,) = told("a large dragoon on a violet background", embedded)
    assert "this model doesn't know 'dragoon', 'violet', and draws something else (near: dragon, " in sentence
    assert told("a large dragoon", embedded, taught=True) == []
    (sentence,) = told(" ".join(f"qx{chr(97 + i)}" for i in range(20)), embedded)
    assert "and 15 more" in sentence
    assert len(told("여우", embedded)) == 1


@pytest.mark.parametrize("text", ["{" + "|" * 31_000, "/__" * 10_000, "<" * 31_000, "{a|" * 10_000, "여" * 31_000])
def test_hostile_prompts_take_no_longer_than_others(text: str) -> None:
    assert all(len(sentence) < 1000 for sentence in told(text))


def test_words_that_captions_teach(embedded: Tokenizer) -> None:
    tigers = ["a large tiger on a red background", "a small tiger", "a fox", "a fox and a zyx, a zyx"]
    assert spelled(tigers, embedded) == {"tiger": 2, "and": 1, "zyx": 1}
    assert spelled(["a large fox on a red background"], embedded) == {}
    dogs = ["a photo of zwxqy dog", "zwxqy dog", "an anthropomorphically shaped dog", "a dog"]
    assert spelled(dogs, CLIP) == {"zwxqy": 2}
    assert spelled(dogs[:1], CLIP) == {}
