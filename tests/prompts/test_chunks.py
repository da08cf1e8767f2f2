"""Where prompts are cut, against plain re-statements of the rules of A1111 and ComfyUI."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.prompts.chunks import chunk_prompt
from darkroom.prompts.tokenizer import Tokenizer, build_vocabulary

CLIP = Tokenizer.default()
BOS, EOS, COMMA, CAT = 49406, 49407, 267, 2368


def ids_of(text, style="a1111", tokenizer=CLIP, length=None):
    return [list(chunk.ids) for chunk in chunk_prompt(text, tokenizer, style, length)]


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
def test_short_prompts_are_one_chunk(style):
    for text in ("", "a cat", "cat " * 75):
        assert ids_of(text, style) == [CLIP.padded(text)]


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
def test_76_tokens_are_two_chunks(style):
    assert ids_of("cat " * 76, style) == [CLIP.padded("cat " * 75), CLIP.padded("cat")]
    assert ids_of("cat " * 150, style) == [CLIP.padded("cat " * 75)] * 2


def test_padding_of_stable_diffusion_2():
    (ids,) = ids_of("a cat", tokenizer=Tokenizer.default("!"))
    assert ids == [BOS, 320, CAT, EOS, *[0] * 73]


def lengths(text, style="a1111"):
    return [chunk.tokens for chunk in chunk_prompt(text, CLIP, style)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (55, 20, [56, 20]),  # the comma is the 20th from the end: the tail moves
        (54, 21, [75, 1]),  # the 21st: it doesn't
        (74, 1, [75, 1]),  # the comma ends the chunk
        (75, 1, [75, 2]),  # the comma begins the next chunk
        (55, 19, [75]),  # nothing to cut
    ],
)
def test_comma_near_the_end_of_a_chunk(before, after, expected):
    assert lengths("cat " * before + ", " + "dog " * after) == expected
    assert lengths("cat " * before + ", " + "dog " * after, "plain")[0] == 75


def test_a_comma_that_begins_a_chunk_is_no_place_to_cut():
    assert lengths("cat " * 75 + ", " + "dog " * 75) == [75, 75, 1]


def test_break_pads_and_starts_a_chunk():
    assert ids_of("a cat BREAK a dog") == [CLIP.padded("a cat"), CLIP.padded("a dog")]
    assert ids_of("BREAK a cat") == [CLIP.padded(""), CLIP.padded("a cat")]
    assert ids_of("a cat BREAK") == [CLIP.padded("a cat")]
    assert lengths("cat " * 70 + ", cat cat BREAK dog") == [73, 1]


def test_weights_stand_at_their_tokens():
    (chunk,) = chunk_prompt("a (cat:1.5) [b]", CLIP)
    assert chunk.weights[:5] == pytest.approx((1, 1, 1.5, 1 / 1.1, 1))
    assert set(chunk.weights[5:]) == {1.0}
    assert chunk.weighted
    assert not chunk_prompt("(a cat:1)", CLIP)[0].weighted


def test_comfy_keeps_short_spans_whole():
    text = "cat " * 73 + "(dog dog dog:1.2)"
    assert lengths(text, "comfy") == [73, 3]
    assert lengths("cat " * 73 + "(" + "dog " * 8 + ":1.2)", "comfy") == [75, 6]
    assert lengths(text, "a1111") == [75, 1]


def a1111_restated(tokens, room, comma):
    """`tokens`: (id, weight) or None for BREAK. Rows of (id, weight), before BOS, EOS and padding."""
    rows, row, last_comma = [], [], -1
    for token in tokens:
        if token is None:
            rows.append(row)
            row, last_comma = [], -1
            continue
        if token[0] == comma:
            last_comma = len(row)
        elif len(row) == room and last_comma != -1 and len(row) - last_comma <= 20:
            rows.append(row[: last_comma + 1])
            row, last_comma = row[last_comma + 1 :], -1
        if len(row) == room:
            rows.append(row)
            row, last_comma = [], -1
        row.append(token)
    return [*rows, row] if row or not rows else rows


SMALL = Tokenizer(*build_vocabulary(["a", "b", "c", ","]), max_length=40)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "a", "b", "c", ",", "a", "BREAK"]), max_size=200),
    st.integers(5, 77),
)
def test_a1111_equals_the_rules(words, length):
    tokens = [None if word == "BREAK" else (SMALL.encode(word)[0], 1.0) for word in words]
    rows = a1111_restated(tokens, length - 2, SMALL.comma_id)
    expected = [[SMALL.bos_id, *(i for i, _ in row), SMALL.eos_id] for row in rows]
    assert ids_of(" ".join(words), "a1111", SMALL, length) == [
        [*row, *[SMALL.pad_id] * (length - len(row))] for row in expected
    ]


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
@settings(max_examples=100)
@given(text=st.text(alphabet="ab c,(:1)[", max_size=120), length=st.integers(3, 20))
def test_nothing_is_lost_and_every_row_is_full(style, text, length):
    from darkroom.prompts.grammar import parse

    chunks = chunk_prompt(text, SMALL, style, length)
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) == length
        assert (chunk.ids[0], chunk.ids[chunk.tokens + 1]) == (SMALL.bos_id, SMALL.eos_id)
    kept = [pair for c in chunks for pair in list(zip(c.ids, c.weights, strict=True))[1 : c.tokens + 1]]
    assert kept == [(i, span.weight) for span in parse(text, style) for i in SMALL.encode(span.text)]


def test_a_vocabulary_without_a_comma_is_cut_at_75():
    vocab = {token: i for i, token in enumerate(["a", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    assert [len(row) for row in ids_of("a " * 80, tokenizer=Tokenizer(vocab, []))] == [77, 77]


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
def test_the_longest_prompts_are_chunked(style):
    for unit in ("\U0001d160", "a, ", "(a)", "\U0010ffff"):
        text = unit * (32_000 // len(unit))
        assert sum(lengths(text, style)) == sum(chunk.tokens for chunk in chunk_prompt(text, CLIP, style, 200))
