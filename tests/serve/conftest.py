"""A real server in a process of its own, over real sockets, with the fake engine or the real one.

Every test that starts servers by the fixture `serve` runs on SQLite and on PostgreSQL: on the latter only in the soak,
unless it is marked `postgres`; never if it is marked `sqlite`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from .browser import CHROMIUM, QUIET, SECONDS, Opened

# Without the extra `serve`, or without a client, there is nothing to test. (A skip here would end pytest itself.)
if find_spec("fastapi") is None or find_spec("httpx") is None:
    collect_ignore_glob = ["*"]
else:
    import httpx

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_engine.py")

START = """
import sys, json
{before}
from darkroom.serve.options import ServeOptions
from darkroom.serve.run import run
from pathlib import Path
values = json.loads(sys.argv[1])
for name in ("data", "models", "keys"):
    if values.get(name) is not None:
        values[name] = Path(values[name])
sys.exit(run(ServeOptions(**values), lambda server: print(server.options.port, server.keys.made or "", flush=True)))
"""


class Running:
    """A server's process and its address."""

    def __init__(self, data: Path, options: dict[str, Any], environment: dict[str, str], before: str = "") -> None:
        values = {"data": str(data), "port": 0, "engines": 1, "cores": 1, "max_body": 2**20} | options
        self.data, self.database = data, options.get("database")
        self.log = open(data.parent / f"{data.name}.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.replace("{before}", before), json.dumps(values)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            raise RuntimeError(f"the server did not start: {Path(self.log.name).read_text()[-3000:]}")
        self.port = int(line[0])
        self.key = line[1] if len(line) > 1 else None
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def ready(self, seconds: float = 60) -> Running:
        """Wait until it is."""
        self.until(lambda: self.client.get("/readyz").status_code == 200, seconds)
        return self

    def until(self, true: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait until something is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                if found := true():
                    return found
            time.sleep(0.03)
        raise AssertionError(f"it did not come true in {seconds} s; the log ends: {self.told()[-3000:]}")

    def told(self) -> str:
        """What it wrote into its log."""
        return Path(self.log.name).read_text()

    def post(self, path: str = "/api/jobs", **fields: Any) -> Any:
        """Send JSON; the answer's."""
        answer = self.client.post(path, json=fields)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def job(self, id: str) -> Any:
        """A job as it is."""
        return self.client.get(f"/api/jobs/{id}").json()

    def ended(self, id: str, seconds: float = 60) -> Any:
        """A job once it has ended."""

        def end() -> Any:
            job = self.job(id)
            return job if job["state"] not in ("queued", "running") else None

        return self.until(end, seconds)

    def engines(self) -> list[int]:
        """The process ids of its engines."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a statement finds in its database."""
        if self.database is None:
            with contextlib.closing(sqlite3.connect(self.data / "darkroom.sqlite")) as connection:
                return connection.execute(sql).fetchall()
        import psycopg

        with psycopg.connect(self.database) as connection:
            return connection.execute(sql).fetchall()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)
        self.client.close()

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15) -> int:
        """End it in order; its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            self.log.close()


LEASE = 2.0  # seconds, on PostgreSQL
Start = Callable[..., Running]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "serve" in metafunc.fixturenames:
        marks = {mark.name for mark in metafunc.definition.iter_markers()}
        kinds: list[Any] = ["sqlite"]
        if "sqlite" not in marks:
            kinds.append(pytest.param("postgres", marks=[] if "postgres" in marks else [pytest.mark.soak]))
        metafunc.parametrize("serve", kinds, indirect=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL for the tests that want one."""
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres

    with postgres.running() as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start servers with the fake engine; those that still run at the end are stopped."""
    running: list[Running] = []
    databases: dict[str, str] = {}  # of each data folder its own

    def start(
        data: str = "data",
        environment: dict[str, str] | None = None,
        real: bool = False,
        before: str = "",
        **options: Any,
    ) -> Running:
        if not real:
            options.setdefault("engine_command", [sys.executable, str(FAKE)])
        if request.param == "postgres":
            url = databases.get(data) or request.getfixturevalue("postgres_server").new()
            databases[data] = url
            options = {"database": url, "lease": LEASE} | options
        server = Running(tmp_path / data, options, environment or {}, before)
        running.append(server)
        return server.ready()

    yield start
    for server in running:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with the fake engine for the tests of a file that leave it whole."""
    folder = tmp_path_factory.mktemp("server")
    server = Running(folder / "data", {"engine_command": [sys.executable, str(FAKE)]}, {}).ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
    if not CHROMIUM.exists():
        pytest.skip(f"needs a Chromium at {CHROMIUM} (CHROMIUM=...)")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any) -> Iterator[Opened]:
    """Open the page. At the end no page may have reported a fault, or asked another host for anything."""
    faults: list[str] = []
    contexts = []

    def visit(server: Running, path: str = "/", wait: str = "#field-prompt", **options: Any) -> Any:
        values = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options}
        context = chromium.new_context(**values)
        context.set_default_timeout(SECONDS)
        contexts.append(context)
        page = context.new_page()

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                faults.append(f"{message.type}: {message.text}")

        def asked(request: Any) -> None:
            if not request.url.startswith((server.url, "blob:", "data:")):
                faults.append(f"asked another host: {request.url}")

        page.on("console", heard)
        page.on("request", asked)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error('CSP: ' + event.violatedDirective))"
        )
        page.goto(server.url + path)
        page.wait_for_selector(wait)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []
