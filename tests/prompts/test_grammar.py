"""The three grammars: examples, plain re-statements of the rules, and prompts made to hurt."""

import contextlib
import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from darkroom.errors import RequestError
from darkroom.prompts.grammar import Span, parse

BRACKETS = st.text(alphabet="ab (()):[]\\.1+5:", max_size=30)


def pairs(text, style="a1111"):
    return [(span.text, pytest.approx(span.weight)) for span in parse(text, style)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1)]),
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("a [cat] x", [("a ", 1), ("cat", 1 / 1.1), (" x", 1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("(cat: +.5 )", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1)]),
        ("((cat))", [("cat", 1.21)]),
        ("(a (b:2) [c]:3)", [("a ", 3), ("b", 6), (" ", 3), ("c", 3 / 1.1)]),
        ("([a)b]", [("a", 1), ("b", 1 / 1.1)]),
        ("a ((b c", [("a ", 1), ("b c", 1.21)]),
        ("a [b (c", [("a ", 1), ("b ", 1 / 1.1), ("c", 1)]),
        ("a) b] c:1.3) d", [("a) b] c:1.3) d", 1)]),
        (r"a \(b\) \[c\] \\ d\e", [("a (b) [c] \\ de", 1)]),
        (r"(a\)b:1.5)", [("a)b", 1.5)]),
        ("a \\", [("a ", 1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("[from:to:0.5]", [("from:to:0.5", 1 / 1.1)]),
        ("(a:1e999)", [("a:1e999", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(see: ...)", [("see: ...", 1.1)]),
        ("(a:1.5)(b:1.5)", [("ab", 1.5)]),
        ("()", [("", 1)]),
        ("(a\nb:1.2)", [("a\nb", 1.2)]),
    ],
)
def test_a1111(text, expected):
    assert pairs(text) == expected


def test_break_starts_a_chunk():
    assert parse("a BREAK b") == (Span("a"), Span("b", new_chunk=True))
    assert parse(" a \n BREAK\tBREAK b ") == (Span(" a"), Span("", new_chunk=True), Span("b ", new_chunk=True))
    assert parse("(a BREAK b:2)") == (Span("a", 2.0), Span("b", 2.0, new_chunk=True))
    assert parse("BREAKFAST break aBREAK") == (Span("BREAKFAST break aBREAK"),)
    for style in ("comfy", "plain"):
        assert [span.text for span in parse("a BREAK b", style)] == ["a BREAK b"]
    with pytest.raises(RequestError, match="5,000 BREAKs"):
        parse("BREAK " * 5000)


def a1111_restated(text):
    """Read left to right; a closing bracket multiplies all since its opening one. Time grows with the square."""
    out, rounds, squares, i = [], [], [], 0

    def multiply(start, factor):
        for entry in out[start:]:
            entry[1] *= factor

    while i < len(text):
        number = re.compile(r":\s*([+-]?[.\d]+)\s*\)").match(text, i)
        if text[i] == "\\":
            known = text[i + 1 : i + 2] in tuple("\\()[]")
            out.append([text[i + 1] if known else "", 1.0])
            i += 2 if known else 1
            continue
        if number and rounds and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", number[1]):
            multiply(rounds.pop(), float(number[1]))
            i = number.end()
            continue
        if text[i] == "(":
            rounds.append(len(out))
        elif text[i] == "[":
            squares.append(len(out))
        elif text[i] == ")" and rounds:
            multiply(rounds.pop(), 1.1)
        elif text[i] == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            out.append([text[i], 1.0])
        i += 1
    for start in rounds:
        multiply(start, 1.1)
    for start in squares:
        multiply(start, 1 / 1.1)
    return [(character, weight) for character, weight in out if character]


@settings(max_examples=500)
@given(BRACKETS)
@example("(a:1.1.1)[(b:5)c)")
@example("([a)(b:2]c:3)")
def test_a1111_equals_the_rules_read_letter_by_letter(text):
    expected = a1111_restated(text)
    if any(abs(weight) > 1000 for _, weight in expected):
        return
    spans = parse(text)
    assert [(c, span.weight) for span in spans for c in span.text] == expected
    assert all(a.weight != b.weight for a, b in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1)]),
        ("a (cat) x", [("a ", 1), ("cat", 1.1), (" x", 1)]),
        ("((cat))", [("cat", 1.21)]),
        ("((cat:1.5))", [("cat", 1.5)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 2), (" c", 3)]),
        ("(a ((b)) c:3)", [("a ", 3), ("b", 3 * 1.21), (" c", 3)]),
        ("(cat: 1.3 )", [("cat", 1.3)]),
        ("(cat:1e-1)", [("cat", 0.1)]),
        ("(cat:big)", [("cat:big", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("[cat] a:1.3", [("[cat] a:1.3", 1)]),
        (r"a \(b:1.3\) c", [("a (b:1.3) c", 1)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        (r"a\b \\ [c\]", [(r"a\b \\ [c\]", 1)]),
        ("a (b c", [("a ", 1), ("(b c", 1)]),
        ("a) (b:2) (c:2)", [("a) (b:2) (c:2)", 1)]),
        ("()", [("", 1)]),
    ],
)
def test_comfy(text, expected):
    assert pairs(text, "comfy") == expected


def comfy_restated(text, weight=1.0):
    """Split at the outermost brackets, read what is inside of each in the same way. Time grows with the square."""
    parts, part, depth = [], "", 0
    for c in text:
        if c == "<" and depth == 0:
            parts.append(part)
            part = ""
        part += c
        if c in "<>":
            depth += 1 if c == "<" else -1
        if c == ">" and depth == 0:
            parts.append(part)
            part = ""
    out = []
    for item in [*parts, part]:
        if len(item) > 1 and item[0] == "<" and item[-1] == ">":
            inside, of_inside = item[1:-1], weight * 1.1
            before, _, number = inside.rpartition(":")
            if before:
                with contextlib.suppress(ValueError):
                    of_inside = float(number)
                    inside = before
            out += comfy_restated(inside, of_inside)
        elif item:
            out.append((item.translate({1: "(", 2: ")", ord("<"): "(", ord(">"): ")"}), weight))
    return out


@settings(max_examples=700)
@given(BRACKETS)
@example("(a (b:1.5)")
@example("(a (b)")
@example(")a)((b:1.5) c)(d)")
@example("((a) (b:5)")
@example("(()a:1(")
def test_comfy_equals_the_rules_read_recursively(text):
    marked = text.replace(r"\(", "\1").replace(r"\)", "\2").replace("(", "<").replace(")", ">")
    expected = comfy_restated(marked)
    if any(abs(weight) > 1000 for _, weight in expected):
        return
    try:
        spans = parse(text, "comfy")
    except RequestError:
        assert re.search(r":\s*[+-]?[\d.+]{4,}", text)  # a number too large, on a text that may be empty
        return
    assert [(span.text, span.weight) for span in spans] == (expected or [("", 1.0)])


def test_plain_has_no_grammar():
    text = r"((a:1.3)) [b] \( BREAK (c"
    assert parse(text, "plain") == (Span(text),)


@pytest.mark.parametrize("style", ["a1111", "comfy", "plain"])
@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "(" * 10_000 + "a" + ")" * 10_000,
        "[" * 10_000 + "a" + "]" * 10_000,
        ")" * 16_000 + "(" * 16_000,
        "(a" * 16_000,
        "(a" * 8_000 + ")a" * 8_000,
        "(a:1.1)" * 4_500,
        "(" * 5_000 + "a" + ":1.1)" * 5_000,
        "(a" * 10_000 + ")" * 5_000,
        "(a:" + "1" * 31_000,
        "(a:" + " " * 31_000,
        " " * 32_000,
        ":" * 32_000,
        "\\" * 32_000,
        "\\(" * 16_000,
        "a\0\u202e\ud800<|endoftext|>" * 1_000,
    ],
    ids=lambda text: f"{text[:4]!r}",
)
def test_hostile_prompts_are_read(text, style):
    """Also a test of speed: with time growing as the square or a recursion, these would not come back."""
    spans = parse(text, style)
    assert all(abs(span.weight) <= 1000 for span in spans)


def test_ten_thousand_brackets_weigh_at_most_a_thousand():
    assert parse("(" * 10_000 + "a")[0].weight == 1000
    assert 0 <= parse("[" * 10_000 + "a")[0].weight < 1e-300
    assert parse("(" * 10_000 + "a" + ")" * 10_000, "comfy")[0].weight == pytest.approx(1000)
    assert [s.weight for s in parse("(" * 10_000 + "(a:0)b")] == [0, 1000]


@pytest.mark.parametrize(
    ("text", "style", "says"),
    [
        ("a" * 32_001, "a1111", "32,001 characters"),
        ("a" * 32_001, "plain", "32,001 characters"),
        ("a", "invoke", "'invoke' is unknown; choose one of a1111, comfy, plain"),
        (None, "a1111", "not NoneType"),
        (b"a", "plain", "not bytes"),
        ("(a:1001)", "a1111", "weight 1001"),
        ("(a:-5000)", "a1111", "weight -5000"),
        ("(a:" + "9" * 400 + ")", "a1111", "99999..."),
        ("(a:nan)", "comfy", "weight nan"),
        ("(a:1e999)", "comfy", "weight 1e999"),
        ("(a:-Infinity)", "comfy", "weight -Infinity"),
    ],
)
def test_what_is_refused(text, style, says):
    with pytest.raises(RequestError) as caught:
        parse(text, style)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
