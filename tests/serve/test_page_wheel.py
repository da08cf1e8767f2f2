"""The wheel, installed in a fresh environment where there is no node, serves the page."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from .conftest import ROOT

SERVE = """
import sys, threading, urllib.request
from pathlib import Path
import uvicorn
import darkroom
from darkroom.serve import static
assert Path(darkroom.__file__).is_relative_to(sys.prefix), darkroom.__file__
from fastapi import FastAPI
app = FastAPI()
app.include_router(static.router)
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    pass
port = server.servers[0].sockets[0].getsockname()[1]
page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
script = page.split('src="./')[1].split('"')[0]
print(len(page), len(urllib.request.urlopen(f"http://127.0.0.1:{port}/{script}").read()))
"""


@pytest.mark.soak
def test_a_fresh_environment_serves_the_page(tmp_path: Path) -> None:
    """Libraries are those of this environment; the package is the wheel's alone."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path / "dist"), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True, timeout=300)
    if made.returncode and "hatchling" in made.stderr:
        pytest.skip("what builds a wheel (hatchling, hatch-vcs) can't be fetched")
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("darkroom/serve/page/")}
    page = ROOT / "src" / "darkroom" / "serve" / "page"
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert {name.removeprefix("darkroom/serve/page/") for name in inside} == files
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    (site,) = (home / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    libraries = Path(pytest.__file__).parents[1]
    (site / "libraries.pth").write_text(f"{libraries}\n")
    environment = {"PATH": str(home / "bin"), "HOME": str(tmp_path)}
    assert not any((Path(folder) / "node").exists() for folder in environment["PATH"].split(os.pathsep))
    done = subprocess.run(
        [str(home / "bin" / "python"), "-c", SERVE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    length, script = map(int, done.stdout.split())
    assert length > 300
    assert script > 10_000
