"""What users write passes mypy --strict and pyright: README's and docs' programs, the examples, tests/typed.

    python tools/check_types.py [FILE ...]

A line of a program that ends in `# refused` is one that a checker must refuse: each has to report something there.
pyright is a program for node, which it downloads where there is none: without node it is left out, with a word.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import run_docs

ROOT = run_docs.ROOT
REFUSED = "# refused"
_MYPY = re.compile(r"^(?P<path>.+?):(?P<line>\d+): error: (?P<told>.+)$", re.MULTILINE)
Found = dict[tuple[str, int], str]  # (program, line) -> what a checker says of it


def programs(files: list[Path]) -> Iterator[tuple[str, str]]:
    """(name, source) of each program; a page's have its lines."""
    for path in files:
        text = run_docs.program(path) if path.suffix == ".md" else path.read_text(encoding="utf-8")
        if text:
            yield path.resolve().relative_to(ROOT).as_posix(), text


def everything() -> list[Path]:
    """What is checked where no file is named."""
    typed = [*(ROOT / "examples").glob("*.py"), *(ROOT / "tests" / "typed").glob("*.py")]
    return [*run_docs.pages(), *sorted(typed)]


def by_mypy(folder: Path, names: dict[str, str]) -> Found | None:
    """What mypy says of the programs in a folder, by their names."""
    where = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "users")]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", *cache]
    # Their modules have nothing to do with each other, and what they import is checked by itself.
    options = ["--python-version", "3.11", "--follow-imports=silent", "--disable-error-code=import-untyped"]
    done = subprocess.run([*command, *options, *names], cwd=folder, env=where, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"mypy failed: {done.stdout}{done.stderr}")
    return {(names[m["path"]], int(m["line"])): m["told"] for m in _MYPY.finditer(done.stdout)}


def by_pyright(folder: Path, names: dict[str, str]) -> Found | None:
    """What pyright says of them; None where it can't run."""
    if shutil.which("node") is None:
        print("types: pyright is left out, because there is no node", file=sys.stderr)
        return None
    settings = {"extraPaths": [str(ROOT / "src")], "pythonVersion": "3.11", "reportUnusedExpression": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    where = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *names]
    done = subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"pyright failed: {done.stdout}{done.stderr}")
    errors = [e for e in json.loads(done.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    return {
        (names[Path(e["file"]).name], e["range"]["start"]["line"] + 1): e["message"].splitlines()[0] for e in errors
    }


def complaints(found: Found, sources: dict[str, str], checker: str) -> list[str]:
    """What of it nobody expects, and what was expected and isn't there."""
    lines = {(name, i): text for name, source in sources.items() for i, text in enumerate(source.splitlines(), 1)}
    refused = {place for place, text in lines.items() if text.rstrip().endswith(REFUSED)}
    told = [f"{name}:{line}: {checker}: {found[name, line]}" for name, line in sorted(found.keys() - refused)]
    return told + [f"{name}:{line}: {checker} accepts what is wrong" for name, line in sorted(refused - found.keys())]


def check(files: list[Path]) -> list[str]:
    """All complaints about the programs in some files."""
    sources = dict(programs(files))
    with tempfile.TemporaryDirectory() as place:
        names = {re.sub(r"\W", "_", name) + ".py": name for name in sources}
        for short, name in names.items():
            (Path(place) / short).write_text(sources[name], encoding="utf-8")
        told: list[str] = []
        for checker, ask in (("mypy", by_mypy), ("pyright", by_pyright)):
            found = ask(Path(place), names)
            told += complaints(found, sources, checker) if found is not None else []
    return told


if __name__ == "__main__":
    told = check([Path(name) for name in sys.argv[1:]] or everything())
    print("\n".join(told) or "types: users' programs pass")
    sys.exit(bool(told))
