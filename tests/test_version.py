"""What a checkout, an installed package and trees between the two call themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from darkroom.version import describe

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    return subprocess.run(["git", "-C", str(root), *who, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """src/darkroom in a folder that git knows nothing of."""
    folder = tmp_path / "src" / "darkroom"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("A = 1\n")
    return folder


@needs_git
def test_a_checkout_names_its_commit_and_a_tag_its_release(package: Path) -> None:
    root = package.parent.parent
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    commit = git(root, "rev-parse", "--short=7", "HEAD").strip()
    assert describe(package, "0.2.0") == f"0.2.0+g{commit}"  # no tag: what the installation said, without its commit
    assert describe(package, "0.2.0+g0000000") == f"0.2.0+g{commit}"

    git(root, "tag", "nightly")  # somebody's own
    assert describe(package, "0.2.0") == f"0.2.0+g{commit}"
    git(root, "tag", "v0.3.0")
    assert describe(package, "0.2.0") == "0.3.0"
    (package / "a.py").write_text("A = 2\n")
    assert describe(package, "0.2.0") == f"0.3.0+g{commit}.dirty"
    git(root, "commit", "-qam", "second")
    commit = git(root, "rev-parse", "--short=7", "HEAD").strip()
    assert describe(package, "0.2.0") == f"0.3.0+g{commit}"


def test_without_a_repository_the_installation_is_believed(package: Path) -> None:
    assert describe(package, "0.2.0+g1234567") == "0.2.0+g1234567"


def test_a_repository_that_only_contains_the_package_says_nothing(package: Path) -> None:
    root = package.parent.parent
    (root / ".git").mkdir()  # of a person who keeps an environment, or this folder, in a project
    inside = root / "lib" / "darkroom"
    shutil.copytree(package, inside)
    assert describe(inside, "0.2.0") == "0.2.0"


def test_a_broken_repository_or_no_git_says_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package.parent.parent / ".git").write_text("gitdir: /nowhere\n")
    assert describe(package, "0.2.0") == "0.2.0"
    monkeypatch.setenv("PATH", "")
    assert describe(package, "0.2.0") == "0.2.0"
