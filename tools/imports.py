"""The import rule: which room of the house may use which. Run as a script it names every breach, and exits with 1.

    python tools/imports.py [SOURCE]

It reads the sources without importing them. A room is a module or package directly under src/darkroom; imports inside
functions and under TYPE_CHECKING count as well, because they tie rooms together all the same.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "darkroom"
SOURCE = Path(__file__).resolve().parent.parent / "src" / PACKAGE

# The rooms of the house from the ground up: a room may use what it names, all of which comes earlier in the table, so
# that no arrow leads back up. Every room may also use those of EVERYONES, and none a room that is not named here.
MAY_USE: Mapping[str, frozenset[str]] = {
    room: frozenset(others.split())
    for room, others in {
        "errors": "",
        "files": "",
        "names": "",
        "settings": "",
        "version": "",
        "elsewhere": "",
        "request_kinds": "",
        "request_parts": "",
        "request": "request_kinds request_parts",
        "arguments": "request",
        "picture_headers": "",
        "images": "picture_headers request",
        "masks": "images request",
        "hints": "images request",
        "embedded": "",
        "toy": "images request",
        "data": "images picture_headers request toy",
        "kernels": "",
        "models": "kernels",
        "accelerate": "kernels models",
        "adapters": "accelerate kernels models request",
        "backends": "adapters kernels models",
        "diffusion": "accelerate adapters kernels models",
        "samplers": "",
        "devices": "kernels models request",
        "bench": "devices diffusion kernels models",
        "prompts": "adapters models",
        # networks on `meta`; tokenizers; what a scheduler's configuration names
        "formats": "adapters diffusion embedded models picture_headers prompts request samplers",
        "engine": "accelerate adapters diffusion formats hints images kernels masks models prompts request samplers",
        "sweeps": "engine formats request samplers",
        "result": "formats images request",
        "recipe": "formats request",
        "model": "diffusion formats models prompts",
        "keywords": "adapters arguments engine formats images request",
        "pieces": "accelerate adapters devices diffusion engine formats images model models prompts request samplers",
        "pipeline": "adapters arguments engine formats images keywords pieces prompts recipe request result sweeps",
        "loading": "accelerate backends devices embedded engine formats model models pieces pipeline request",
        "evaluate": "adapters data devices diffusion engine formats images loading models pipeline "
        "prompts request samplers sweeps toy",
        "training": "adapters data devices diffusion embedded engine evaluate formats hints images kernels model "
        "models pipeline prompts request samplers sweeps toy",
        "serve": "accelerate adapters arguments diffusion embedded engine formats hints images kernels loading "
        "picture_headers pipeline prompts request samplers sweeps",
        "cluster": "formats request samplers serve",
        "cli": "*",
        "__init__": "*",
        "__main__": "cli",
    }.items()
}
EVERYONES = ("elsewhere", "errors", "files", "names", "settings", "version", "__version__")
# Rooms where only these single files may use another room: its subject is theirs alone.
ONLY = {
    ("formats", "prompts"): ("checkpoint.py", "embedding.py", "infotext.py", "save.py"),
    ("prompts", "models"): ("encoder.py",),
    ("formats", "samplers"): ("sampler_names.py", "scheduler_config.py"),
    ("formats", "diffusion"): ("sampler_names.py", "scheduler_config.py"),
}
# Libraries that tests compare with; the package never needs them.
PEERS = frozenset({"accelerate", "diffusers", "peft", "scipy", "torchvision", "transformers"})


@dataclass(frozen=True, slots=True)
class Use:
    """`path`, a file of `room`, imports `module` in `line`."""

    path: Path
    room: str
    line: int
    module: str  # absolute, dotted

    @property
    def target(self) -> str | None:
        """The room that is used, or None outside of the package (and for the package itself)."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def uses(source: Path = SOURCE) -> list[Use]:
    """All imports in the package under `source`."""
    found = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        package = (PACKAGE, *relative.parts[:-1])
        room = relative.parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node in ast.walk(tree):
            for module in _modules(node, package):
                found.append(Use(path, room, node.lineno, module))  # type: ignore[attr-defined]
    return found


def _modules(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """The absolute names that an import statement asks for; [] for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else ()
    whole = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{whole}.{alias.name}" for alias in node.names]  # x of `from darkroom import x` may be a module


def breaches(source: Path = SOURCE) -> list[str]:
    """One sentence for each breach of the rule, with file and line."""
    told = []
    for use in uses(source):
        where = f"{use.path.relative_to(source.parent)}:{use.line}"
        if use.module.split(".")[0] == "typer":
            told.append(f"{where}: commands are declared with cli/command.py (decision 0023), not with typer")
        if use.module.split(".")[0] in PEERS:
            told.append(f"{where}: {use.module} is a library of the tests; the package never imports it")
        if use.room not in MAY_USE:
            told.append(f"{where}: the room {use.room!r} is not in MAY_USE of tools/imports.py; say what it may use")
            continue
        target, may = use.target, MAY_USE[use.room]
        if target in (None, use.room, *EVERYONES) or "*" in may:
            continue
        if target not in may:
            told.append(f"{where}: {use.room!r} may not use {target!r}, only {', '.join(sorted(may) or EVERYONES)}")
        elif use.path.name not in ONLY.get((use.room, target), (use.path.name,)):
            told.append(f"{where}: in {use.room!r}, only {', '.join(ONLY[use.room, target])} may use {target!r}")
    told += [f"modules import each other in a circle: {' -> '.join(c)}" for c in circles(source)]
    return list(dict.fromkeys(told))


def circles(source: Path = SOURCE) -> list[list[str]]:
    """Files that import each other, by dotted names, each circle once: whoever reads one has to read them all.

    Imports inside functions and under TYPE_CHECKING count: what needs them to be possible is a circle all the same.
    """
    names = {_name(path, source): path for path in source.rglob("*.py")}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for use in uses(source):
        target = use.module
        while target and target not in names:  # a name inside a module
            target = target.rpartition(".")[0]
        if target and target not in (PACKAGE, _name(use.path, source)):
            edges[_name(use.path, source)].add(target)
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(names):
        visit(name, [])
    return found


def _name(path: Path, source: Path) -> str:
    parts = [PACKAGE, *path.relative_to(source).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


if __name__ == "__main__":
    told = breaches(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
    print("\n".join(told) or "imports: the rule is kept")
    sys.exit(bool(told))
