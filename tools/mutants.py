"""Mutation testing: change the code at random places, one at a time, and see whether a test notices.

    python tools/mutants.py [ROOM ...] [--count 30] [--seed 1] [--whole-suite] [--timeout 300]

A mutant is a copy of the package with one change: a negated condition, another comparison or arithmetic operator, two
exchanged arguments, another constant, a call whose result is dropped. It runs the tests of its own room
(tests/ROOM, or tests/test_ROOM.py), with --whole-suite those that survive run all others too. A survivor is a line that
could be wrong without anybody noticing; some are equivalent to the original, which only a reader can tell.

Which mutants are tried is a function of the seed. Exit code 1 if any survives.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "darkroom"
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file: the statement that stands in its place, and what was done, in words."""

    path: Path
    first: int  # lines of the statement, from 1
    last: int
    text: str  # in their place
    change: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.first}"


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its lines."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for statement in _statements(tree):
        for number, _ in enumerate(_changes(statement)):
            changed = copy.deepcopy(statement)
            change, apply = list(_changes(changed))[number]
            apply()
            indent = " " * statement.col_offset
            text = "\n".join(indent + line for line in ast.unparse(changed).splitlines())
            yield Mutant(path, statement.lineno, statement.end_lineno or statement.lineno, text, change)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that can be written down anew: simple ones, `while`, and `if` unless it is another's `elif`."""
    branches = {id(node.orelse[0]) for node in ast.walk(tree) if isinstance(node, ast.If) and len(node.orelse) == 1}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Expr | ast.If | ast.While | ast.Assert):
            documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not documentation and id(node) not in branches:
                yield node


def _changes(statement: ast.stmt) -> Iterator[tuple[str, Callable[[], None]]]:
    """What can be done to a statement: in words, and the function that does it to this very tree."""
    if isinstance(statement, ast.If | ast.While):
        yield "condition negated", _setter(statement, "test", ast.UnaryOp(ast.Not(), statement.test))
        inside: ast.AST = statement.test
    else:
        inside = statement
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield "call dropped", _setter(statement, "value", ast.Constant(None))
    for node in ast.walk(inside):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
            name = type(node.ops[0]).__name__
            yield f"{name} exchanged", _setter(node, "ops", [COMPARED[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
            yield f"{type(node.op).__name__} exchanged", _setter(node, "op", COMPUTED[type(node.op)]())
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield f"{type(node.op).__name__} exchanged", _setter(node, "op", other)
        elif (
            isinstance(node, ast.Call)
            and len(node.args) >= 2
            and not any(isinstance(a, ast.Starred) for a in node.args)
        ):
            yield "arguments exchanged", _setter(node, "args", [node.args[1], node.args[0], *node.args[2:]])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield f"{node.value} exchanged", _setter(node, "value", not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            yield f"{node.value} raised", _setter(node, "value", node.value + 1)


def _setter(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def tests_of(path: Path) -> list[str]:
    """The tests of a file's room, relative to the repository."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    places = [Path("tests") / room, Path("tests") / f"test_{room}.py"]
    return [str(place) for place in places if (ROOT / place).exists()]


def notices(mutant: Mutant, tests: list[str], timeout: float) -> bool:
    """Whether any of the tests fails (or hangs) on the mutant."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        place = Path(folder)
        for name in ("src", "tests", "tools", "docs", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, place / name)
        file = place / mutant.path.relative_to(ROOT)
        lines = file.read_text(encoding="utf-8").split("\n")
        lines[mutant.first - 1 : mutant.last] = mutant.text.split("\n")
        file.write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1"}
        try:
            run = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return True
        return run.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="rooms or files of src/darkroom; default: all")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--whole-suite", action="store_true")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a mutant")
    asked = parser.parse_args()
    files = sorted(
        file
        for room in asked.rooms or ["."]
        for file in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"))
        if tests_of(file)
    )
    every = [mutant for file in files for mutant in mutants(file)]
    chosen = random.Random(asked.seed).sample(every, min(asked.count, len(every)))
    survivors = 0
    for mutant in chosen:
        noticed = notices(mutant, tests_of(mutant.path), asked.timeout)
        if not noticed and asked.whole_suite:
            noticed = notices(mutant, ["tests"], 10 * asked.timeout)
        survivors += not noticed
        print(f"{'killed  ' if noticed else 'SURVIVED'}  {mutant.where}  {mutant.change}", flush=True)
        if not noticed:
            print("".join(f"              {line}\n" for line in mutant.text.splitlines()[:3]), end="")
    print(f"{len(chosen) - survivors} of {len(chosen)} killed ({len(every):,} possible)")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
