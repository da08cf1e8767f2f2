"""What is told of a prompt."""

import json

import pytest
import torch

from darkroom.errors import RequestError
from darkroom.prompts.embeddings import LearnedWord
from darkroom.prompts.explain import explain
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary

TOKENIZER = Tokenizer(*build_vocabulary(["a", "large", "fox", "owl", "hot"]))


def test_all_there_is_to_tell():
    toy = LearnedWord(("toy",), (torch.zeros(2, 8),))
    prompt = "<lora:ink:0.5>a (large:1.2) [fox:owl:0.4] toy AND hotel xyz :-.5"
    told = explain(prompt, TOKENIZER, steps=10, words=[toy])
    assert [(tag.name, tag.scale) for tag in told.loras] == [("ink", 0.5)]
    assert [part.weight for part in told.parts] == [1.0, -0.5]
    first, second = told.parts[0].texts
    assert (first.steps, first.text) == (((1, 4),), "a (large:1.2) fox toy")
    assert (second.steps, second.text) == (((5, 10),), "a (large:1.2) owl toy")
    (chunk,) = first.chunks
    assert [(t.text, t.weight, t.vector) for t in chunk] == [
        ("a", 1, None), ("large", 1.2, None), ("fox", 1, None), ("toy", 1, 1), ("toy", 1, 2)
    ]  # fmt: skip
    assert [t.id for t in chunk] == [*TOKENIZER.encode("a large fox"), None, None]
    assert [(word.name, word.vectors, word.hash) for word in told.embeddings] == [("toy", 2, toy.hash)]
    assert dict(told.split)["xyz"] == ("x", "y", "z")
    assert "xyz" in told.spelled
    assert json.loads(json.dumps(told.to_dict()))["parts"][1]["weight"] == -0.5


def test_alternation_tells_each_text_once():
    (part,) = explain("[fox|owl]", TOKENIZER, steps=5).parts
    assert [(text.text, text.steps) for text in part.texts] == [
        ("fox", ((1, 1), (3, 3), (5, 5))),
        ("owl", ((2, 2), (4, 4))),
    ]
    assert "steps 1, 3, 5 of 5" in str(explain("[fox|owl]", TOKENIZER, steps=5))


def test_styles_and_negative_prompts():
    for style in ("comfy", "plain"):
        (part,) = explain("<lora:x:1> a [fox|owl] AND b", TOKENIZER, style).parts
        assert [text.text for text in part.texts] == ["<lora:x:1> a [fox|owl] AND b"]
    assert len(explain("a AND b", TOKENIZER, negative=True).parts) == 1


@pytest.mark.parametrize(
    "prompt", ["", "a" * 5000, "\x1b[2J\x07\u202e\ud800\0", "a, " * 200, "(" * 500, "[a|b|c]" * 3, "狐 🦊 é"]
)
def test_it_is_readable_and_safe_in_a_terminal(prompt):
    lines = str(explain(prompt, TOKENIZER)).split("\n")
    assert all(len(line) <= 80 and line.isprintable() for line in lines)


def test_bad_prompts():
    with pytest.raises(RequestError, match="32,001"):
        explain("a" * 32_001, TOKENIZER)
    with pytest.raises(RequestError, match="'x' is unknown"):
        explain("a", TOKENIZER, "x")
    with pytest.raises(RequestError, match=r"this model is Stable Diffusion 2\.x"):
        explain("toy", TOKENIZER, words=[LearnedWord(("toy",), (torch.zeros(1, 768),))], widths=(1024,))
