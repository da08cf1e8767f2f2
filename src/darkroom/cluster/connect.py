"""Ray as Darkroom uses it: how a cluster is spoken to, and what is set for all of it, in one place.

Ray runs whatever code it is sent by those who hold its token. So a token is always asked for, and nothing is started on
an address that others reach without one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Error, RequestError
from ..files import sync_folder

STORE = 150 * 2**20  # bytes of Ray's object store: ids go through it, no pictures
ANSWER = 5.0  # seconds that an address has to take a connection
CHECK = 60.0  # seconds that a node has to answer
CLOCKS = 2.0  # seconds that clocks may differ by
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
NEEDED = "this needs Ray; install it with: pip install 'darkroom-diffusion[ray]'"


class ClusterError(Error):
    """A Ray cluster can't be reached, refuses us, or isn't one where this can run."""


def token_path() -> Path:
    """Where Ray looks for the token of a cluster."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether this user has a token."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_path().is_file()


def make_token() -> Path:
    """Make a token that only this user reads, where there is none; its file. Raises ClusterError."""
    path = token_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w") as file:
                file.write(secrets.token_hex(32))
            sync_folder(path.parent)
        path.chmod(0o600)
    except OSError as error:
        raise ClusterError(f"the token {str(path)!r} can't be written: {error.strerror}") from None
    return path


def settings() -> None:
    """Set what Ray takes from the environment, for this process and those that it starts."""
    os.environ.update(SETTINGS)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster: HOST:PORT, or "local" for one that is started here and ends with this.

    Raises ClusterError where there is none, or it refuses us.
    """
    settings()
    try:
        import ray
    except ModuleNotFoundError:
        raise ClusterError(NEEDED) from None
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        make_token()
        told |= {"include_dashboard": False, "object_store_memory": STORE}
    else:
        host, port = _reachable(address)
        if not has_token():
            raise ClusterError("there is no token; copy the cluster's to ~/.ray/auth_token (darkroom cluster token)")
        told |= {"address": f"{host}:{port}"}
        if host.startswith("127.") and host != "127.0.0.1":  # else Ray takes this machine's own address for ours
            told |= {"_node_ip_address": host}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(**told)
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        if "Failed to connect" in why or "authenticat" in why.lower():  # Ray doesn't tell one from the other
            why = "it is there, and doesn't take us in: is our token the cluster's, and our Ray of its version?"
        raise ClusterError(f"the Ray cluster at {address} can't be used: {why}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reachable(address: str) -> tuple[str, int]:
    """Host and port; a connection is tried first, since Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise RequestError(f'--ray is {address[:100]!r}; give HOST:PORT, such as 10.0.0.5:6379, or "local"')
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except OSError as error:
        raise ClusterError(f"there is no Ray at {address}: {error.strerror or error}") from None
    return host, int(port)


def nodes(ray: Any) -> list[dict[str, Any]]:
    """The machines of a cluster that live."""
    return [node for node in ray.nodes() if node["Alive"]]


def on_each_node(ray: Any, function: Any, *arguments: Any) -> dict[str, Any]:
    """What a function answers on every machine: address -> answer, or the exception."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*arguments)
        for node in nodes(ray)
    }
    found: dict[str, Any] = {}
    for address, answer in asked.items():
        try:
            found[address] = ray.get(answer, timeout=CHECK)
        except Exception as error:
            found[address] = error
    return found


def check_folder(ray: Any, folder: Path) -> None:
    """See that all machines of a cluster see one folder: each writes a mark, and we read them. Raises ClusterError."""
    mark = uuid.uuid4().hex
    told = on_each_node(ray, write_mark, str(folder.absolute()), mark)
    try:
        for address, answer in told.items():
            if isinstance(answer, Exception):
                said = " ".join(str(answer).split())[-300:]
                raise ClusterError(f"the machine {address} can't write into {str(folder)!r}: {said}")
            if not (folder / answer).exists():
                raise ClusterError(
                    f"the machine {address} has a folder {str(folder)!r} of its own; name one that all machines share"
                )
    finally:
        for path in folder.glob(f".{mark}.*"):
            path.unlink(missing_ok=True)


def write_mark(folder: str, mark: str) -> str:
    """Write an empty file into a folder, which must be there; its name."""
    name = f".{mark}.{uuid.uuid4().hex}"
    (Path(folder) / name).touch(exist_ok=False)
    return name


def report(folder: str | None) -> dict[str, Any]:
    """What has to be the same on all machines, or about; `folder`: whether it is there."""
    import ray
    import torch

    from .. import __version__

    path = token_path()
    return {
        "darkroom": __version__,
        "ray": ray.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "time": time.time(),
        "token": path.is_file() and oct(path.stat().st_mode & 0o777)[2:],
        "folder": folder is None or Path(folder).is_dir(),
    }


def complaints(told: Mapping[str, Any], began: float, ended: float) -> list[str]:
    """What is wrong with a cluster, by its machines' reports (address -> report or exception), a sentence each.

    began, ended: our clock before they were asked, and after the last one answered.
    """
    found = []
    reports = {address: one for address, one in told.items() if not isinstance(one, Exception)}
    for address, one in told.items():
        if isinstance(one, Exception):
            found.append(f"{address} doesn't answer: {' '.join(str(one).split())[-300:]}")
    for name in ("darkroom", "ray", "torch", "python"):
        by_value: dict[str, list[str]] = {}
        for address, one in reports.items():
            by_value.setdefault(one[name], []).append(address)
        if len(by_value) > 1:
            told_of = "; ".join(f"{value} on {', '.join(where)}" for value, where in by_value.items())
            found.append(f"the machines have several versions of {name}: {told_of}")
    for address, one in reports.items():
        if one["token"] not in (False, "600", "400"):
            found.append(f"on {address} others may read the token (mode {one['token']}); chmod 600 it")
        if not began - CLOCKS <= one["time"] <= ended + CLOCKS:
            found.append(f"the clock of {address} is wrong by {one['time'] - (began + ended) / 2:+.0f} s, or ours is")
        if not one["folder"]:
            found.append(f"{address} has no such folder")
    return found
