"""Something to look at: sheets, galleries, tables of folders, runs, pictures in a terminal."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from darkroom.cli import terminal
from darkroom.cli.command import built
from darkroom.cli.folders import command_of, picture_paths, read_all
from darkroom.cli.generate import app
from darkroom.formats.picture import read_metadata, write_picture

Run = Callable[..., Any]  # see conftest.py
CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


def picture(path: Path, **recipe: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_picture(Image.new("RGB", (64, 48), "red"), path, {"steps": 3, "seed": 1, **recipe})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several tools, with names and prompts that mean harm."""
    place = tmp_path / "pics"
    picture(place / "a.png", prompt=HOSTILE)
    picture(place / "<img src=x onerror=alert(1)>.png", prompt="quote ' and `id` $(id)")
    picture(place / "javascript:alert(1).png", prompt="line\nbreak \x1b[201~ evil")
    picture(place / "sub" / "-rf.png", prompt="-n 99", model="embedded")
    picture(place / "sub" / "b#?%.webp", prompt="\u202egnp.exe")
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a castle\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 42, Size: 64x64")
    Image.new("RGB", (64, 64)).save(place / "a1111.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save(place / "plain.png")
    return place


def rows_of(page: Path) -> list[dict[str, Any]]:
    """What a gallery's page holds, by the name of the picture."""
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_a_gallery_of_hostile_pictures(folder: Path, command: Run) -> None:
    answer = command("gallery", folder)
    assert answer.code == 0
    page = folder / "gallery.html"
    assert answer.paths == [page]
    assert "1 of them can't be read" in answer.err
    assert re.search(r"8 pictures, \d+ KB", answer.err)
    text = page.read_text("utf-8")
    assert text.count("<script") == 2  # what is told can't begin one
    assert "http" not in re.sub(r"http-equiv", "", text.split('id="data"')[0])  # nothing is fetched
    rows = {row["name"]: row for row in rows_of(page)}
    assert rows["a.png"]["prompt"] == HOSTILE
    assert all(row["link"].startswith("./") for row in rows.values())
    assert rows["javascript:alert(1).png"]["link"] == "./javascript%3Aalert%281%29.png"
    assert rows["b#?%.webp"]["link"] == "./sub/b%23%3F%25.webp"
    assert rows["a1111.png"]["tool"] == "a1111"
    assert ["seed", "42"] in rows["a1111.png"]["recipe"]
    assert rows["broken.png"]["fault"]
    assert rows["plain.png"]["command"] is None
    thumbnail = base64.b64decode(rows["a.png"]["thumbnail"].partition(",")[2])
    assert Image.open(io.BytesIO(thumbnail)).size == (64, 48)
    for row in rows.values():
        assert row["command"] is None or row["command"].isprintable()
    assert command("gallery", folder).code == 0  # our own file is made anew


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_gallery_in_a_browser(folder: Path, command: Run) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    command("gallery", folder)
    told: list[str] = []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.goto((folder / "gallery.html").as_uri())
        assert page.locator("#pictures li").count() == 8
        page.fill("#sought", "CASTLE 42")
        assert page.inner_text("#count") == "1 of 8"
        page.locator("#pictures button").click()
        assert page.inner_text("#prompt") == "a castle"
        assert page.inner_text("#command").startswith("darkroom generate --recipe ")
        page.keyboard.press("Escape")
        page.fill("#sought", "window.hacked")
        page.locator("#pictures button").click()
        assert page.inner_text("#prompt") == HOSTILE
        page.wait_for_function("document.getElementById('large').naturalWidth === 64")  # the file itself
        assert page.evaluate("window.hacked") is None
        browser.close()
    assert told == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "'nowhere' is no folder"),
        (["empty"], "'empty' holds no pictures"),
        (["pics", "-o", "x.png"], "give a file that ends in .html"),
        (["pics", "-o", "no/x.html"], "there is no folder 'no'"),
        (["pics", "-o", "mine.html"], "'mine.html' is there, and no gallery"),
        (["pics", "--limit", "0"], "--limit is 0"),
    ],
)
def test_what_makes_no_gallery(
    arguments: list[str], said: str, folder: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("mine.html").write_text("mine")
    assert said in command("gallery", *arguments).sentence
    assert Path("mine.html").read_text() == "mine"


def test_a_gallery_is_bounded_and_says_so(folder: Path, command: Run) -> None:
    answer = command("gallery", folder, "--limit", 2, "--json")
    assert answer.json["pictures"] == 2
    assert answer.json["of"] == 8
    assert "the newest 2 of 8 pictures are in it" in answer.err


def test_the_command_draws_the_same_again(command: Run, model: Path, tmp_path: Path) -> None:
    drawn = command(
        "generate", "--prompt=-n 2, 'quoted' -x", "--model", model, "--size", "72x48", "--steps", 2, "--seed", 5,
        "--sampler", "dpmpp_2m", "--schedule", "karras", "--guidance", 3.5, "--negative", 'a "b"',
        "--guidance-interval", "0.1,9", "--hires", 2, "--hires-strength", 1, "-o", tmp_path / "a.png")  # fmt: skip
    assert drawn.code == 0, drawn.err
    (found,) = read_all(picture_paths(tmp_path))
    words = shlex.split(command_of(found) or "")
    assert words[:2] == ["darkroom", "generate"]
    assert words[words.index("--model") + 1] == model.name
    again = command(*words[1:], "--model", model, "-o", tmp_path / "b.png")
    assert again.code == 0, again.err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_option_of_a_request_can_be_written_as_it_is_read(tmp_path: Path) -> None:
    """All of it through the parser of `generate`."""
    from darkroom.request import Request

    fields: dict[str, Any] = {
        "width": 72, "height": 48, "steps": 2, "pag_scale": 2.0, "pag_levels": ("mid", "up.1"), "seed": 5,
        "crop": (4, 0), "original_size": (512, 256), "outpaint": (8, 0, 0, 0), "only_masked": True, "exact_steps": True,
        "variation_strength": 0.5, "variation_seed": 3, "ensd": -3, "hires": {"scale": 2.0, "steps": 3},
        "guidance_interval": (0.5, 4.0), "tile": 64, "overlap": 8, "noise": "nv", "clip_skip": 2,
        "prompt_style": "comfy",
    }  # fmt: skip
    request = Request.from_dict({"prompt": "x", **fields})
    path = picture(tmp_path / "a.png", **request.to_dict())
    (found,) = read_all([path])
    words = shlex.split(command_of(found) or "")[2:]
    context = built("generate", app.commands[0][1]).make_context("generate", words)
    from darkroom.cli.drawing import _OPTIONS
    from darkroom.cli.drawing import request as read

    made = read(**{option.name: context.params[option.name] for option in _OPTIONS})
    assert made.to_dict() | {"prompt": "x"} == request.to_dict()
    assert context.params["prompts"] == ("x",)


def test_a_folder_is_a_table(folder: Path, command: Run) -> None:
    out = command("info", folder).out
    lines = out.splitlines()
    assert lines[0].split() == ["file", "size", "seed", "steps", "guidance", "sampler", "schedule", "model", "prompt"]
    assert any(
        re.match(r"a1111\.png\s+64x64\s+42\s+20\s+7\s+dpmpp_2m\s+karras\s+-\s+a castle$", line) for line in lines
    )
    assert lines[-1] == "8 pictures, 6 with a recipe"
    assert "\x1b" not in out
    told = command("info", folder, "--json").json["pictures"]
    assert {Path(row["path"]).name for row in told} >= {"a.png", "broken.png"}


def test_a_run_says_what_it_did_and_how_to_use_it(tmp_path: Path, command: Run) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "subject.json").write_text("{}")
    assert "not a step is done yet" in command("info", run).out
    recipe = {"steps": 100, "batch_size": 4, "lr": 0.001, "optimizer": "adamw", "word": "<tiger>"}
    (run / "recipe.json").write_text(json.dumps(recipe))
    rows = [{"step": 50, "loss": 0.5, "seconds": 30.0}, {"step": 100, "loss": 0.25, "seconds": 61.0, "validation": 0.3}]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 1')
    (run / "lora.safetensors").touch()
    out = command("info", run).out
    assert "step 100 of 100\n" in out
    assert "61 seconds, batches of 4, learning rate 0.001, adamw" in out
    assert "loss 0.5000 at first, 0.2500 at last, held out 0.3000" in out
    assert f"use it: darkroom generate '<tiger>' --lora '{run / 'lora.safetensors'}'" in out
    told = command("info", run, "--json").json
    assert told["made"] == [str(run / "lora.safetensors")]
    (run / "lora.safetensors").rename(run / "upscaler.safetensors")
    assert f"use it: darkroom upscale PICTURE --upscaler '{run / 'upscaler.safetensors'}'" in command("info", run).out
    (run / "recipe.json").write_text("[")
    assert "recipe.json" in command("info", run).sentence


def test_a_sheet_of_all(command: Run, model: Path, tmp_path: Path) -> None:
    asked = ("generate", "a fox", "-n", 3, "--model", model, "--size", "32x32", "--steps", 1, "--seed", 1, "--sheet")
    told = command(*asked, "-o", tmp_path / "all", "--json").json
    assert len(told["images"]) == 3
    assert Path(told["sheet"]).name == "sheet-a-fox-1.png"
    sheet = read_metadata(told["sheet"])
    assert sheet.recipe["sweep"] == [{"name": "seed", "values": [1, 2, 3]}]
    assert sheet.width > 2 * 32
    alone = command(*asked, "two owls", "-o", tmp_path / "one.png")
    assert alone.paths == [tmp_path / "one.png"]
    assert [path.name for path in tmp_path.glob("*.png")] == ["one.png"]


def test_comments_in_a_file_of_prompts(command: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# animals\na fox\n\n  # not this\nan owl # that is text\n")
    asked = ("generate", "--prompts", tmp_path / "p.txt", "--model", model, "--steps", 1, "--seed", 1, "-o", tmp_path)
    assert [path.name for path in command(*asked).paths] == ["a-fox-1.png", "an-owl-that-is-text-2.png"]


# --- pictures in a terminal


def test_sixels_say_the_picture() -> None:
    """Read back by a reader written for this test, from the VT340's manual."""
    colours = np.array([[[255, 0, 0]] * 5 + [[0, 0, 255]] * 4] * 8, np.uint8)  # 9 wide, 8 high: two bands
    text = terminal.sixel(Image.fromarray(colours))
    assert text.startswith('\x1bPq"1;1;9;8')
    assert text.endswith("\x1b\\")
    palette, read = {}, np.zeros((12, 9, 3), np.uint8)
    x = y = colour = 0
    for mark in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([?-~])|(\$)|(-)", text[11:-2]):
        if mark[1]:
            palette[int(mark[1])] = [round(int(mark[i]) * 2.55) for i in (2, 3, 4)]
        elif mark[5]:
            colour = int(mark[5])
        elif mark[9]:
            x = 0
        elif mark[10]:
            x, y = 0, y + 6
        else:
            end = x + int(mark[6] or 1)
            for bit in range(6):
                if (ord(mark[7] or mark[8]) - 63) >> bit & 1:
                    read[y + bit, x:end] = palette[colour]
            x = end
    assert np.array_equal(read[:8], colours)
    assert not read[8:].any()


def test_kitty_and_iterm_carry_the_png() -> None:
    noise = Image.effect_noise((100, 80), 50).convert("RGB")
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", terminal.kitty(noise))
    assert pieces[0][0] == "a=T,f=100,q=2,m=1"
    assert [keys for keys, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    assert all(len(piece) <= 4096 for _, piece in pieces)
    assert Image.open(io.BytesIO(base64.b64decode("".join(p for _, p in pieces)))).tobytes() == noise.tobytes()
    told = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);width=100px:(.*)\a", terminal.iterm2(noise))
    assert told is not None
    assert int(told[1]) == len(base64.b64decode(told[2]))


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-kitty", "TMUX": "x"}, None),
        ({"TERM": "xterm"}, None),
    ],
)
def test_which_terminals_can(environment: dict[str, str], how: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal, "_has_sixel", lambda: False)
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal.protocol() == how


def test_a_preview_where_there_is_no_terminal_is_said(command: Run, model: Path, tmp_path: Path) -> None:
    answer = command("generate", "a fox", "--preview", "--model", model, "--steps", 1, "-o", tmp_path)
    assert answer.code == 0
    assert "this terminal shows no pictures" in answer.sentence
