"""`darkroom evaluate`: a table, or JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]  # see conftest.py


def test_scores_of_a_model(command: Command, model: Path) -> None:
    answer = command("evaluate", model, "-n", 2, "--steps", 1, "--guidance", 1, "--json")
    assert (answer.code, answer.err) == (0, "")
    scores = answer.json
    assert scores["pictures_a_category"] == 2
    assert scores["autoencoder_psnr"] > 0
    assert set(scores["categories"]) == {"single", "count", "relation"}
    for rows in scores["categories"].values():
        assert set(rows) == {"seen", "held out", "renders", "reconstructions", "chance"}
        assert rows["renders"]["right"] >= 0.5
        assert rows["seen"]["right"] == 0  # a model of random weights draws no fox


def test_scores_as_a_table() -> None:
    from darkroom.cli.evaluate import as_text

    score = {"background": 1.0, "objects": 0.5, "layout": 0.25, "right": 0.125}
    text = as_text({"autoencoder_psnr": 30.5, "pictures_a_category": 8, "categories": {"single": {"seen": score}}})
    assert [line.split() for line in text.splitlines()] == [
        ["background", "objects", "layout", "right"],
        ["single", "seen", "100.0%", "50.0%", "25.0%", "12.5%"],
        [],
        ["8", "pictures", "a", "row;", "the", "autoencoder", "reconstructs", "with", "30.50", "dB", "PSNR"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--guidance", "nan"], "--guidance is nan"),
        (["--sampler", "eulr"], "eulr"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, model: Path) -> None:
    answer = command("evaluate", *([model] if arguments[0].startswith("-") else []), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
