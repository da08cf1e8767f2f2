"""A PostgreSQL of the tests' own: Debian's package, in a new folder, on a free port of loopback, under its own user."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    """A running database server; `url` is a database of it."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self.folder, self.programs, self.user = folder, programs, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", folder / "db", "-U", "darkroom", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(
            "pg_ctl", "-D", self.folder / "db", "-o", options, "-l", self.folder / "log", "-w", "-t", "60", "start"
        )

    def stop(self) -> None:
        """End it, connections and all."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self.folder / "db", "-m", "immediate", "-w", "-t", "30", "stop")

    def kill(self) -> None:
        """kill -9 of the whole server."""
        pid = int((self.folder / "db" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)

    def new(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "darkroom", name)
        return f"postgresql://darkroom@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [str(self.programs / program), *map(str, arguments)]
        subprocess.run(
            command, user=self.user, cwd=self.folder, check=True, timeout=120, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )  # fmt: skip


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server for as long as this lasts; the test is skipped where there is none to start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgres)")
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = None
    if os.geteuid() == 0:  # initdb and postgres refuse root
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL doesn't run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="darkroom-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    # Whatever ends us, the pipe closes, and this ends the server and clears up.
    after = f"read x; kill -QUIT $(head -1 {folder}/db/postmaster.pid); sleep 2; rm -rf {folder}"
    watcher = subprocess.Popen(
        ["sh", "-c", after], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    server = None
    try:
        server = Postgres(folder, PROGRAMS[-1], user)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        watcher.communicate()
