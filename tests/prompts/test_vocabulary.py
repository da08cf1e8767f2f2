"""A vocabulary built from words: every word whole, everything else readable, and transformers agrees."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.prompts.tokenizer import build_vocabulary, byte_symbols, vocabulary_of, write_vocabulary

TEXT = (
    "a large small two three of and to the left right above below on background fox foxes ox box balloon balloons "
    "rocket car hot dog t-shirt white black red orange yellow green blue purple pink gray abc bca cab xabc bcabc aaaa "
    "aaa aa 7 ! !! jalapeño 狐"
)
WORDS = TEXT.split(" ")


def clip_tokenizer(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder))


def test_every_word_is_one_token_for_transformers(tmp_path):
    write_vocabulary(tmp_path, *build_vocabulary(WORDS))
    reference = clip_tokenizer(tmp_path)
    for word in WORDS:
        if word != "t-shirt":
            assert len(reference(word).input_ids) == 3, word
    assert len(reference("t-shirt").input_ids) == 5
    assert reference.model_max_length == 77
    assert reference.pad_token_id == reference.eos_token_id == len(reference) - 1
    assert reference.bos_token_id == len(reference) - 2


def test_layout_of_the_vocabulary():
    vocab, merges = build_vocabulary(["fox", "Fox", "red fox"])
    assert merges == ["f o", "fo x</w>", "r e", "re d</w>"]
    assert sorted(vocab.values()) == list(range(512 + 4 + 2))
    assert list(vocab)[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert (vocab["!"], vocab["!</w>"], vocab["a"]) == (0, 256, 64)
    assert len(set(byte_symbols())) == 256


def test_a_token_made_in_two_ways_has_one_id():
    vocab = vocabulary_of(["a b", "ab c", "b c", "a bc"])
    assert list(vocab.values()) == list(range(512 + 3 + 2))


def test_the_same_words_give_the_same_vocabulary():
    assert build_vocabulary(WORDS) == build_vocabulary(iter(WORDS))
    assert build_vocabulary([]) == (vocabulary_of([]), [])


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=25))
def test_words_made_of_few_letters_stay_whole(words):
    from tokenizers.models import BPE

    vocab, merges = build_vocabulary(words)
    model = BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], end_of_word_suffix="</w>")
    for word in words:
        assert [t.value for t in model.tokenize(word)] == [word + "</w>"]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_files_name_the_pad_token(tmp_path, pad):
    write_vocabulary(tmp_path / "deep" / "tokenizer", *build_vocabulary(["fox"]), max_length=40, pad_token=pad)
    folder = tmp_path / "deep" / "tokenizer"
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == pad
    reference = clip_tokenizer(folder)
    assert reference.pad_token == pad
    assert reference.model_max_length == 40
