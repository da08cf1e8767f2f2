"""A Ray cluster of two nodes on this machine: two loopback addresses, every process of it ours to end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from darkroom.cluster.connect import SETTINGS, STORE

ROOT = Path(__file__).resolve().parents[2]
MARK = "DARKROOM_TEST_CLUSTER"
QUICK = {  # deaths are seen after two seconds instead of fifteen
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}
HEAD, SECOND = "127.0.0.2", "127.0.0.3"


class Nodes:
    """A head and nodes, each in a session of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))  # sockets' paths are short
        self.mark = uuid.uuid4().hex
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        with socket.socket() as free:
            free.bind((HEAD, 0))
            self.port = free.getsockname()[1]
        self.address = f"{HEAD}:{self.port}"
        self.environment = (
            os.environ
            | SETTINGS
            | QUICK
            | {
                MARK: self.mark,
                "RAY_AUTH_TOKEN_PATH": str(self.token),
                "PYTHONPATH": str(ROOT / "src"),
                "OMP_NUM_THREADS": "1",
            }
        )
        where = (f"--port={self.port}", f"--node-ip-address={HEAD}", f"--temp-dir={self.folder / 'ray'}")
        self.head = self._start("--head", *where, "--include-dashboard=false")
        self._until_answers()

    def add(self, address: str = SECOND) -> subprocess.Popen[bytes]:
        """Another node."""
        return self._start(f"--address={self.address}", f"--node-ip-address={address}")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--num-gpus=0"]
        log = open(self.folder / "log", "ab")  # noqa: SIM115
        return subprocess.Popen(
            [sys.executable, *command, f"--object-store-memory={STORE}", *options],
            env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _until_answers(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert self.head.poll() is None, (self.folder / "log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                socket.create_connection((HEAD, self.port), 1).close()
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """The power of a node is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait(10)

    def end(self) -> None:
        """End whatever carries our mark; workers are in groups of their own and outlive their node."""
        for _ in range(3):
            for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]:
                with contextlib.suppress(OSError):
                    if (
                        pid != os.getpid()
                        and f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                    ):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        self.head.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[Nodes]:
    """A cluster for as long as this lasts."""
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.end()
