"""Prompts joined by AND."""

import pytest

from darkroom.errors import RequestError
from darkroom.prompts.grammar import parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), ("a dog", 1.0)]),
        ("a cat :1.2 AND a dog", [("a cat", 1.2), ("a dog", 1.0)]),
        ("a cat AND a dog:-0.5", [("a cat", 1.0), ("a dog", -0.5)]),
        ("a AND b : .3  AND c:2.", [("a", 1.0), ("b", 0.3), ("c", 2.0)]),
        ("a\nAND\nb\n:2\n", [("a", 1.0), ("b", 2.0)]),
        ("(a:1.2) AND [b:c:3]", [("(a:1.2)", 1.0), ("[b:c:3]", 1.0)]),
        ("AND", [("", 1.0), ("", 1.0)]),
        ("a,AND,b", [("a,", 1.0), (",b", 1.0)]),
        # not AND
        ("ANDROID and And sAND AND_b", [("ANDROID and And sAND AND_b", 1.0)]),
        (r"this \AND that", [(r"this \AND that", 1.0)]),
        (r"this \\AND that", [("this \\\\", 1.0), ("that", 1.0)]),
        # not a weight
        ("meet at 10:30", [("meet at 10:30", 1.0)]),
        ("a:1e5 AND b:nan", [("a:1e5", 1.0), ("b:nan", 1.0)]),
    ],
)
def test_parts(text, expected):
    assert [(part.text, part.weight) for part in parts(text)] == expected


def test_bad_parts():
    with pytest.raises(RequestError, match="17 parts"):
        parts("a AND " * 16)
    assert len(parts("a AND " * 15)) == 16
    with pytest.raises(RequestError, match=r"weight 100\.5"):
        parts("a :100.5 AND b")
    with pytest.raises(RequestError, match=r"weight -9+\.\.\."):
        parts(f"a :-{'9' * 500} AND b")
