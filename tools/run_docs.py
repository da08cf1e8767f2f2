"""Run the code of the documentation: every ```python block not marked ```python no-run, every block marked ```sh run.

    python tools/run_docs.py [--keep-pictures] [FILE.md ...]       (default: README.md and docs/**/*.md)

Each file runs in a process of its own, its blocks in order and in one namespace, in a temporary folder with an empty
`pictures/` in it; tracebacks name the file's own lines. With --keep-pictures what a file's blocks wrote into
`pictures/` is copied to docs/pictures.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<info>.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the number (from 1) of the first line after the fence, its language, further words, its text."""

    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is meant to be run."""
        if self.language == "sh":
            return "run" in self.words
        return self.language == "python" and "no-run" not in self.words

    @property
    def program(self) -> list[str]:
        """Its lines as Python; commands become one call of the shell, which stops at the first that fails."""
        if self.language != "sh":
            return self.text.splitlines()
        return [f"__import__('subprocess').run(['sh', '-ec', {self.text!r}], check=True)"]


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a page. Raises ValueError for one that is never closed."""
    found: list[Block] = []
    opened: tuple[int, str, str, list[str]] | None = None  # line, marks, info, lines
    indent = ""
    for number, line in enumerate(markdown.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, indent = (number + 1, fence["marks"], fence["info"].strip(), []), fence["indent"]
        elif fence and fence["marks"].startswith(opened[1]) and not fence["info"].strip():
            first, _, info, lines = opened
            language, *words = info.split() or [""]
            found.append(Block(first, language, tuple(words), "\n".join(lines) + "\n"))
            opened = None
        else:
            opened[3].append(line.removeprefix(indent))
    if opened is not None:
        raise ValueError(f"the block that begins in line {opened[0] - 1} is never closed")
    return found


def program(path: Path) -> str:
    """A page's blocks as one Python program whose lines have the page's numbers."""
    lines: list[str] = []
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.runs:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.program
    return "\n".join(lines) + "\n" if lines else ""


def run(path: Path, keep_pictures: bool = False) -> int:
    """Run a page; returns the exit code, 0 for a page without code to run. `darkroom` is this environment's."""
    source = program(path)
    if not source:
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        here = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        # The page's path as the file name, so that tracebacks point into it.
        starter = "import sys; p = sys.argv[1]; exec(compile(sys.stdin.read(), p, 'exec'), {'__name__': '__main__'})"
        done = subprocess.run([sys.executable, "-c", starter, str(path)], input=source, text=True, cwd=folder, env=here)
        if keep_pictures and not done.returncode:
            PICTURES.mkdir(exist_ok=True)
            for picture in sorted((folder / "pictures").iterdir()):
                shutil.copyfile(picture, PICTURES / picture.name)
                print(f"wrote docs/pictures/{picture.name} ({picture.stat().st_size:,} bytes)")
    return done.returncode


def pages() -> list[Path]:
    """README.md and everything in docs/, but translations, whose code is that of their originals (a test keeps it)."""
    return [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name != "ko")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the code of the documentation.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--keep-pictures", action="store_true")
    arguments = parser.parse_args()
    failed = []
    for path in arguments.files or pages():
        count = sum(block.runs for block in blocks(path.read_text(encoding="utf-8")))
        if count:
            print(f"{path.resolve().relative_to(ROOT)}: {count} blocks", flush=True)
        if run(path.resolve(), arguments.keep_pictures):
            failed.append(str(path))
    if failed:
        print(f"documentation: the code of {', '.join(failed)} does not run", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
