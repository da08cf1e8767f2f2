"""The page's files as they lie in git and go into the wheel, and how the server hands them out. Needs no browser."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from darkroom.serve import static

from .conftest import ROOT, Running

PAGE = ROOT / "src" / "darkroom" / "serve" / "page"
SOURCES = [path for path in (ROOT / "page" / "src").rglob("*") if path.suffix in (".ts", ".tsx")]
MOST = {".js": 45_000, ".css": 12_000}  # bytes of the first load, gzipped
ALL = 400_000  # bytes of the folder


def named() -> list[str]:
    """The files that the page's first load asks for."""
    return re.findall(r'(?:src|href)="\./([^"]+)"', (PAGE / "index.html").read_text())


def test_all_files_are_there_and_named_by_their_hash() -> None:
    found = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert set(named()) <= found
    assert {Path(name).suffix for name in named()} >= {".js", ".css"}
    assert all(re.fullmatch(r"assets/\w+-[\w-]{8}\.(js|css|svg)", name) for name in found - {"index.html"})
    assert set(static.files()) == found  # nothing in it that the server would not hand out
    html = (PAGE / "index.html").read_text()
    assert "<style" not in html
    assert re.findall(r"<script[^>]*>", html) == [tag for tag in re.findall(r"<script[^>]*>", html) if "src=" in tag]


def test_the_first_load_is_small() -> None:
    for kind, most in MOST.items():
        size = sum(len(gzip.compress((PAGE / name).read_bytes(), 9)) for name in named() if name.endswith(kind))
        assert 0 < size <= most
    assert sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file()) < ALL


def test_the_build_goes_into_the_wheel_and_its_sources_into_the_sdist() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"] == {"packages": ["src/darkroom"]}  # with all that git does not ignore
    assert "page" in build["sdist"]["include"]
    if (ROOT / ".git").exists():
        files = [str(path) for path in PAGE.rglob("*") if path.is_file()]
        assert subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True).stdout == b""


def test_the_lock_file_names_no_addresses_and_versions_are_exact() -> None:
    package = json.loads((ROOT / "page" / "package.json").read_text())
    lock = json.loads((ROOT / "page" / "package-lock.json").read_text())
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    assert all("resolved" not in entry for entry in lock["packages"].values())
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)


def test_the_page_makes_no_html_of_texts() -> None:
    """What Trusted Types forbid when the page runs is not written in the first place."""
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc")
    assert len(SOURCES) > 20
    assert [path.name for path in SOURCES if forbidden.search(path.read_text())] == []
    written = [path for path in SOURCES if path.name != "types.ts"]  # that one is made by tools/page_types.py
    assert {path.name: n for path in written if (n := path.read_text().count("\n")) > 250} == {}


def test_the_server_hands_it_out_packed_and_for_good(fake: Running) -> None:
    page = fake.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["content-encoding"] == "gzip"
    assert page.content == (PAGE / "index.html").read_bytes()
    assert fake.client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    policy = page.headers["content-security-policy"]
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    for name in named():
        plain = fake.client.get(f"/{name}", headers={"accept-encoding": "identity"})
        packed = fake.client.get(f"/{name}")
        assert plain.content == packed.content == (PAGE / name).read_bytes()
        assert "content-encoding" not in plain.headers
        assert packed.headers["vary"] == "Accept-Encoding"
        assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
    for name in ("nothing.js", "..%2Findex.html", "%2e%2e/guard.py"):
        assert fake.client.get(f"/assets/{name}").status_code == 404


def test_a_server_without_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    app.include_router(static.router)
    monkeypatch.setattr(static, "PAGE", tmp_path / "nothing")
    answer = TestClient(app).get("/")
    assert answer.status_code == 404
    assert answer.text == static.MISSING
