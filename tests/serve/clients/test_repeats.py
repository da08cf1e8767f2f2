"""Connections that break after a job was taken in: the unmodified clients ask again, and get that job's picture."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from ..conftest import Running
from .conftest import Client

WAITING = (0.0, 0.1, 0.3)  # seconds after the job is on disk, while it is drawn
HEAD = (0, 1, 12, 100)  # bytes of the answer that arrive
BODY = (0.0, 0.5, 0.999)  # how much of its body does
Part = tuple[str, float]
PLACES: list[Part] = [("after", s) for s in WAITING] + [("bytes", n) for n in HEAD] + [("body", part) for part in BODY]


def jobs(server: Running) -> int:
    with sqlite3.connect(server.data / "darkroom.sqlite") as connection:
        return int(connection.execute("select count(*) from jobs").fetchone()[0])


def read_message(line: socket.socket) -> bytes:
    """A whole request or answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (more := line.recv(65536))
        if not more:
            return data
    head = data.split(b"\r\n\r\n")[0]
    lengths = [int(row.split(b":")[1]) for row in head.lower().split(b"\r\n") if row.startswith(b"content-length:")]
    whole = len(head) + 4 + (lengths[0] if lengths else 0)
    while len(data) < whole:
        data += (more := line.recv(65536))
        if not more:
            break
    return data


class Breaking:
    """A proxy that breaks the connection of each request that was not sent before, at the next of some places."""

    def __init__(self, server: Running, places: list[Part]) -> None:
        self.server, self.places, self.cut = server, list(places), 0
        self.line = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.line.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.line.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.server.port)) as server, suppress(OSError):
            while request := read_message(client):
                first = b"x-stainless-retry-count: 0" in request.lower()
                server.sendall(request)
                if first and self.places:
                    self.cut += 1
                    return self.break_off(*self.places.pop(0), client, server)
                client.sendall(read_message(server))

    def break_off(self, kind: str, place: float, client: socket.socket, server: socket.socket) -> None:
        if kind == "after":
            while jobs(self.server) < self.cut:
                time.sleep(0.01)
            time.sleep(place)
            return
        answer = read_message(server)
        head = answer.index(b"\r\n\r\n") + 4
        client.sendall(answer[: int(place) if kind == "bytes" else head + int(place * (len(answer) - head))])


@contextmanager
def breaking(server: Running, places: list[Part]) -> Iterator[Breaking]:
    proxy = Breaking(server, places)
    try:
        yield proxy
    finally:
        proxy.line.close()


@pytest.mark.parametrize("language", ["python", "node"])
def test_every_picture_comes_and_no_job_is_done_twice(
    serve: Callable[..., Running], python_client: Client, node_client: Client, language: str
) -> None:
    # JavaScript's client takes an answer for there when its head is; what breaks after that it doesn't repeat.
    server, places = serve(), [place for place in PLACES if language == "python" or place[0] != "body"]
    with breaking(server, places) as proxy:
        if language == "python":
            told = python_client("openai_repeat.py", server, "openai", address=proxy.address)
        else:
            told = node_client("openai_repeat.mjs", server, "openai", address=proxy.address)
        assert not proxy.places
    found = server.client.get("/api/images", params={"limit": 50}).json()["images"]
    assert len(found) == jobs(server) == 10
    assert told.split() == [image["sha256"] for image in reversed(found)]
