"""Scheduled prompts against tables worked by hand, and against hostile ones."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.errors import RequestError
from darkroom.prompts.grammar import MAX_TEXTS, last_step, stages


def table(text, steps=10):
    return [(stage.until, stage.text) for stage in stages(text, steps)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [(10, "a cat")]),
        ("", [(10, "")]),
        # [to:when], [from::when], [from:to:when]; when in steps
        ("a [cat:3]", [(3, "a "), (10, "a cat")]),
        ("a [cat::3]", [(3, "a cat"), (10, "a ")]),
        ("a [cat:dog:3] b", [(3, "a cat b"), (10, "a dog b")]),
        ("a [cat : dog : 3] b", [(3, "a cat  b"), (10, "a  dog  b")]),
        # when as a fraction of the steps, cut to a whole number
        ("[cat:dog:0.5]", [(5, "cat"), (10, "dog")]),
        ("[cat:dog:.25]", [(2, "cat"), (10, "dog")]),
        ("[cat:dog:0.999]", [(9, "cat"), (10, "dog")]),
        ("[cat:dog:1.]", [(10, "cat")]),
        ("[cat:dog:1.0]", [(10, "cat")]),
        ("[cat:dog:1.5]", [(10, "cat")]),
        ("[cat:dog:1]", [(1, "cat"), (10, "dog")]),
        ("[cat:dog:1e0]", [(1, "cat"), (10, "dog")]),
        ("[cat:dog:5.0e-1]", [(5, "cat"), (10, "dog")]),
        ("[cat:dog:+3]", [(3, "cat"), (10, "dog")]),
        # at or outside of the ends
        ("[cat:dog:0]", [(10, "dog")]),
        ("[cat:dog:0.0]", [(10, "dog")]),
        ("[cat:dog:-3]", [(10, "dog")]),
        ("[cat:dog:-0.5]", [(10, "dog")]),
        ("[cat:dog:9]", [(9, "cat"), (10, "dog")]),
        ("[cat:dog:10]", [(10, "cat")]),
        ("[cat:dog:99999999999999999999]", [(10, "cat")]),
        ("[cat:dog:1e999]", [(10, "cat")]),
        # several and nested
        ("[a:b:2][c:d:4]", [(2, "ac"), (4, "bc"), (10, "bd")]),
        ("[a:b:4][c:d:4]", [(4, "ac"), (10, "bd")]),
        ("x[a:[b:c:6]:2]y", [(2, "xay"), (6, "xby"), (10, "xcy")]),
        ("[[a:b:2]:c:6]", [(2, "a"), (6, "b"), (10, "c")]),
        ("[[a:b:8]:c:6]", [(6, "a"), (10, "c")]),
        ("[a:[b|c]:7]", [(7, "a"), (8, "c"), (9, "b"), (10, "c")]),
        ("[a|[b:c:4]]", [(1, "a"), (2, "b"), (3, "a"), (4, "b"), *[(i, "ac"[i % 2 == 0]) for i in range(5, 11)]]),
        # alternation
        ("[a|b]", [(i, "ba"[i % 2]) for i in range(1, 11)]),
        ("[a|b|c]", [(i, "cab"[i % 3]) for i in range(1, 11)]),
        ("[fe|]male", [(i, ["male", "female"][i % 2]) for i in range(1, 11)]),
        ("[fe|||]male", [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")]),
        ("[a|a]", [(10, "a")]),
        # a bar and a colon side by side are neither, in A1111's grammar too
        ("[a|b:2]", [(10, "[a|b:2]")]),
        ("[a|b:1.2]", [(10, "[a|b:1.2]")]),
        ("[a|b:c]", [(10, "[a|b:c]")]),
        ("[a:b|c:3]", [(10, "[a:b|c:3]")]),
        ("[a|(b:1.2)]", [(i, ["(b:1.2)", "a"][i % 2]) for i in range(1, 11)]),
        ("[a:[b|c]:3]", [(3, "a"), *[(i, "bc"[i % 2 == 0]) for i in range(4, 11)]]),
        # the weights' grammar is left alone, and its colons and bars are not ours
        ("(cat:1.3) [dog]", [(10, "(cat:1.3) [dog]")]),
        ("[(cat:1.3):(dog:0.5):4]", [(4, "(cat:1.3)"), (10, "(dog:0.5)")]),
        ("[(a:b:2)]", [(10, "[(a:b:2)]")]),
        ("([a:b:2]:1.2)", [(2, "(a:1.2)"), (10, "(b:1.2)")]),
        ("(a|b) c|d", [(10, "(a|b) c|d")]),
        ("[[[b]]:2]", [(2, ""), (10, "[[b]]")]),
        # not constructs
        ("[::]", [(10, "[::]")]),
        ("[a:b:nan]", [(10, "[a:b:nan]")]),
        ("[a:b:inf]", [(10, "[a:b:inf]")]),
        ("[a:b:]", [(10, "[a:b:]")]),
        ("[a:b:c:2]", [(10, "[a:b:c:2]")]),
        ("[a:b:0x3]", [(10, "[a:b:0x3]")]),
        ("[a:b:[2]]", [(10, "[a:b:[2]]")]),
        ("[a:b:٣]", [(10, "[a:b:٣]")]),
        ("[3]", [(10, "[3]")]),
        # brackets that don't pair
        ("a [cat", [(10, "a [cat")]),
        ("a cat:3]", [(10, "a cat:3]")]),
        ("[(cat:3]", [(10, "[(cat:3]")]),
        ("[cat):3]", [(10, "[cat):3]")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[x ([a:b:4]", [(4, "[x (a"), (10, "[x (b")]),
        # escapes
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
        (r"[a\]:b:3]", [(3, r"a\]"), (10, "b")]),
        (r"[a\|b:3]", [(3, ""), (10, r"a\|b")]),
        (r"[a\\:b:3]", [(3, r"a" + "\\\\"), (10, "b")]),
        ("[:3]", [(10, "")]),
        ("[:b:3]", [(3, ""), (10, "b")]),
        ("[a:b\n: 3 ]", [(3, "a"), (10, "b\n")]),
    ],
)
def test_table(text, expected):
    assert table(text) == expected


def test_the_worked_example_of_a1111():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert table(text, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_one_step():
    assert table("[a:b:1]", 1) == [(1, "a")]
    assert table("[a:b:0.5]", 1) == [(1, "b")]
    assert table("[a|b]", 1) == [(1, "a")]


@pytest.mark.parametrize(("when", "steps", "last"), [("0.29", 100, 28), ("0.3", 10, 3), ("7", 5, 5), ("-1e999", 5, 0)])
def test_when(when, steps, last):
    assert last_step(when, steps) == last


def by_hand(node, step, steps):
    """A tree of tuples, written and rendered plainly."""
    if isinstance(node, str):
        return node, node
    kind, *fields = node
    if kind == "all":
        written, shown = zip(*(by_hand(f, step, steps) for f in fields), strict=True)
        return "".join(written), "".join(shown)
    if kind == "edit":
        (a, before), (b, after) = (by_hand(f, step, steps) for f in fields[:2])
        return f"[{a}:{b}:{fields[2]}]", before if step <= min(fields[2], steps) else after
    texts = [by_hand(f, step, steps) for f in fields[0]]
    return f"[{'|'.join(w for w, _ in texts)}]", texts[(step - 1) % len(texts)][1]


leaves = st.sampled_from(["a", "bb ", "(c:1.2)", "", "[d]", r"\]"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(st.just("all"), inner, inner)
        | st.tuples(st.just("edit"), inner, inner, st.integers(-2, 9))
        | st.tuples(st.just("alternate"), st.lists(inner, min_size=2, max_size=4))
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(trees, st.integers(1, 8))
def test_any_nesting(tree, steps):
    found = table(by_hand(tree, 1, steps)[0], steps)
    assert found[-1][0] == steps
    for step in range(1, steps + 1):
        assert next(text for until, text in found if step <= until) == by_hand(tree, step, steps)[1]


@settings(max_examples=200)
@given(st.text("[]():|\\ab1. "), st.integers(1, 5))
def test_anything_can_be_read(text, steps):
    found = stages(text, steps)
    assert found[-1].until == steps
    assert all(a.until < b.until and a.text != b.text for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[" * 10_000, 1),
        ("]" * 10_000, 1),
        ("(" * 5_000 + "a" + ")" * 5_000, 1),
        ("[(" * 10_000, 1),
        ("[" * 6_000 + "a" + ":3]" * 6_000, 2),
        ("[x:" * 5_000 + "y" + ":3]" * 5_000, 2),
        ("[a|" * 8_000 + "]" * 8_000, 1_000),
        ("[|]" * 10_000, 1),
        ("[::]" * 8_000, 1),
        ("\\" * 32_000, 1),
    ],
)
def test_hostile_prompts_are_read(text, count):
    assert len(stages(text, 1000)) == count


def test_too_many_texts():
    with pytest.raises(RequestError, match=f"more than {MAX_TEXTS} different texts"):
        stages("[a|b|c][a|b|c|d|e][1|2|3|4|5|6|7][x|y|z|w]", 1000)
    assert len({s.text for s in stages("[a|b|c][a|b|c|d|e]", 1000)}) == 15
    with pytest.raises(RequestError, match="320,000 characters"):
        stages("x" * 20_000 + "[1|2|3|4|5|6|7|8|9|a|b|c|d|e|f|g|h]", 30)
