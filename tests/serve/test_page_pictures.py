"""The page in a browser: a job's results, two pictures compared, and what can be done with one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from .browser import Opened, draw, until
from .conftest import Running
from .test_page_recipes import text


def images(server: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.client.get("/api/images").json()["images"]
    return found


def test_results_are_compared_with_the_original_and_one_is_kept(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    server.ended(server.post(prompt="an owl", image=text((200, 0, 0)), strength=0.5, outpaint=[64, 0, 0, 48])["id"])
    page = browse(server, "/#gallery", ".cells li")
    page.click(".cells [data-at]")
    page.click("dialog.viewer >> text=Use this recipe")
    page.wait_for_selector(".inputs .thumb")
    page.fill("#field-n", "3")
    draw(page, "a fox")
    page.click(".strip li:nth-child(2) button")
    page.keyboard.press("ArrowRight")
    until(page, "document.activeElement.matches('.strip li:nth-child(3) [aria-pressed=true]')")
    page.click(".stage >> text=Compare with the original")
    until(page, "document.querySelector('.compare .before img')?.naturalWidth === 64")
    frame, original = (page.locator(one).bounding_box() for one in (".compare .frame", ".compare .before img"))
    assert abs(frame["width"] / frame["height"] - 128 / 96) < 0.02
    assert abs(original["x"] - (frame["x"] + frame["width"] / 2)) < 1  # where it lies in the extended picture
    assert abs(original["height"] - frame["height"] / 2) < 1
    page.keyboard.press("Home")  # the slider has the focus
    assert page.evaluate("document.querySelector('.compare .before').style.clipPath").startswith("inset(0px 100%")
    page.mouse.move(frame["x"] + 10, frame["y"] + 10)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 4, frame["y"] + 30)
    page.mouse.up()
    assert page.input_value(".compare input") == "25"
    page.click(".stage >> text=Keep")
    page.wait_for_selector(".strip .pinned")
    assert sum(one["pinned"] for one in images(server)) == 1
    page.click(".stage >> text=Compare with the original")
    page.locator("h1").click()
    page.keyboard.down("o")
    page.wait_for_selector('.canvas img[alt="Starting picture"]')
    page.keyboard.up("o")
    page.wait_for_selector('.canvas img[alt="a fox"]')
    page.click(".stage >> text=Start from it")
    until(page, "document.querySelector('.inputs .thumb img').naturalWidth === 128")
    page.reload()  # the strip is there again, without what was deleted
    page.wait_for_selector(".strip li >> nth=2")
    page.click(".strip li:nth-child(2) button")
    page.click(".canvas a")
    page.click("dialog.viewer >> text=Delete")
    page.click("dialog.viewer >> text=Close")
    until(page, "document.querySelectorAll('.strip li').length === 2")


def test_a_picture_is_drawn_larger_and_goes_out_with_or_without_its_recipe(
    serve: Callable[..., Running], browse: Opened
) -> None:
    server = serve()
    server.ended(server.post(prompt="an owl", steps=7, negative_prompt="dog", loras=["sepia"])["id"])
    page = browse(server, "/#gallery", ".cells li", permissions=["clipboard-read", "clipboard-write"])
    page.click(".cells [data-at]")
    with page.expect_download() as download:
        page.click("dialog.viewer >> text=Download without recipe")
    whole = server.client.get(f"/api/images/{images(server)[0]['id']}/file").content
    bare = Image.open(download.value.path())
    assert bare.info == {}
    assert Image.open(io.BytesIO(whole)).info != {}
    assert bare.tobytes() == Image.open(io.BytesIO(whole)).tobytes()
    page.click("text=Copy the picture")
    page.wait_for_selector("dialog.viewer .notice >> text=Copied.")
    assert page.evaluate("navigator.clipboard.read().then((all) => all[0].types)") == ["image/png"]
    page.keyboard.press("i")
    until(page, "navigator.clipboard.readText().then((text) => text.includes('Negative prompt: dog'))")
    page.click("dialog.viewer >> text=Second pass")
    server.until(lambda: len(images(server)) == 2)
    larger = images(server)[0]
    job = server.job(larger["job"])
    assert (larger["width"], larger["height"], larger["seed"]) == (128, 128, images(server)[1]["seed"])
    assert (job["request"]["strength"], job["request"]["steps"]) == (0.35, 7)
    assert (job["request"]["negative_prompt"], job["loras"][0]["name"]) == ("dog", "sepia")
    page.click(".canvas a")
    page.click("dialog.viewer >> text=Enlarge")
    server.until(lambda: len(images(server)) == 3)
    assert server.job(images(server)[0]["job"])["upscale"] == {"scale": 2}


def test_a_picture_is_zoomed_and_turned_over_by_fingers_wheel_and_keys(
    serve: Callable[..., Running], browse: Opened
) -> None:
    server = serve()
    for prompt in ("an owl", "a fox"):
        server.ended(server.post(prompt=prompt)["id"])
    page = browse(server, "/#gallery", ".cells li", viewport={"width": 375, "height": 760}, has_touch=True)
    page.click('.cells [data-at="0"]')
    page.wait_for_selector(".zooms output:not(:empty)")
    shown = "document.querySelector('.zooms output').textContent"
    whole = page.evaluate(shown)
    box = page.locator(".sight").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    cdp = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (x - 20, y), (x + 20, y))
    for apart in (30, 40, 60):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    assert int(page.evaluate(shown)[:-1]) > 2 * int(whole[:-1])
    page.focus(".sight")
    page.keyboard.press("1")
    assert page.evaluate(shown) == "100%"
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    until(page, f"parseInt({shown}) > 200")
    page.keyboard.press("0")
    assert page.evaluate(shown) == whole
    touch("touchStart", (x + 60, y))
    touch("touchMove", (x - 60, y))
    touch("touchEnd")
    page.wait_for_selector('dialog.viewer[aria-label="an owl"]')
