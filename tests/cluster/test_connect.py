"""Ray's token, and what is wrong with a cluster, without Ray."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from darkroom.cluster.connect import ClusterError, complaints, connected, has_token, make_token
from darkroom.errors import Error


def test_a_token_is_made_once_and_is_its_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert not has_token()
    assert make_token() == path
    text = path.read_text()
    assert len(bytes.fromhex(text)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    make_token()
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert has_token()


def test_a_token_that_can_t_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file" / "token"))
    with pytest.raises(ClusterError, match="can't be written"):
        make_token()


@pytest.mark.parametrize("address", ["", "x", "host", "host:", ":1", "host:0", "host:70000", "127.0.0.2:1"])
def test_an_address_without_ray_is_told_at_once(address: str) -> None:
    before = dict(os.environ)
    try:
        with pytest.raises(Error), connected(address):
            pass
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def test_what_is_wrong_with_machines_is_said() -> None:
    fine: dict[str, Any] = {"darkroom": "1", "ray": "2", "torch": "3", "python": "4", "token": "600", "folder": True}
    fine |= {"time": 100.0}
    assert complaints({"a": fine, "b": dict(fine)}, 99.9, 100.1) == []
    told = complaints(
        {
            "a": fine,
            "b": fine | {"torch": "2", "token": "644"},
            "c": fine | {"time": 160.0, "folder": False},
            "d": RuntimeError("gone"),
        },
        99.9,
        100.1,
    )
    assert [any(word in sentence for sentence in told) for word in ("torch", "chmod", "+60 s", "no such", "gone")] == (
        [True] * 5
    )
    assert len(told) == 5
