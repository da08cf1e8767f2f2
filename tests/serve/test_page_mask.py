"""The page in a browser: masks, pixel for pixel, and borders that are dragged."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageDraw

from .browser import Opened, draw, until
from .conftest import Running


def sent(server: Running, role: str) -> Image.Image:
    """A picture of the newest job, as the server got it."""
    job = server.client.get("/api/jobs?state=finished").json()["jobs"][0]
    return Image.open(io.BytesIO(server.client.get(f"/api/inputs/{job['inputs'][role]}").content)).convert("L")


def painting(browse: Opened, server: Running, **options: Any) -> Any:
    """The mask editor, over the newest picture."""
    page = browse(server, "/#gallery", ".cells li", **options)
    page.click(".cells [data-at]")
    page.click("dialog.viewer >> text=Repaint a part")
    page.wait_for_selector("dialog.masking canvas")
    return page


@pytest.mark.parametrize("ratio", [1, 2])
def test_a_drawn_rectangle_is_exactly_those_pixels(serve: Callable[..., Running], browse: Opened, ratio: int) -> None:
    """At three zooms, on screens of two densities."""
    server = serve()
    server.ended(server.post(prompt="an owl", width=96, height=64)["id"])
    page = painting(browse, server, device_scale_factor=ratio)
    for i, (zoom, box) in enumerate({"out": (1, 2, 95, 63), "fit": (30, 20, 61, 45), "in": (40, 25, 58, 40)}.items()):
        if i:
            page.click("text=Change the mask")
            page.click("dialog.masking >> text=Clear")
        page.click("dialog.masking >> text=Fit")
        if zoom == "out":
            for _ in range(4):
                page.click('dialog.masking [aria-label="Zoom out"]')
        sight = page.locator("dialog.masking .sight").bounding_box()
        if zoom == "in":
            page.mouse.move(sight["x"] + 0.53 * sight["width"], sight["y"] + 0.47 * sight["height"])
            page.mouse.wheel(0, -171)
        page.click("dialog.masking >> text=Rectangle >> nth=0")
        shown = page.locator("dialog.masking canvas").bounding_box()
        scale = shown["width"] / 96
        assert scale != pytest.approx(round(scale), abs=1e-3) or zoom != "in"
        page.mouse.move(shown["x"] + box[2] * scale, shown["y"] + box[1] * scale)  # from the right upper corner
        page.mouse.down()
        page.mouse.move(shown["x"] + box[0] * scale, shown["y"] + box[3] * scale, steps=3)
        page.mouse.up()
        page.click("dialog.masking >> text=Done")
        page.wait_for_selector("text=Change the mask")
        draw(page, f"a fox {i}")
        page.wait_for_selector(f'.canvas a img[alt="a fox {i}"]')
        expected = Image.new("L", (96, 64))
        ImageDraw.Draw(expected).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
        assert sent(server, "mask").tobytes() == expected.tobytes(), (zoom, scale)


def test_a_picture_is_sent_once_and_made_smaller_when_asked(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(max_pixels=10_000)
    page = browse(server)
    sends: list[str] = []
    page.on("request", lambda one: sends.append(one.url[-64:]) if one.method == "PUT" and "inputs" in one.url else None)

    def choose(page: Any, side: int) -> str:
        buffer = io.BytesIO()
        Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), 50).save(buffer, "PNG")
        picture = {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
        page.locator("label.filepick", has_text="Choose a picture").locator("input").set_input_files([picture])
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    small = choose(page, 80)
    for i in range(2):
        draw(page, f"a fox {i}")
        page.wait_for_selector(f'.canvas a img[alt="a fox {i}"]')
    page.reload()  # the draft and its picture are kept
    page.wait_for_selector(".inputs .thumb img")
    draw(page, "a cat")
    page.wait_for_selector('.canvas a img[alt="a cat"]')
    assert sends == [small]
    assert sent(server, "image").size == (80, 80)
    page.click("text=Take the picture out")
    choose(page, 200)
    page.click("dialog.ask >> text=Cancel")
    page.wait_for_selector(".notice >> text=The picture was left out.")
    choose(page, 200)
    assert "200 × 200 pixels" in page.inner_text("dialog.ask")
    page.click("dialog.ask >> text=Make it smaller")
    page.wait_for_selector(".inputs .thumb img")
    draw(page, "a bear")
    page.wait_for_selector('.canvas a img[alt="a bear"]')
    assert sent(server, "image").size == (100, 100)
    # At an address without https browsers have no SHA-256: the page's own finds the same names.
    other = browse(server)
    other.evaluate("Object.defineProperty(crypto, 'subtle', { value: undefined })")
    other.on("request", lambda one: pytest.fail("it was sent again") if one.method == "PUT" else None)
    choose(other, 80)
    draw(other, "a wolf")
    other.wait_for_selector('.canvas a img[alt="a wolf"]')


def test_a_mask_is_loaded_turned_around_saved_and_painted_by_a_pen(
    serve: Callable[..., Running], browse: Opened
) -> None:
    server = serve()
    server.ended(server.post(prompt="an owl", width=96, height=64)["id"])
    page = painting(browse, server)
    given, buffer = Image.new("L", (96, 64)), io.BytesIO()
    ImageDraw.Draw(given).rectangle((0, 0, 47, 63), fill=255)
    given.save(buffer, "PNG")
    page.locator("dialog.masking input[type=file]").set_input_files(
        [{"name": "mask.png", "mimeType": "image/png", "buffer": buffer.getvalue()}]
    )
    until(page, "!document.querySelector('dialog.masking [title=\"Ctrl+Z\"]').disabled")
    page.keyboard.press("x")
    with page.expect_download() as download:
        page.click("text=Save the mask")
    saved = Image.open(download.value.path()).convert("L")
    assert saved.tobytes() == given.point(lambda value: 255 - value).tobytes()
    page.keyboard.press("Control+z")
    # A pen paints wider the harder it is pressed; Chromium's mouse knows no pressure, so the events are made.
    page.evaluate(
        """() => {
            const sight = document.querySelector('dialog.masking .sight')
            const box = document.querySelector('dialog.masking canvas').getBoundingClientRect()
            sight.setPointerCapture = () => undefined
            for (const [pressure, at] of [[0.2, 0.6], [0.9, 0.85]]) {
                const event = { pointerId: 9, pointerType: 'pen', button: 0, buttons: 1, bubbles: true,
                                clientX: box.x + at * box.width, clientY: box.y + box.height / 2, pressure }
                sight.dispatchEvent(new PointerEvent('pointerdown', event))
                sight.dispatchEvent(new PointerEvent('pointerup', event))
            }
        }"""
    )
    page.click("dialog.masking >> text=Done")
    page.wait_for_selector("text=Change the mask")
    draw(page, "a fox")
    page.wait_for_selector('.canvas a img[alt="a fox"]')
    page.fill("#field-prompt", "a cat")  # another prompt leaves the mask
    assert page.locator("text=Change the mask").count() == 1
    mask = sent(server, "mask")
    assert mask.crop((0, 0, 48, 64)).getextrema() == (255, 255)
    light, hard = (sum(value > 0 for value in mask.crop((x, 0, x + 24, 64)).tobytes()) for x in (48, 72))
    assert 0 < 4 * light < hard


def test_a_border_is_dragged_outwards_and_that_is_drawn(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    server.ended(server.post(prompt="an owl", width=96, height=64)["id"])
    page = browse(server, "/#gallery", ".cells li")
    page.click(".cells [data-at]")
    page.click("dialog.viewer >> text=Start from it")
    page.click("summary >> text=Extend the picture")
    page.wait_for_selector(".extend .handle")
    until(page, "document.querySelector('.extend img').getBoundingClientRect().width > 50")
    page.locator(".extend").scroll_into_view_if_needed()
    scale = page.locator(".extend img").bounding_box()["width"] / 96

    def drag(selector: str, dx: float, dy: float) -> None:
        box = page.locator(selector).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx, y + dy, steps=3)
        assert (
            abs(page.locator(selector).bounding_box()["x"] - box["x"] - dx) <= 4 * scale + 1
        )  # it follows the pointer
        page.mouse.up()

    drag('.handle[aria-label$="Right"]', 33 * scale, 5)
    page.wait_for_selector("text=It becomes 128 × 64 pixels.")
    page.locator('.handle[aria-label$="Top"]').focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("text=It becomes 128 × 128 pixels.")
    scale = page.locator(".extend img").bounding_box()["width"] / 96
    drag(".handle.corner >> nth=3", -17 * scale, 8 * scale)  # left and below
    assert [page.input_value(f"#field-{side}") for side in ("left", "top", "right", "bottom")] == [
        "16",
        "64",
        "32",
        "8",
    ]
    draw(page, "a fox")
    page.wait_for_selector('.canvas a img[alt="a fox"]')
    job = server.client.get("/api/jobs?state=finished").json()["jobs"][0]
    assert job["request"]["outpaint"] == [16, 64, 32, 8]
    assert (job["images"][0]["width"], job["images"][0]["height"]) == (144, 136)
