"""Which Darkroom this is: what recipes, servers and `darkroom --version` name.

An installed package was named after the repository's tags when it was built (hatch-vcs): "0.2.0" for the tag v0.2.0,
"0.2.0+g1a2b3c4" for a commit after it. A checkout that code is run from moves on after it was installed, so there git
is asked what is really being run.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

DISTRIBUTION = "darkroom-diffusion"
_DESCRIBED = re.compile(r"(?:v(?P<release>.+)-(?P<commits>\d+)-g)?(?P<commit>[0-9a-f]+)(?P<dirty>\.dirty)?")


def describe(package: Path, installed: str) -> str:
    """The version of the code in the folder `package`, whose installation said `installed`.

    In a checkout that is the last release and the commit, with ".dirty" where tracked files differ from it, or the
    release alone if the commit is the tag's. Anywhere else, or where git is missing or refuses, it is `installed`.
    """
    root = package.parent.parent
    if package.parent.name != "src" or not (root / ".git").exists():
        return installed
    asked = ["describe", "--tags", "--match=v[0-9]*", "--always", "--long", "--abbrev=7", "--dirty=.dirty"]
    try:
        done = subprocess.run(["git", "-C", str(root), *asked], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return installed
    told = _DESCRIBED.fullmatch(done.stdout.strip())
    if done.returncode or told is None:
        return installed
    release = told["release"] or installed.partition("+")[0]  # a clone without tags
    if told["commits"] == "0" and not told["dirty"]:
        return release
    return f"{release}+g{told['commit']}{told['dirty'] or ''}"


def _installed() -> str:
    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:  # a source tree that nobody installed
        return "0"


__version__ = describe(Path(__file__).parent, _installed())
