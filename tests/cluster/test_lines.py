"""A batch's lines: names, seeds, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.cluster.lines import Line, Refused, read_lines
from darkroom.errors import RequestError


def read(folder: Path, *values: Any) -> tuple[list[Line], list[Refused]]:
    path = folder / "list.jsonl"
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("\n".join(texts), encoding="utf-8")
    return read_lines(str(path))


def test_a_line_s_seed_and_name_are_its_own(tmp_path: Path) -> None:
    fox, owl, named = {"prompt": "a fox"}, {"prompt": "an owl", "steps": 4}, {"prompt": "a fox", "id": "my_fox-1"}
    lines, refused = read(tmp_path, fox, fox, owl, named)
    assert refused == []
    assert len({line.id for line in lines}) == len({line.request["seed"] for line in lines}) == 4
    assert lines[3].id == "my_fox-1"
    again, _ = read(tmp_path, {"prompt": "new"}, named, '{"steps": 4,   "prompt": "an owl"}', fox, "", fox)
    by_id = {line.id: line.request for line in again}
    assert all(by_id[line.id] == line.request for line in lines)  # another place, order and spacing change none


def test_what_a_line_says_of_its_seeds_stays(tmp_path: Path) -> None:
    [line, varied], _ = read(
        tmp_path, {"prompt": "a fox", "seed": 2**64 - 1}, {"prompt": "a fox", "variation_strength": 0.2}
    )
    assert line.request["seed"] == 2**64 - 1
    assert varied.request["variation_seed"] != varied.request["seed"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "give an object"),
        ('{"prompt": "a fox", "steps": 0}', "steps is 0"),
        ('{"prompt": "a fox", "guidance_scale": NaN}', "guidance_scale"),
        ('{"prompt": "a fox", "stps": 4}', "did you mean 'steps'"),
        ('{"steps": 4}', "prompt"),
        ('{"prompt": "a fox", "sampler": "eulr"}', "eulr"),
        ('{"prompt": "a fox", "id": "../x"}', "letters, digits"),
        ('{"prompt": "a fox", "id": ""}', "letters, digits"),
        ('{"prompt": "a fox", "id": 7}', "letters, digits"),
        ('{"prompt": "a fox", "id": "ONE"}', "line 1's already"),
    ],
)
def test_a_line_that_is_no_request_is_told_and_the_others_are_read(tmp_path: Path, line: str, said: str) -> None:
    lines, [refused] = read(tmp_path, {"prompt": "a fox", "id": "one"}, line, {"prompt": "an owl"})
    assert [one.number for one in lines] == [1, 3]
    assert refused.number == 2
    assert said in refused.error


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    for data in (b"", b"\n \n", b'{"prompt": "\xff"}'):
        path.write_bytes(data)
        with pytest.raises(RequestError):
            read_lines(str(path))
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(RequestError):
            read_lines(str(bad))


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_it_is_lines_or_one_sentence(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        read_lines(str(path))
    except RequestError:
        return
