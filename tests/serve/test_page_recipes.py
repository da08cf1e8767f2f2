"""The page in a browser: recipes of pictures, jobs and files, used again."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw

from .browser import Opened, draw, until
from .conftest import Running


def text(colour: tuple[int, int, int] | int, mode: str = "RGB") -> str:
    """A small picture as base64, with a square of a colour."""
    picture, buffer = Image.new(mode, (64, 48)), io.BytesIO()
    ImageDraw.Draw(picture).rectangle((8, 8, 40, 30), fill=colour)
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_recipe_is_used_with_all_that_it_was_made_from(serve: Callable[..., Running], browse: Opened) -> None:
    """The same picture, byte for byte, comes of what the page took over from the gallery."""
    server = serve()
    made: dict[str, Any] = {
        "image": text((200, 30, 30)),
        "mask": text(255, "L"),
        "clip_skip": 2,
        "outpaint": [0, 8, 0, 0],
    }
    control = {"net": "edges", "image": text((0, 200, 0)), "hint": "canny", "scale": 0.7, "stop": 0.5}
    asked = {"prompt": "an owl", "steps": 3, "strength": 0.4, "loras": ["sepia"]}
    first = server.ended(server.post(**asked, controls=[control], **made)["id"])
    page = browse(server, wait=".cells li")
    page.hover(".cells li")
    page.click('.cells button[aria-label="Recipe: an owl"]')
    page.click("dialog.ask >> text=Use this recipe")
    page.wait_for_selector(".inputs .maskshown")
    page.wait_for_selector("text=clip_skip: 2")
    page.wait_for_selector("text=loras: sepia 1")
    assert page.locator("fieldset .thumb").count() == 2
    page.keyboard.press("Control+Enter")
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 2)
    both = server.client.get("/api/images").json()["images"]
    assert both[0]["sha256"] == both[1]["sha256"]
    assert server.job(both[0]["job"])["controls"] == first["controls"]
    # Only the seed, and only the prompt, leave the rest; and what is taken out is not sent.
    page.click('button[aria-label="Delete: clip_skip"]')
    page.click("text=Take the picture out >> nth=0")
    draw(page, "a fox")
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 3)
    newest = server.client.get("/api/images").json()["images"][0]
    assert server.job(newest["job"])["request"]["clip_skip"] == 0
    assert server.job(newest["job"])["inputs"].keys() == {"control.0"}
    page.hover('.cells li:has(button[aria-label="Open an owl"])')
    page.click('.cells button[aria-label="Recipe: an owl"] >> nth=0')
    page.click("dialog.ask >> text=Only its prompt")
    until(page, "document.querySelector('#field-prompt').value === 'an owl'")
    assert page.input_value("#field-seed") == first["images"][0]["seed"]


def test_a_recipe_is_drawn_again_with_one_change(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    first = server.ended(server.post(prompt="an owl", seed=7, n=2)["id"])
    page = browse(server, "/#gallery", ".cells li")
    seed = server.client.get("/api/images").json()["images"][0]["seed"]
    page.click('.cells [data-at="0"]')
    page.click("dialog.viewer >> text=Again with one change")
    page.select_option("dialog.ask select", "steps")
    until(
        page, "document.querySelector('#change-value').value === '4'"
    )  # the recipe's; later it would join what we type
    page.fill("#change-value", "0")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#change-fault').textContent.includes('steps')")
    page.fill("#change-value", "6")
    page.keyboard.press("Enter")
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 3)
    newest = server.client.get("/api/images").json()["images"][0]
    job = server.job(newest["job"])
    assert (job["n"], newest["seed"], job["request"]["steps"]) == (1, seed, 6)
    assert job["request"]["sampler"] == first["request"]["sampler"]
    assert page.input_value("#field-prompt") == ""  # the draft is as it was
    draw(page, "a fox, fail")  # one that fails stays in the queue
    page.click(".queue li >> text=Recipe")
    page.click("dialog.ask >> text=Again with one change")
    page.select_option("dialog.ask select", "prompt")
    until(page, "document.querySelector('#change-value').value === 'a fox, fail'")
    page.fill("#change-value", "a fox")
    page.click("dialog.ask >> text=Generate")
    server.until(lambda: server.client.get("/api/images").json()["images"][0]["prompt"] == "a fox")


def test_what_of_a_recipe_can_not_be_had_is_said(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    job = server.ended(server.post(prompt="an owl", image=text((1, 2, 3)), strength=0.5)["id"])
    for path in (server.data / "inputs").iterdir():
        path.unlink()
    page = browse(server, "/#gallery", ".cells li")
    page.click('.cells [data-at="0"]')
    page.click("dialog.viewer >> text=Use this recipe")
    page.wait_for_selector(".notice >> text=Taken over, but not: Starting picture.")
    assert page.input_value("#field-prompt") == "an owl"
    assert server.job(job["id"])["inputs"].keys() == {"image"}
