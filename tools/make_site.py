"""Build the documentation's site, English and Korean, into build/site, and check it.

    python tools/make_site.py [--check] [--if-possible]

docs/, what stands beside it, and the reference made from the code (tools/reference.py) are put together in build/pages;
Zensical makes a site of them after tools/site.toml. Whatever a page links to must be there, and nothing may come from
another host. With --check it is built in a temporary folder. Needs the extra `docs`; with --if-possible a word is said
without it, and nothing fails.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
KOREAN = "docs/ko/"
# What stands beside docs/ and is on the site, too.
BESIDE = {
    **{name: f"project/{name}" for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")},
    **{name: f"project/{name}.txt" for name in ("LICENSE", "NOTICE")},
    "page/src/icon.svg": "logo.svg",
    "tools/site.css": "site.css",
}
_FENCED = re.compile(r"^( *)(`{3,}|~{3,})(.*?)^\1\2 *$", re.M | re.S)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


# --- pages


def places() -> dict[str, str]:
    """Where each file of the repository that is on the site stands there. Korean pages are a site in the site: ko/."""
    found = dict(BESIDE)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            found[name] = name.removeprefix("docs/")
    return found


def put_together(pages: Path, korean: Path) -> None:
    """Write the two sites' sources."""
    from reference import pages as reference

    for name, place in places().items():
        into = korean / place.removeprefix("ko/") if name.startswith(KOREAN) else pages / place
        into.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            into.write_text(page(name, (ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / name, into)
    for name in ("logo.svg", "site.css"):
        shutil.copyfile(pages / name, korean / name)
    (pages / "reference").mkdir()
    for name, text in reference().items():
        (pages / "reference" / name).write_text(text, encoding="utf-8")


def page(name: str, text: str) -> str:
    """A page as the site takes it: links lead to where their files stand there, and fences name nothing but a language.

    A link to a file that isn't on the site becomes its text.
    """
    known, parts, at = places(), [], 0
    for block in _FENCED.finditer(text):
        language, _, rest = block[3].partition("\n")
        fence = f"{block[1]}{block[2]}"
        parts += [_relink(name, text[at : block.start()], known)]
        parts += [f"{fence}{(language.split() or [''])[0]}\n{rest}{fence}"]
        at = block.end()
    return "".join([*parts, _relink(name, text[at:], known)])


def _relink(name: str, text: str, known: dict[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if wanted not in known:
            return label
        place = posixpath.relpath(known[wanted], posixpath.dirname(known[name]))
        if name.startswith(KOREAN) != wanted.startswith(KOREAN):  # into the other site: what is there in the end
            place = re.sub(r"\.md$", ".html", place)
        return f"{picture}[{label}]({place}{hash_}{anchor})"

    return _LINK.sub(link, text)


# --- the build


def build(folder: Path) -> Path:
    """Build both sites in `folder`; returns where."""
    told = tomllib.loads((TOOLS / "site.toml").read_text(encoding="utf-8"))
    site = folder / "site"
    for name in ("pages", "pages-ko", "site"):
        shutil.rmtree(folder / name, ignore_errors=True)
    put_together(folder / "pages", folder / "pages-ko")
    told["project"]["nav"] = expanded(told["project"]["nav"])
    english = told["project"] | {"docs_dir": "pages", "site_dir": "site"}
    english["plugins"] = english.get("plugins", {}) | {"mkdocstrings": {"handlers": {"python": _python(told)}}}
    korean = _merged(told["project"], told["korean"]) | {"docs_dir": "pages-ko", "site_dir": "site/ko"}
    for name, project in (("site.toml", english), ("site.ko.toml", korean)):
        (folder / name).write_text(toml(project), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", name],
            cwd=folder, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the site does not build:\n{done.stdout}{done.stderr}")
    return site


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from _named(part)


def expanded(nav: Any) -> Any:
    """The navigation with "folder/*" as the list of that folder's pages, and "*" as those of docs/ not named in it.

    A section for which nothing is left goes.
    """
    rest = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - set(_named(nav)))

    def put(part: Any) -> Any:
        if part == "*":
            return rest
        if isinstance(part, str) and part.endswith("/*"):
            return sorted(f"{part[:-1]}{path.name}" for path in (ROOT / "docs" / part[:-2]).glob("*.md"))
        if isinstance(part, list):
            return [each for each in map(put, part) if each]
        return {key: made for key, value in part.items() if (made := put(value))} if isinstance(part, dict) else part

    return put(nav)


def _python(told: dict[str, Any]) -> dict[str, Any]:
    """mkdocstrings' handler, with its places."""
    options = told["python"] | {"extensions": [str(TOOLS / "griffe_names.py")]}
    return {"paths": [str(ROOT / "src")], "options": options}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`one` with what `other` says otherwise, at any depth."""
    both = dict(one)
    for key, value in other.items():
        both[key] = _merged(one[key], value) if isinstance(value, dict) and isinstance(one.get(key), dict) else value
    return both


def toml(project: dict[str, Any]) -> str:
    """A project as TOML, everything inline: strings of JSON are strings of TOML."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    return "[project]\n" + "".join(f"{json.dumps(key)} = {inline(value)}\n" for key, value in project.items())


# --- the check


@dataclass(slots=True)
class Page:
    """What a page of the site offers and asks for."""

    anchors: set[str]
    links: list[str]  # what a reader may click
    loads: list[str]  # what a browser fetches by itself


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [], [])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = {key: value or "" for key, value in attributes}
        self.page.anchors |= {told[key] for key in ("id", "name") if key in told}
        if "href" in told:
            fetched = tag == "link" and not {"canonical", "next", "prev", "alternate"} & set(
                told.get("rel", "").split()
            )
            (self.page.loads if fetched else self.page.links).append(told["href"])
        if "src" in told:
            self.page.loads.append(told["src"])


def problems(site: Path) -> list[str]:
    """Links that lead nowhere, and what would be fetched from another host."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        reader = _Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        pages[path] = reader.page
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        found += [f"{where} fetches {url}" for url in page.loads if re.match(r"(https?:)?//", url)]
        if path.name == "404.html":  # its links begin at the root of wherever it is served
            continue
        for url in {*page.links, *page.loads}:
            if re.match(r"[a-z]+:|//", url):
                continue
            target, _, anchor = unquote(url).partition("#")
            place = (path.parent / target).resolve() if target else path
            place = place / "index.html" if place.is_dir() else place
            if not place.exists() or (anchor and place in pages and anchor not in pages[place].anchors):
                found.append(f"{where} links to {url}, which is not there")
    for path in site.rglob("*.css"):
        urls = re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)} fetches {url}" for url in urls]
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the documentation's site.")
    parser.add_argument("--check", action="store_true", help="keep nothing")
    parser.add_argument("--if-possible", action="store_true", help="skip it where the extra `docs` isn't installed")
    arguments = parser.parse_args()
    if not all(map(find_spec, ("zensical", "mkdocstrings"))):
        print("the site needs the extra `docs` (pip install '.[docs]'); it is not built", file=sys.stderr)
        return 0 if arguments.if_possible else 1
    with tempfile.TemporaryDirectory() as temporary:
        site = build(Path(temporary) if arguments.check else ROOT / "build")
        wrong = problems(site)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    print(
        f"site: {len(wrong)} problems"
        if wrong
        else "site: every link leads somewhere"
        if arguments.check
        else site / "index.html"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
