"""The documentation's site: what is put together, what is read from the code, and what its check finds."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_site, reference, run_docs = tool("make_site"), tool("reference"), tool("run_docs")


# --- pages


def test_links_lead_to_where_things_stand_on_the_site() -> None:
    page = make_site.page
    text = "[a](docs/LOG.md) [s](src/x.py) [c](CHANGELOG.md#x) [w](https://x.org) ![p](docs/pictures/noise.webp)"
    assert page("CONTRIBUTING.md", text) == (
        "[a](../LOG.md) s [c](CHANGELOG.md#x) [w](https://x.org) ![p](../pictures/noise.webp)"
    )
    assert page("docs/ko/index.md", "[a](../LOG.md#b) [t](how-it-works.md)") == (
        "[a](../LOG.html#b) [t](how-it-works.md)"  # another site's page is what it is there
    )
    assert page("docs/index.md", "[한](ko/index.md)") == "[한](ko/index.html)"


def test_fences_name_a_language_and_what_is_in_them_stays() -> None:
    text = "```python no-run\n[a](nowhere.md)\n```\n\n```\nx\n```\n  ~~~sh run\n  y\n  ~~~\n"
    assert make_site.page("docs/LOG.md", text) == text.replace(" no-run", "").replace(" run", "")


def test_every_page_is_in_the_navigation() -> None:
    told = tomllib.loads((ROOT / "tools" / "site.toml").read_text(encoding="utf-8"))
    named = set(make_site._named(make_site.expanded(told["project"]["nav"])))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in there if not name.startswith("ko/")} <= named
    made = {f"reference/{name}.md" for name in (*reference.API, "commands", "settings", "training-settings")}
    assert named <= there | set(make_site.BESIDE.values()) | made
    korean = set(make_site._named(told["korean"]["nav"]))
    assert korean == {name.removeprefix("ko/") for name in there if name.startswith("ko/")}
    assert make_site.expanded([{"More": "*"}, "index.md"])[0]["More"][:2] == ["LOG.md", "adding-a-format.md"]
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert make_site.expanded([{"More": "*"}, *pages]) == pages


def test_a_configuration_is_written_as_it_was_read() -> None:
    told = tomllib.loads((ROOT / "tools" / "site.toml").read_text(encoding="utf-8"))["project"]
    assert tomllib.loads(make_site.toml(told)) == {"project": told}


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs" / "ko").glob("*.md")))
def test_a_translation_has_the_code_of_its_original(page: str) -> None:
    def code(path: Path) -> list[tuple[str, list[str]]]:
        return [(b.language, bare(b)) for b in run_docs.blocks(path.read_text(encoding="utf-8"))]

    def bare(block: object) -> list[str]:  # comments may be translated
        if block.language != "python":  # type: ignore[attr-defined]
            return [line.partition("#")[0].rstrip() for line in block.text.splitlines()]  # type: ignore[attr-defined]
        tokens = tokenize.generate_tokens(io.StringIO(block.text).readline)  # type: ignore[attr-defined]
        return [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]

    original, translated = ROOT / "docs" / page, ROOT / "docs" / "ko" / page
    assert code(translated) == code(original)
    headings = [len(re.findall(r"^#+ ", p.read_text(encoding="utf-8"), flags=re.M)) for p in (original, translated)]
    assert headings[0] == headings[1]
    assert translated not in run_docs.pages()  # its code runs once
    assert original in run_docs.pages()


# --- the reference


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    import darkroom

    named = [name for _, _, _, names in reference.api_pages() for name in names]
    assert sorted(named) == sorted(set(darkroom.__all__) - {"__version__"})


def test_help_is_taken_apart() -> None:
    told = reference.parsed(
        "Usage: darkroom x [OPTIONS]\n                  A\n\n  Say it.\n\n  darkroom x a\n\n"
        "Arguments:\n  A <str>  What.  [required]\n\nPicture in:\n  -o, --output DIR|FILE\n           A folder,\n"
        "           or a file.\n  -h, --help  Show this.\n"
    )
    assert told.usage == "darkroom x [OPTIONS] A"
    assert told.text.split("\n\n") == ["Say it.", "darkroom x a"]
    assert told.sections == {
        "Arguments": [("A <str>", "What.  [required]")],
        "Picture in": [("-o, --output DIR|FILE", "A folder, or a file."), ("-h, --help", "Show this.")],
    }


def test_the_reference_has_every_command_and_setting() -> None:
    from darkroom.cli import COMMANDS
    from darkroom.request import Request
    from darkroom.settings import joined
    from darkroom.training.kinds import KINDS

    pages = reference.pages()
    assert re.findall(r"^## darkroom (\S+)", pages["commands.md"], flags=re.M) == list(COMMANDS)
    assert "### darkroom data pack" in pages["commands.md"]
    assert "| `-o, --output DIR" in pages["commands.md"]
    for name, _, declared in joined(Request):
        assert f"| `{declared.group or name}`" in pages["settings.md"]
        assert declared.option is None or f"`{declared.option}`" in pages["settings.md"]
    sections = re.findall(r"^## (\S+)$", pages["training-settings.md"], flags=re.M)
    assert sections[-len(KINDS) :] == list(KINDS)
    for row in re.findall(r"^\|.*\|$", "\n".join(pages.values()), flags=re.M):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5), row


def test_texts_stay_what_they_are_in_a_table() -> None:
    assert reference.cell("a*b [x] `c|d_e` <f>\ng_h") == "a\\*b \\[x\\] `c\\|d_e` \\<f\\> g\\_h"


def test_names_that_share_a_text_have_a_line_each() -> None:
    split = tool("griffe_names").split if importlib.util.find_spec("griffe") else pytest.skip("griffe is not installed")
    assert split("Text, more: x\n\nArgs:\n    a: 1\n    b, c: 2\n        and on\n    d: 3\n\nx, y: z") == (
        "Text, more: x\n\nArgs:\n    a: 1\n    b: 2\n        and on\n    c: 2\n        and on\n    d: 3\n\nx, y: z"
    )


# --- the check


def test_the_check_names_broken_links_and_other_hosts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="a/b.html#here">1</a><a href="#top">2</a><a href="https://x.org">3</a>'
        '<a href="a/">4</a><a href="c.html">5</a><a href="a/b.html#there">6</a><img src="no.png">'
        '<script src="https://cdn.org/x.js"></script><link rel="canonical" href="https://x.org">'
    )
    (tmp_path / "a" / "b.html").write_text('<p id="here">x</p><a href="../index.html">x</a>')
    (tmp_path / "a" / "index.html").write_text("")
    (tmp_path / "a" / "x.css").write_text("@font-face { src: url('//fonts.org/f.woff2') } p { background: url(x.png) }")
    assert make_site.problems(tmp_path) == [
        "a/x.css fetches //fonts.org/f.woff2",
        "index.html fetches https://cdn.org/x.js",
        "index.html links to a/b.html#there, which is not there",
        "index.html links to c.html, which is not there",
        "index.html links to no.png, which is not there",
    ]
