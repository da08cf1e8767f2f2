"""Grids in the page, from the fields and from a picture; models, presets, styles and settings."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .browser import Opened, draw, finished, fits, until
from .conftest import Running


def test_a_grid_is_drawn_and_a_cell_is_used(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0.005"})
    page = browse(server)
    draw(page, "an owl")
    finished(page, "an owl")
    page.click(".canvas a")
    page.click("dialog.viewer >> text=Vary it in a grid")  # from any recipe
    until(page, "document.activeElement.id === 'field-axes'")
    page.fill(".axis >> nth=0 >> input", "2, 3, many")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fault-axes")  # what is wrong is said there
    page.fill(".axis >> nth=0 >> input", "2, 3, 4")
    page.locator(".axis >> nth=1 >> select").select_option("sampler")
    page.click(".axis button >> text=/^euler$/")
    page.click(".axis button >> text=/^lms$/")
    page.click("text=Draw the grid")
    page.wait_for_selector(".sheet button.cell >> nth=5")
    assert page.locator(".sheet th[scope=col]").all_inner_texts() == ["steps: 2", "steps: 3", "steps: 4"]
    assert page.locator(".sheet th[scope=row]").all_inner_texts() == ["sampler: euler", "sampler: lms"]
    with page.expect_download() as download:
        page.click("text=Download the sheet")
    (made,) = server.client.get("/api/sweeps").json()["sweeps"]
    sheet = server.client.get(f"/api/sweeps/{made['id']}/sheet").content
    assert Path(download.value.path()).read_bytes() == sheet
    assert Image.open(io.BytesIO(sheet)).width > 3 * 64
    page.reload()  # it is the server's
    page.wait_for_selector(".sheet button.cell >> nth=5")
    fits(page)
    page.click(".sheet tr:nth-child(2) td:nth-child(4) button.cell")
    page.wait_for_selector("#field-steps")
    assert page.input_value("#field-steps") == "4"
    assert page.input_value("#field-sampler") == "lms"
    page.click("nav >> text=Grids")
    page.click(f'.sweeps a[href="#sweeps/{made["id"]}"]')
    page.wait_for_selector(".sheet button.cell >> nth=5")


def test_styles_presets_and_settings_are_the_key_s(
    serve: Callable[..., Running], browse: Opened, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("first", "second"):
        (models / f"{name}.safetensors").write_bytes(b"x" * 2_000_000)
    (models / "styles.csv").write_text("name,prompt,negative_prompt\nInk,ink drawing of {prompt},photo\n")
    server = serve(models=str(models))
    page = browse(server)
    page.fill("#field-prompt", "an owl")
    page.click("summary >> text=More")
    page.click("summary >> text=Styles")
    page.click(".extras button >> text=Ink")
    assert page.input_value("#field-prompt") == "ink drawing of an owl"
    assert page.input_value("#field-negative") == "photo"
    page.fill("#field-prompt", "in oil")
    page.locator(".more details", has_text="Keep the prompt as a style").locator("input").fill("Oil")
    page.keyboard.press("Enter")
    page.fill("#field-prompt", "a fox")
    page.click(".extras button >> text=Oil")
    assert page.input_value("#field-prompt") == "a fox, in oil"
    page.fill("#field-steps", "9")
    page.click("summary >> text=Presets")
    page.locator(".more details", has_text="Keep these settings").locator("input").fill("Nine")
    page.keyboard.press("Enter")
    # A model says what it takes; the one that isn't loaded is loaded when a job needs it, and the queue goes on.
    assert "ready" in page.inner_text('#field-model option[value=""]')
    assert "MB" in page.inner_text('#field-model option[value="second"]')
    page.select_option("#field-model", "second")
    page.keyboard.press("Control+Enter")
    finished(page, "a fox, in oil")
    assert server.client.get("/api/jobs?state=finished").json()["jobs"][0]["model"] == "second"
    page.click("nav >> text=Settings")
    page.select_option("section.settings select >> nth=0", "ko")
    page.wait_for_selector("nav >> text=설정")
    page.select_option("section.settings select >> nth=1", "dark")
    page.click("section.settings .check input")
    server.until(lambda: server.client.get("/api/preferences").json().get("previews") is False)
    # Another device of the same key.
    other = browse(server, wait="nav >> text=설정")
    assert other.evaluate("document.documentElement.dataset.theme") == "dark"
    other.click("summary >> text=더 보기")
    other.click("summary >> text=프리셋")
    other.click(".extras button >> text=Nine")
    assert other.input_value("#field-steps") == "9"
    assert other.input_value("#field-prompt") == "a fox, in oil"
