"""Captions: templates, tags and dropout, the same for the same step."""

from __future__ import annotations

from collections import Counter

import pytest

from darkroom.data.captions import Captions
from darkroom.errors import TrainingError

TAGS = "my cat, red, green, blue, yellow"


def many(captions: Captions, text: str = TAGS, steps: int = 400) -> list[str]:
    return [captions.text(text, 0, step, 7) for step in range(steps)]


def test_by_default_a_caption_stays_as_it_is() -> None:
    assert set(many(Captions())) == {TAGS}
    assert Captions().text("two\n\n  lines \n", 0, 0, 0) == "two lines"
    assert Captions().text("", 0, 0, 0) == ""


def test_the_same_step_and_row_have_the_same_text() -> None:
    captions = Captions(shuffle=True, dropout=0.5, tag_dropout=0.3, template="a {}|b {}")
    assert many(captions) == many(captions)
    assert captions.texts([TAGS, "x"], [1, 0], 5, 3) == [captions.text("x", 3, 5, 1), captions.text(TAGS, 3, 5, 0)]
    assert many(captions) != [captions.text(TAGS, 1, step, 7) for step in range(400)]


def test_dropout_is_as_often_as_said() -> None:
    assert 20 <= many(Captions(dropout=0.1)).count("") <= 62
    assert set(many(Captions(dropout=1.0))) == {""}


def test_tags_are_shuffled_and_dropped_but_the_first_ones() -> None:
    shuffled = many(Captions(shuffle=True, keep=1))
    assert all(t.startswith("my cat, ") and sorted(t.split(", ")) == sorted(TAGS.split(", ")) for t in shuffled)
    assert len(set(shuffled)) == 24
    dropped = many(Captions(tag_dropout=0.5, keep=2))
    assert all(t.startswith("my cat, red") for t in dropped)
    counts = Counter(tag for t in dropped for tag in t.split(", "))
    assert all(150 < counts[tag] < 250 for tag in ("green", "blue", "yellow"))


def test_templates_prefixes_and_lines() -> None:
    assert set(many(Captions(template="a photo of {}|{}, painted", prefix="sks, "), "a dog")) == {
        "sks, a photo of a dog", "sks, a dog, painted",
    }  # fmt: skip
    assert set(many(Captions(lines=True), "one\n\ntwo\nthree\n")) == {"one", "two", "three"}
    assert Captions(template="{0} {} x").text("{}", 0, 0, 0) == "{0} {} x"


def test_all_texts_are_known_ahead_where_they_are_few() -> None:
    captions = Captions(template="a {}|b {}", dropout=0.1, lines=True)
    assert set(captions.all("x\ny") or ()) == {"a x", "b x", "a y", "b y", ""} == set(many(captions, "x\ny"))
    assert Captions(shuffle=True).all(TAGS) is None


@pytest.mark.parametrize(
    ("bad", "part"),
    [({"template": "a photo"}, "template"), ({"dropout": 2.0}, "dropout"), ({"tag_dropout": -1.0}, "tag_dropout"),
     ({"keep": -1}, "keep"), ({"dropout": float("nan")}, "dropout")],
)  # fmt: skip
def test_settings_that_can_t_be_are_told(bad: dict[str, object], part: str) -> None:
    with pytest.raises(TrainingError, match=part):
        Captions(**bad)  # type: ignore[arg-type]
