"""Who may use a server, from where, and how much: keys, hosts, origins, limits. Against the fake engine."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkroom.serve import guard
from darkroom.serve.keys import KeyFileError, add_key, hash_of, read_keys, remove_key

from .conftest import FAKE, Running
from .test_own import png, text


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, str]]]:
    """A server with keys: alice, bob and an admin."""
    folder = tmp_path_factory.mktemp("locked")
    file = folder / "keys"
    keys = {name: add_key(file, name, {}, admin=name == "root") for name in ("alice", "bob", "root")}
    options = {"engine_command": [sys.executable, str(FAKE)], "keys": str(file)}
    server = Running(folder / "data", options, {}).ready()
    yield server, keys
    server.stop()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- the file of keys


def test_a_file_of_keys_holds_hashes_alone_and_is_nobody_else_s(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = add_key(file, "alice", {"cost": 5, "requests-per-minute": 60}, admin=False)
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    owner = read_keys(file)[hash_of(key)]
    assert (owner.name, owner.cost, owner.requests_per_minute, owner.admin) == ("alice", 5, 60, False)
    with pytest.raises(KeyFileError, match="already"):
        add_key(file, "alice", {}, admin=False)
    add_key(file, "bob", {}, admin=True)
    remove_key(file, "alice")
    assert [owner.name for owner in read_keys(file).values()] == ["bob"]
    file.write_text("alice nothing\n")
    with pytest.raises(KeyFileError, match="line 1"):
        read_keys(file)


def test_the_command_makes_keys(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "darkroom", "keys"]
    file = ["--file", str(tmp_path / "keys")]
    made = subprocess.run([*run, "add", "alice", "--queue", "3", *file], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("dk-")
    listed = subprocess.run([*run, "list", *file], capture_output=True, text=True, check=True)
    assert listed.stdout == "alice queue=3\n"
    subprocess.run([*run, "remove", "alice", *file], check=True)
    again = subprocess.run([*run, "remove", "alice", *file], capture_output=True, text=True)
    assert again.returncode == 2
    assert "alice" in again.stderr


# --- every route


def test_every_route_is_public_or_needs_a_key(locked: tuple[Running, dict[str, str]]) -> None:
    server, keys = locked
    schema = server.client.get("/openapi.json", headers=bearer(keys["root"])).json()
    walked = 0
    for path, operations in schema["paths"].items():
        for method in operations:
            concrete = path.replace("{", "").replace("}", "")
            answer = server.client.request(method, concrete, headers={"origin": server.url})
            if guard._is_public(concrete):
                continue
            assert answer.status_code == 401, (method, path, answer.status_code)
            walked += 1
    assert walked >= 22
    for path in ("/openapi.json", "/docs", "/api/anything", "/v1/models", "/sdapi/v1/options"):
        assert server.client.get(path).status_code == 401
    public = [p for p in (*guard.PUBLIC, "/assets/x", "/v1/files/images/x") if server.client.get(p).status_code != 401]
    assert len(public) == len(guard.PUBLIC) + 2 == 8
    assert server.client.get("/docs", headers=bearer(keys["root"])).status_code == 404


def test_what_is_another_s_is_not_there(locked: tuple[Running, dict[str, str]]) -> None:
    server, keys = locked
    made = server.client.post("/api/jobs", json={"prompt": "a fox"}, headers=bearer(keys["alice"])).json()
    id = made["id"]
    server.until(lambda: server.client.get(f"/api/jobs/{id}", headers=bearer(keys["alice"])).json()["images"])
    image = f"{id}-0"
    for method, path in (
        ("GET", f"/api/jobs/{id}"),
        ("DELETE", f"/api/jobs/{id}"),
        ("POST", f"/api/jobs/{id}/rerun"),
        ("GET", f"/api/jobs/{id}/events"),
        ("GET", f"/api/images/{image}"),
        ("GET", f"/api/images/{image}/file"),
        ("GET", f"/api/images/{image}/thumb"),
        ("DELETE", f"/api/images/{image}"),
    ):
        assert server.client.request(method, path, headers=bearer(keys["bob"])).status_code == 404, path
        if method == "GET" and "events" not in path:
            assert server.client.get(path, headers=bearer(keys["root"])).status_code == 200
    assert server.client.patch(f"/api/images/{image}", json={}, headers=bearer(keys["bob"])).status_code == 404
    assert server.client.get("/api/images", headers=bearer(keys["bob"])).json()["images"] == []
    mine = server.client.post("/api/jobs", json={"prompt": "a", "image": text(png())}, headers=bearer(keys["alice"]))
    assert mine.status_code == 202
    name = "input:" + hashlib.sha256(png()).hexdigest()
    assert (
        server.client.post("/api/jobs", json={"prompt": "a", "image": name}, headers=bearer(keys["alice"])).status_code
        == 202
    )
    theirs = server.client.post("/api/jobs", json={"prompt": "a", "image": name}, headers=bearer(keys["bob"]))
    assert theirs.status_code == 422
    assert "no input" in theirs.json()["detail"]


def test_keys_come_in_three_ways_and_nothing_is_no_key(locked: tuple[Running, dict[str, str]]) -> None:
    server, keys = locked
    basic = base64.b64encode(f"anybody:{keys['alice']}".encode()).decode()
    for headers in (bearer(keys["alice"]), {"authorization": f"Basic {basic}"}, {"x-api-key": keys["alice"]}):
        assert server.client.get("/api/jobs", headers=headers).status_code == 200
    for value in ("", "Bearer", "Bearer wrong", "Basic !!", "Basic " + base64.b64encode(b"x").decode(), "Bearer \xff"):
        answer = server.client.get("/api/jobs", headers={"authorization": value.encode("latin-1")})
        assert answer.status_code == 401
        assert "www-authenticate" in answer.headers


def test_a_cookie_stands_for_a_key_and_must_say_where_it_is_from(locked: tuple[Running, dict[str, str]]) -> None:
    server, keys = locked
    with httpx.Client(base_url=server.url) as browser:
        assert browser.post("/api/session", json={"key": "wrong"}).status_code == 401
        answer = browser.post("/api/session", json={"key": keys["alice"]})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert browser.get("/api/jobs").status_code == 200
        assert browser.post("/api/jobs", json={"prompt": "a"}).status_code == 403
        assert browser.post("/api/jobs", json={"prompt": "a"}, headers={"origin": server.url}).status_code == 202
        name, value = next(iter(browser.cookies.items()))
        browser.cookies.set(name, value.replace("alice", "root"))
        forged = httpx.get(f"{server.url}/api/jobs", cookies={name: value.replace("alice", "root", 1)})
        assert forged.status_code == 401


# --- hosts and origins


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "192.168.1.7"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:80"}, 421),
        ({"host": ""}, 421),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:1", "host": "localhost:1"}, 200),
        ({"origin": "http://localhost:1", "host": "localhost:2"}, 403),
    ],
)
def test_names_and_origins_must_be_ours(fake: Running, headers: dict[str, str], status: int) -> None:
    assert fake.client.get("/api/jobs", headers=headers).status_code == status
    assert fake.client.get("/healthz", headers={k: v for k, v in headers.items() if k == "host"}).status_code == 200


def test_a_page_of_another_site_changes_nothing(fake: Running) -> None:
    answer = fake.client.post("/api/jobs", json={"prompt": "a"}, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


def test_answers_carry_what_keeps_browsers_safe(fake: Running) -> None:
    answer = fake.client.get("/api/server", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert fake.client.get("/api/server", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_a_public_address_is_ours_with_its_path(serve: Callable[..., Running]) -> None:
    server = serve(public_url="https://pictures.example/darkroom/")
    headers = {"host": "pictures.example", "origin": "https://pictures.example"}
    assert server.client.post("/darkroom/api/jobs", json={"prompt": "a"}, headers=headers).status_code == 202
    assert server.client.get("/api/jobs", headers=headers).status_code == 200
    assert server.client.get("/other/api/jobs", headers=headers).status_code == 404


def test_an_origin_that_is_allowed_may_ask(serve: Callable[..., Running]) -> None:
    server = serve(cors=["https://pictures.example"])
    headers = {"origin": "https://pictures.example", "access-control-request-method": "POST"}
    answer = server.client.options("/api/jobs", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://pictures.example"
    asked = server.client.post("/api/jobs", json={"prompt": "a"}, headers=headers | {"sec-fetch-site": "cross-site"})
    assert asked.status_code == 202


# --- limits


def test_a_body_beyond_the_limit_is_read_and_refused(fake: Running) -> None:
    answer = fake.client.post("/api/jobs", content=b"x" * (3 * 2**20))
    assert answer.status_code == 413
    assert fake.client.get("/healthz").status_code == 200


def test_each_limit_of_a_key_is_told_with_when_to_come_back(tmp_path: Path, serve: Callable[..., Running]) -> None:
    file = tmp_path / "keys"
    few = add_key(file, "few", {"queue": 2}, admin=False)
    cheap = add_key(file, "cheap", {"cost": 0.2}, admin=False)
    rare = add_key(file, "rare", {"requests-per-minute": 2}, admin=False)
    server = serve(keys=str(file), environment={"FAKE_TICK": "0.05"})

    def post(key: str, **fields: Any) -> httpx.Response:
        return server.client.post("/api/jobs", json={"prompt": "a, slow", "steps": 40} | fields, headers=bearer(key))

    assert [post(few).status_code for _ in range(3)] == [202, 202, 429]
    answers = [post(cheap) for _ in range(3)]
    assert 429 in [answer.status_code for answer in answers]
    assert all(1 <= int(a.headers["retry-after"]) <= 120 for a in answers if a.status_code == 429)
    assert [server.client.get("/api/jobs", headers=bearer(rare)).status_code for _ in range(3)] == [200, 200, 429]
    late = add_key(file, "late", {}, admin=False)
    server.until(lambda: server.client.get("/api/jobs", headers=bearer(late)).status_code == 200)
    remove_key(file, "late")
    server.until(lambda: server.client.get("/api/jobs", headers=bearer(late)).status_code == 401)


def test_the_whole_queue_has_an_end(serve: Callable[..., Running]) -> None:
    server = serve(max_queue=2, environment={"FAKE_TICK": "0.05"})
    codes = [server.client.post("/api/jobs", json={"prompt": "a, slow", "steps": 50}).status_code for _ in range(3)]
    assert codes == [202, 202, 429]


def test_malformed_http_hurts_nobody(fake: Running) -> None:
    for raw in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 1000,
        b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary="
        + b"x" * 9000
        + b"\r\nContent-Length: 2\r\n\r\nxx",
    ):
        with socket.create_connection(("127.0.0.1", fake.port), timeout=10) as connection:
            connection.settimeout(2)
            try:
                connection.sendall(raw)
                answer = connection.recv(1000)
            except OSError:
                continue
            assert not answer or b" 4" in answer[:20], answer[:200]
    assert fake.client.get("/healthz").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "prompt", "n", "num_images", "seed", "width", "steps", "guidance_scale", "guidance", "image", "mask", "controls",
    "loras", "hires", "upscale", "model", "inpaint", "noise", "tiling", "speed", "sizes", "sampler", "outpaint",
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_no_json_makes_it_stumble(fake: Running, body: dict[str, Any]) -> None:
    answer = fake.client.post("/api/jobs", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (202, 413, 422, 429), (answer.status_code, answer.text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8L", png()[:40], png()[:60]]),
)
def test_no_bytes_make_it_stumble(fake: Running, data: bytes, start: bytes) -> None:
    for path in ("/api/images/import", "/api/inputs/" + "0" * 64):
        answer = fake.client.request("PUT" if "inputs" in path else "POST", path, content=start + data)
        assert answer.status_code in (200, 422), (answer.status_code, answer.text)
