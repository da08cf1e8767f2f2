"""The house itself: which room may use which, and that its papers agree with each other."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "darkroom"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))


def tool(name: str) -> ModuleType:
    """tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


imports = tool("imports")
run_docs = tool("run_docs")
mutants = tool("mutants")
sys.path.append(str(ROOT / "tools"))  # which it imports from
check_types = tool("check_types")


# --- the import rule


def test_the_import_rule_is_kept() -> None:
    assert imports.breaches() == []


def test_every_room_has_a_rule() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert rooms <= set(imports.MAY_USE)


def test_the_rule_has_an_order_without_an_arrow_back_up() -> None:
    earlier: set[str] = set()
    for room, may in imports.MAY_USE.items():
        assert "*" in may or may <= earlier, f"{room} uses rooms that come later in the table: {sorted(may - earlier)}"
        earlier.add(room)


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("samplers/new.py", "from darkroom.diffusion.noise import SeededNoise", "'samplers' may not use 'diffusion'"),
        ("samplers/new.py", "from ..models import unet", "'samplers' may not use 'models'"),
        ("models/new.py", "import darkroom.request", "'models' may not use 'request'"),
        ("models/new.py", "from .. import images", "'models' may not use 'images'"),
        ("diffusion/new.py", "def f():\n    from darkroom import samplers", "'diffusion' may not use 'samplers'"),
        ("engine/new.py", "if TYPE_CHECKING:\n    from ..pipeline import load", "'engine' may not use 'pipeline'"),
        ("pipeline.py", "from .training import unet", "'pipeline' may not use 'training'"),
        ("formats/new.py", "from ..prompts.tokenizer import Tokenizer", "save.py may use 'prompts'"),
        ("models/new.py", "import diffusers.models", "diffusers.models is a library of the tests"),
        ("cli/new.py", "from transformers import CLIPTextModel", "is a library of the tests"),
        ("attic/new.py", "", ""),
        ("attic/new.py", "import json", "'attic' is not in MAY_USE"),
    ],
)  # fmt: skip
def test_a_breach_is_found(tmp_path: Path, file: str, line: str, told: str) -> None:
    path = tmp_path / "darkroom" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    found = imports.breaches(tmp_path / "darkroom")
    assert len(found) == bool(told)
    assert all(told in sentence and file in sentence for sentence in found)


def test_what_is_allowed_is_no_breach(tmp_path: Path) -> None:
    lines = {
        "errors.py": "",
        "samplers/a.py": "from ..errors import RequestError\nfrom .b import B\nfrom . import b\n",
        "samplers/b.py": "import torch\nB = 1\n",
        "formats/save.py": "def f():\n    from ..prompts.tokenizer import Tokenizer\n",
        "engine/prepare/common.py": "from darkroom import __version__\nimport darkroom.samplers.a\n",
    }
    for name, text in lines.items():
        path = tmp_path / "darkroom" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert imports.breaches(tmp_path / "darkroom") == []


@pytest.mark.parametrize(
    "closing",
    [
        "import darkroom.models.a\n",
        "def late():\n    import darkroom.models.a\n",
        "if TYPE_CHECKING:\n    from .a import A\n",
    ],
)
def test_circles_of_files_are_found(tmp_path: Path, closing: str) -> None:
    room = tmp_path / "darkroom" / "models"
    room.mkdir(parents=True)
    (room / "a.py").write_text("from .b import x\n")
    (room / "b.py").write_text("from . import c\n")
    (room / "c.py").write_text("")
    assert imports.circles(tmp_path / "darkroom") == []
    (room / "c.py").write_text(closing)
    (found,) = imports.circles(tmp_path / "darkroom")
    assert found == [f"darkroom.models.{m}" for m in "abca"]


# --- files

LONGEST, SHORTEST = 600, 60  # lines
LONG = {  # what would not be better in two
    "training/autoencoder.py": "a kind of training is one file",
}
SHORT = {
    "__main__.py": "python -m darkroom",
    "version.py": "every room may use it",
    "cli/convert.py": "a command is a file",
    "cli/cluster.py": "a command is a file",
    "cli/keys.py": "a command is a file",
    "serve/metrics.py": "what is counted, and nothing that counts it",
    "cli/samplers.py": "a command is a file",
    "cli/objects.py": "a command is a file",
    "training/pretrained.py": "what training takes out of anybody's files, for two kinds of it",
    "engine/scheduler.py": "who moves next is a subject of its own, without tensors",
}


def test_a_file_is_neither_a_sliver_nor_endless() -> None:
    lines = {path.relative_to(SOURCE).as_posix(): path.read_text().count("\n") for path in SOURCE.rglob("*.py")}
    short = {name for name, count in lines.items() if count < SHORTEST and not name.endswith("__init__.py")}
    assert {name for name, count in lines.items() if count > LONGEST} <= LONG.keys()
    assert short <= SHORT.keys()
    assert max(lines.values()) < LONGEST + 50


# --- the documentation


def test_blocks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```python\nx = 1\n```\n\n```sh\nls\n```\n```python no-run\nboom(\n```\n"
        "````md\n```python\nboom(\n```\n````\n```python\nassert x == 1\n1 / 0\n```\n"
    )
    found = run_docs.blocks(page.read_text())
    assert [(b.line, b.language, b.runs) for b in found] == [
        (3, "python", True), (7, "sh", False), (10, "python", False), (13, "md", False), (18, "python", True),
    ]  # fmt: skip
    program = run_docs.program(page)
    assert program.splitlines()[2] == "x = 1"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "line 19" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    with pytest.raises(ValueError, match="line 1 is never closed"):
        run_docs.blocks("```python\nx = 1\n")


def test_blocks_in_lists_lose_their_indent(tmp_path: Path) -> None:
    (block,) = run_docs.blocks("1. First\n\n   ```python\n   if True:\n       x = 1\n   ```\n")
    assert block.text == "if True:\n    x = 1\n"
    assert block.runs


def test_a_page_that_fails_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("```python\nopen('pictures/x.txt', 'w').close()\n```\n")
    bad.write_text("\n\n```python\nraise KeyError('here')\n```\n")
    assert run_docs.run(good) == 0
    assert run_docs.run(bad) == 1
    assert f'File "{bad}", line 4' in capfd.readouterr().err


def test_commands_run_between_the_python_in_one_folder_and_stop_at_a_failure(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```sh run\necho one > a.txt\npython -c \'open("b.txt", "w")\'\n```\n'
        "```python\nassert open('a.txt').read() == 'one\\n'\nopen('b.txt')\n```\n```sh\nexit 1\n```\n"
    )
    assert run_docs.run(page) == 0
    page.write_text("```sh run\nfalse\ntrue\n```\n")
    assert run_docs.run(page) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_link_to_what_exists(page: Path) -> None:
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_commands_that_exist(page: Path) -> None:
    from darkroom.cli import COMMANDS

    for block in run_docs.blocks(page.read_text(encoding="utf-8")):
        if block.language in ("sh", "console", "bash"):
            for command in re.findall(r"^(?:\$ )?darkroom ([a-z][a-z-]*)", block.text, flags=re.M):
                assert command in COMMANDS, f"{page.name}: darkroom {command}"
            targets = re.findall(r"^(?:\$ )?make ([a-z][a-z-]*)", block.text, flags=re.M)
            makefile = (ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets), targets


def test_decisions_are_numbered_and_listed() -> None:
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"decisions/{name}" in architecture for name in records)


# --- the packaging


def test_a_tree_without_tags_is_of_the_changelog_s_first_section() -> None:
    import darkroom

    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]
    sections = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert sections[0] == hatch["fallback-version"]
    assert sections == sorted(sections, key=lambda name: [int(part) for part in name.split(".")], reverse=True)
    assert re.fullmatch(r"\d[\w.]*(\+g[0-9a-f]+(\.\w+)*)?", darkroom.__version__)


def test_constraints_pin_what_the_project_asks_for() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {r.name: r for r in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["test"]])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for pin in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert asked[pin.name].specifier.contains(version.version), pin.name


def test_every_module_says_what_it_is() -> None:
    import ast

    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_ci_can_start() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


# --- users' programs and type checkers


def test_what_type_checkers_say_is_told_and_what_they_must_refuse_is_asked_for() -> None:
    sources = {"a.py": "x = 1\nx.save()\npipe(3)  # refused\npipe(4)  # refused\n"}
    told = check_types.complaints({("a.py", 2): "no save", ("a.py", 3): "no 3"}, sources, "pyright")
    assert told == ["a.py:2: pyright: no save", "a.py:4: pyright accepts what is wrong"]


def test_where_there_is_no_node_pyright_is_left_out_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_types.by_pyright(tmp_path, {}) is None
    assert "pyright is left out, because there is no node" in capfd.readouterr().err


# --- mutation testing


def test_every_mutant_is_a_program_with_one_change(tmp_path: Path) -> None:
    source = (
        "def f(a, b):\n    if a < b and not a:\n        print(a, b)\n    elif a == 3:\n        return g(a, b + 1)\n"
        "    return True\n"
    )
    path = tmp_path / "file.py"
    path.write_text(source)
    found = list(mutants.mutants(path))
    assert {mutant.change for mutant in found} >= {
        "condition negated", "Lt exchanged", "And exchanged", "call dropped", "arguments exchanged", "Add exchanged",
        "1 raised", "True exchanged",
    }  # fmt: skip
    lines = source.splitlines()
    for mutant in found:
        changed = "\n".join([*lines[: mutant.first - 1], mutant.text, *lines[mutant.last :]])
        assert ast.unparse(ast.parse(changed)) != ast.unparse(ast.parse(source)), mutant


def test_a_room_has_its_tests() -> None:
    assert mutants.tests_of(SOURCE / "samplers" / "state.py") == ["tests/samplers"]
    assert mutants.tests_of(SOURCE / "request.py") == ["tests/test_request.py"]


# --- sentences


def test_errors_speak_in_one_manner() -> None:
    """A sentence follows "darkroom: " or a name: it begins with a small letter and ends without a full stop."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            parts = getattr(node.exc.args[0], "values", [node.exc.args[0]])
            first, last = (part.value if isinstance(part, ast.Constant) else "" for part in (parts[0], parts[-1]))
            if name not in ERRORS or not isinstance(first, str) or not isinstance(last, str):
                continue
            if re.match(r"(The|There|A|An|This|That|It|No|Only|Give) ", first) or re.search(r"[^.]\.$", last):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node.exc.args[0])}")
    assert not wrong


ERRORS = {"Error", "RequestError", "CheckpointError", "ImageError", "TrainingError", "SettingError", "PictureExists"}
