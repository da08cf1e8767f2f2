"""The end of a run: what to type next, a sheet of before and after, the loss."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageChops

from darkroom.training.chart import SERIES, WIDTH, chart, draw_loss, points_of, ticks
from darkroom.training.kinds import KINDS, Source
from darkroom.training.recipe import override
from darkroom.training.run import conclude
from darkroom.training.run import run as train
from darkroom.training.sheets import Use, spread

# --- what to type next


@pytest.mark.parametrize(
    ("use", "model", "command"),
    [
        (Use(lora=Path("run/lora.safetensors")), None, "darkroom generate 'a fox' --lora run/lora.safetensors"),
        (Use(lora=Path("l")), "v1-5/", "darkroom generate 'a fox' --model v1-5/ --lora l"),
        (Use(model=Path("run/model")), "v1-5/", "darkroom generate 'a fox' --model run/model"),
        (Use(model=Path("run/model"), begun=False), "run/vae", "darkroom generate 'a fox' --model run/model"),
        (Use(embedding=Path("w")), None, "darkroom generate 'a fox' --embedding w"),
        (
            Use(control=Path("net"), hint="canny"), None,
            "darkroom generate 'a fox' --control net=canny@picture.png",
        ),
        (
            Use(model=Path("m"), paints=True), None,
            "darkroom generate 'a fox' --model m --image picture.png --mask mask.png",
        ),
        (
            Use(lora=Path("l"), options={"sampler": "lcm", "steps": 4, "guidance_scale": 1.0}), None,
            "darkroom generate 'a fox' --lora l --sampler lcm --steps 4 --guidance 1",
        ),
        (Use(instead=("evaluate", "--vae", "v")), "x", "darkroom evaluate --vae v"),
    ],
)  # fmt: skip
def test_what_to_type_next(use: Use, model: str | None, command: str) -> None:
    assert use.command("a fox", model) == command


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_says_what_to_type_next(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that there is, which names what was made by its way from here."""
    from darkroom.cli import COMMANDS

    recipe = KINDS[name].recipe_of()
    recipe = getattr(recipe, "unet", recipe)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(recipe.stage.use(recipe, tmp_path / "run" / "made").command("a 'fox'", None))
    assert words[0] == "darkroom"
    assert words[1] in COMMANDS
    assert any(word.startswith("run/made") or word.endswith("=run/made") for word in words)
    assert ("a 'fox'" in words) == (words[1] == "generate")


def test_captions_are_taken_from_all_of_them() -> None:
    assert spread(["a", "", "b", "a"]) == ["a", "b"]
    assert spread([str(i) for i in range(20)]) == ["0", "5", "10", "15"]
    assert spread(["", ""]) == []


# --- the loss


def test_round_ticks() -> None:
    assert ticks(0, 250) == [0, 50, 100, 150, 200, 250]
    assert ticks(0.27, 0.41) == [0.3, 0.35, 0.4]
    assert ticks(3, 3) == [3]


def test_points_are_finite_and_in_order() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 2, "loss": 1}, {"step": 1, "loss": 2.0}, {"step": 3, "loss": float("nan")}, {"step": 4},
        {"step": 2, "loss": 3.0}, {"step": 5, "loss": "much"},
    ]  # fmt: skip
    assert points_of(rows, "loss") == [(1.0, 2.0), (2.0, 3.0)]


def test_the_chart_is_a_picture_of_the_log(tmp_path: Path) -> None:
    rows = [{"step": 50 * i, "loss": 0.6 / i, **({"validation": 0.7} if i == 4 else {})} for i in (1, 2, 4)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = draw_loss(tmp_path, "run <1> & more")
    assert made == tmp_path / "loss.svg"
    space = "{http://www.w3.org/2000/svg}"
    svg = ElementTree.parse(made).getroot()
    lines = {line.get("stroke"): line.get("points", "").split() for line in svg.iter(f"{space}polyline")}
    loss = [tuple(map(float, point.split(","))) for point in lines[SERIES["loss"][1]]]
    assert [x for x, _ in loss] == pytest.approx([64 + f * (WIDTH - 80) for f in (0.25, 0.5, 1)], abs=0.1)
    heights = [y for _, y in loss]
    assert (heights[2] - heights[1]) / (heights[1] - heights[0]) == pytest.approx(0.5, abs=0.01)
    assert len(lines[SERIES["validation"][1]]) == 1
    texts = [text.text for text in svg.iter(f"{space}text")]
    assert texts[0] == "run <1> & more"
    assert {"loss 0.15", "held out 0.7", "200", "step"} <= set(texts)


def test_a_log_of_one_row_is_no_chart(tmp_path: Path) -> None:
    assert draw_loss(tmp_path, "run") is None
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert draw_loss(tmp_path, "run") is None
    assert list(tmp_path.iterdir()) == [tmp_path / "log.jsonl"]


def test_a_loss_that_stays_is_drawn() -> None:
    ElementTree.fromstring(chart({"loss": [(1, 0.0), (2, 0.0)]}, ""))
    ElementTree.fromstring(chart({"loss": [(1, -3.0), (2, -3.0)]}, ""))


# --- the sheet


@pytest.mark.parametrize("name", ["lora", "textual-inversion", "controlnet", "inpainting"])
def test_before_and_after_of_the_same_seeds(name: str, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The first row is the model as it was, and the second what the file makes of it: another picture."""
    changes = {
        "lora": ["rank=2", "targets=all", "lr=0.05"],
        "textual-inversion": ["word=<new>", "vectors=1", "lr=1"],
        "controlnet": ["attention=false", "hint_widths=4,8,8,16", "lr=1"],
        "inpainting": ["lr=0.1"],
    }[name]
    recipe = override(
        KINDS[name].recipe_of(model=str(tiny_model)),
        ["steps=3", "batch_size=2", "warmup=1", "log_every=1", "precision=float32", "compare=1", "ema=0", *changes],
    )
    source, output = Source(str(tiny_model), str(pictures)), tmp_path / "run"
    made = train(recipe, source, output)
    ending = conclude(recipe, source, output, made)
    assert ending.pictures == (output / "before-after.png", output / "loss.svg")
    assert str(made) in ending.next
    assert str(tiny_model) in ending.next or name == "inpainting"
    sheet = Image.open(output / "before-after.png").convert("RGB")
    rows = 2 if name in ("lora", "textual-inversion") else 3  # the picture or its like above them
    side, gap = 64, 6
    bottom = sheet.height - 2 * gap
    found = [
        sheet.crop((0, bottom - (i + 1) * side - i * gap, sheet.width, bottom - i * (side + gap))) for i in range(rows)
    ]
    assert ImageChops.difference(found[0], found[1]).getbbox() is not None


def test_no_sheet_where_none_is_asked_for(tmp_path: Path) -> None:
    recipe = override(KINDS["lora"].recipe_of(), ["compare=0", "caption=a tiger"])
    ending = conclude(recipe, Source(), tmp_path, tmp_path / "lora.safetensors")
    assert ending.pictures == ()
    assert "generate 'a tiger' --lora" in ending.next
