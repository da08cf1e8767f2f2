"""Other people's clients, as they come from their registries, in an environment of their own.

`make clients` puts them into .venv-clients; $DARKROOM_CLIENTS names another place. Where they aren't, these tests are
skipped. What a user would type is a script beside this file, which is run there with the server's address as
$SERVER (http://127.0.0.1:PORT) and a key as $KEY ("none" where the server asks for none).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from darkroom.serve.keys import add_key

from ..conftest import FAKE, ROOT, Running

HERE = Path(__file__).parent
PLACE = Path(os.environ.get("DARKROOM_CLIENTS", ROOT / ".venv-clients")).absolute()
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG")

Client = Callable[..., str]


def _ran(command: list[str], stdin: str | None, cwd: Path, address: str, key: str | None) -> str:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"SERVER": address, "KEY": key or "none"}
    ended = subprocess.run(
        command, input=stdin, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture(scope="module", params=["open", "keys"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for no key, and one that does."""
    folder = tmp_path_factory.mktemp("server")
    options: dict[str, object] = {"engine_command": [sys.executable, str(FAKE)], "max_body": 2**22}
    key = None
    if request.param == "keys":
        key = add_key(folder / "keys", "ann", {}, admin=False)
        options["keys"] = str(folder / "keys")
    server = Running(folder / "data", options, {}).ready()
    server.key = key
    yield server
    server.stop()


@pytest.fixture
def python_client(tmp_path: Path) -> Client:
    """Run a script with the Python clients: (its name, the server, packages that must be there) -> what it printed."""

    def run(script: str, server: Running, *packages: str, address: str = "") -> str:
        found = {path.name.split("-")[0].casefold() for path in PLACE.glob("lib/python3*/site-packages/*.dist-info")}
        for package in packages:
            if package.replace("-", "_").casefold() not in found:
                pytest.skip(f"{package} is not in {PLACE} (make clients)")
        python = PLACE / "bin" / "python"
        return _ran([str(python), str(HERE / script)], None, tmp_path, address or server.url, server.key)

    return run


@pytest.fixture
def node_client() -> Client:
    """Run a script with the JavaScript clients: (its name, the server, packages that must be there) -> as above."""

    def run(script: str, server: Running, *packages: str, address: str = "") -> str:
        for package in packages:
            if not (PLACE / "node_modules" / package).is_dir():
                pytest.skip(f"{package} is not in {PLACE} (make clients)")
        # Read from stdin, so that packages are looked for in the working directory.
        command = ["node", "--input-type=module", "-"]
        return _ran(command, (HERE / script).read_text(), PLACE, address or server.url, server.key)

    return run
