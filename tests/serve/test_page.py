"""The page in a browser: what somebody does with it, against a real server with the fake engine."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .browser import Opened, draw, finished, fits, until
from .conftest import Running

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "&lt;b&gt; &amp; <b>bold</b>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "</textarea><script>alert(1)</script>",
    "\u202eoff\u202c",
]


def test_a_picture_is_drawn_with_previews_and_found_again(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0.03"})
    page = browse(server)
    draw(page, "an owl, slow")
    page.wait_for_selector(".canvas .preview")
    assert page.evaluate("document.activeElement.id") == "field-prompt"  # the prompt keeps the focus
    assert page.locator(".queue li").count() == 1
    picture = finished(page, "an owl, slow")
    until(page, "document.querySelector('.canvas a img').naturalWidth === 64")
    assert picture.is_visible()
    draw(page, "a fox")
    finished(page, "a fox")
    page.click("nav >> text=Gallery")
    page.wait_for_selector(".cells li >> nth=1")
    page.fill("#search", "owl")
    until(page, "document.querySelectorAll('.cells li').length === 1")
    page.click(".cells button")
    page.wait_for_selector("dialog.viewer >> text=an owl, slow")
    page.click("text=Use this recipe")
    page.wait_for_selector("#field-seed")
    assert page.input_value("#field-prompt") == "an owl, slow"
    first = server.client.get("/api/images", params={"q": "owl"}).json()["images"][0]
    assert page.input_value("#field-seed") == first["seed"]


def test_a_reload_in_the_middle_and_a_killed_server_lose_nothing(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0.2"})
    page = browse(server)
    for i in range(5):
        draw(page, f"owl {i}, slow")
        until(page, f"document.querySelectorAll('.queue li').length === {i + 1}")
    page.fill("#field-prompt", "not sent yet")
    page.reload()
    until(page, "document.querySelectorAll('.queue li').length > 0")
    assert page.input_value("#field-prompt") == "not sent yet"
    server.kill()
    page.wait_for_selector(".banner")
    again = serve(port=server.port, environment={"FAKE_TICK": "0.005"})
    page.wait_for_selector(".banner", state="detached")
    again.until(lambda: len(again.client.get("/api/images").json()["images"]) == 5)
    until(page, "document.querySelectorAll('.cells li').length === 5")
    assert page.locator(".queue li").count() == 0


def test_cancelling_is_one_key_twice_and_keeps_what_is_done(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0.05"})
    page = browse(server)
    draw(page, "an owl, slow")
    page.wait_for_selector(".canvas .preview")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    until(page, "document.querySelectorAll('.queue li').length === 0")
    assert [job["state"] for job in server.client.get("/api/jobs?state=cancelled").json()["jobs"]] == ["cancelled"]
    draw(page, "a fox, fail")
    page.wait_for_selector(".queue li.failed")
    assert "it came out as NaN" in page.inner_text(".queue li.failed")


def test_a_deleted_picture_comes_back(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    for prompt in ("an owl", "a fox"):
        server.ended(server.post(prompt=prompt)["id"])
    page = browse(server, "/#gallery", ".cells li >> nth=1")
    page.click('.cells button[aria-label="Open a fox"]')
    page.wait_for_selector("dialog.viewer >> text=Use this recipe")
    page.keyboard.press("Delete")
    page.wait_for_selector('dialog.viewer[aria-label="an owl"]')
    assert [one["prompt"] for one in server.client.get("/api/images").json()["images"]] == ["an owl"]
    page.click("dialog.viewer .notice >> text=Undo")
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 2)
    page.click("dialog.viewer >> text=Close")
    until(page, "document.querySelectorAll('.cells li').length === 2")
    page.click('.cells button[aria-label="Open a fox"]')
    page.click("dialog.viewer >> text=Pin")
    page.wait_for_selector("dialog.viewer >> text=Unpin")
    page.click("dialog.viewer >> text=Again, with a new seed")
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 3)
    prompts = [one["prompt"] for one in server.client.get("/api/images").json()["images"]]
    assert prompts == ["a fox", "a fox", "an owl"]
    page.click("nav >> text=Gallery")
    page.click('.cells button[aria-label="Open an owl"]')
    with page.expect_download() as download:
        page.click("dialog.viewer >> text=Download")
    assert Image.open(download.value.path()).size == (64, 64)


def test_a_mask_is_sent_as_it_was_painted(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    server.ended(server.post(prompt="an owl", width=96, height=64)["id"])
    page = browse(server, device_scale_factor=2)
    page.click(".cells button")
    page.click("dialog.viewer >> text=Repaint a part")
    page.wait_for_selector("dialog.masking canvas")
    page.click("summary >> text=Rectangle by numbers")
    for label, value in (("Left", 10), ("Top", 5), ("Width", 30), ("Height", 20)):
        page.get_by_label(label, exact=True).locator("visible=true").fill(str(value))
    page.click("text=Add the rectangle")
    box = page.locator("dialog.masking .sight").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 50, box["y"] + box["height"] / 2 + 30, steps=4)
    page.mouse.up()
    page.keyboard.press("Control+z")  # the stroke; the rectangle stays
    page.click("dialog.masking >> text=Done")
    page.wait_for_selector("text=Change the mask")
    draw(page, "a fox")
    finished(page, "a fox")
    job = server.client.get("/api/jobs?state=finished").json()["jobs"][0]
    assert job["request"]["strength"] == 0.6
    files = sorted((server.data / "inputs").rglob("*"), key=lambda path: path.stat().st_mtime)
    masks = [Image.open(path) for path in files if path.is_file()]
    (mask,) = [
        one for one in masks if one.convert("L").getcolors(2) is not None and len(one.convert("L").getcolors(2)) == 2
    ]
    expected = Image.new("L", (96, 64))
    expected.paste(255, (10, 5, 40, 25))
    assert mask.convert("L").tobytes() == expected.tobytes()


def test_a_dropped_picture_brings_its_recipe(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    job = server.ended(server.post(prompt="a tiger", seed="18446744073709551615", steps=7)["id"])
    data = server.client.get(f"/api/images/{job['images'][0]['id']}/file").content
    page = browse(server)
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer()
            data.items.add(new File([new Uint8Array(bytes)], '<b>a.png</b>', { type: 'image/png' }))
            dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
        }""",
        list(data),
    )
    assert "<b>a.png</b>" in page.inner_text("dialog.ask")
    assert "a tiger" in page.inner_text("dialog.ask .brief")
    page.click("dialog.ask >> text=Use this recipe")
    page.wait_for_selector("#field-steps")
    assert page.input_value("#field-prompt") == "a tiger"
    assert page.input_value("#field-steps") == "7"
    assert page.input_value("#field-seed") == "18446744073709551615"  # more than a JavaScript number holds
    page.keyboard.press("Control+Enter")
    finished(page, "a tiger")
    newest = server.client.get("/api/images").json()["images"][0]
    assert newest["seed"] == "18446744073709551615"


def test_what_is_wrong_is_said_at_the_field(serve: Callable[..., Running], browse: Opened) -> None:
    page = browse(serve())
    page.click("summary >> text=More")
    page.fill("#field-steps", "100000")
    page.fill("#field-prompt", "a fox")
    page.click("text=Generate")
    page.wait_for_selector("#fault-steps")
    assert page.get_attribute("#field-steps", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "field-steps"
    page.fill("#field-steps", "4")
    page.wait_for_selector("#fault-steps", state="detached")
    page.press("#field-steps", "Enter")  # Enter in a number field draws
    finished(page, "a fox")


def test_texts_from_outside_stay_texts(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    for prompt in NASTY:
        server.ended(server.post(prompt=prompt)["id"])
    page = browse(server, "/#gallery", f".cells li >> nth={len(NASTY) - 1}")
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    labels = page.eval_on_selector_all(".cells [data-at]", "(all) => all.map((one) => one.getAttribute('aria-label'))")
    assert labels == [f"Open {prompt}" for prompt in reversed(NASTY)]
    page.click(".cells button")
    for prompt in reversed(NASTY):
        until(page, "(text) => document.querySelector('dialog dd')?.textContent === text", prompt)
        page.keyboard.press("ArrowRight")


def test_a_key_is_asked_for_once_and_kept_nowhere(
    serve: Callable[..., Running], browse: Opened, tmp_path: Path
) -> None:
    from darkroom.serve.keys import add_key

    key = add_key(tmp_path / "keys", "mina", {}, admin=False)
    server = serve(keys=str(tmp_path / "keys"))
    page = browse(server, wait="input[type=password]")
    page.fill("input[type=password]", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-fault:not(:empty)")
    page.fill("input[type=password]", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#field-prompt")
    draw(page, "a fox")
    finished(page, "a fox")
    until(page, "document.querySelector('.canvas a img').naturalWidth === 64")
    assert key not in page.evaluate("JSON.stringify({...localStorage}) + location.href + document.cookie")
    page.reload()
    page.wait_for_selector(".cells li")
    page.goto(server.url + "/#settings")
    page.click("text=Sign out")
    page.wait_for_selector("input[type=password]")


def test_it_fits_a_phone_and_speaks_korean(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    phone = {"viewport": {"width": 320, "height": 640}, "locale": "ko-KR", "has_touch": True, "is_mobile": True}
    page = browse(server, color_scheme="dark", **phone)
    assert page.inner_text("form button.main") == "그리기"
    page.fill("#field-prompt", "여우")
    page.tap("form button.main")
    finished(page, "여우")
    page.tap("summary >> text=더 보기")
    page.wait_for_selector("#field-steps")
    fits(page)
    page.tap(".canvas a")
    page.wait_for_selector("dialog.viewer >> text=이 레시피 사용")
    fits(page)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"


def test_a_large_gallery_shows_only_what_is_near(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0"})
    jobs = [server.post(prompt=f"owl {i}", n=10, steps=1)["id"] for i in range(20)]
    for job in jobs:
        server.ended(job)
    page = browse(server, "/#gallery", ".cells li")
    for _ in range(40):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(50)
        if page.locator('[aria-posinset="200"]').count():
            break
    assert page.locator('[aria-posinset="200"]').count() == 1
    assert page.locator(".cells li").count() < 100


def test_a_picture_is_extended_and_compared(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    for prompt in ("an owl", "a fox"):
        server.ended(server.post(prompt=prompt)["id"])
    page = browse(server, "/#gallery", ".cells li >> nth=1")
    page.click('.cells button[aria-label="Open a fox"]')
    page.click("text=Set aside to compare")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('dialog.viewer[aria-label="an owl"]')
    page.keyboard.press("c")
    page.wait_for_selector(".compare img >> nth=1")
    until(page, "[...document.querySelectorAll('.compare img')].every((one) => one.naturalWidth === 64)")
    page.fill(".compare input", "25")
    style = "document.querySelector('.compare .before').style.clipPath"
    assert page.evaluate(style) in ("inset(0px 75% 0px 0px)", "inset(0 75% 0 0)")
    page.keyboard.press("c")
    page.click("text=Start from it")
    page.click("summary >> text=Extend the picture")
    page.fill("#field-right", "32")
    page.press("#field-right", "Enter")
    page.wait_for_selector('.canvas a img[alt="an owl"]')
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 3)
    assert server.client.get("/api/jobs?state=finished").json()["jobs"][0]["request"]["outpaint"] == [0, 0, 32, 0]


def test_a_picture_guides_a_control_net(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve()
    buffer = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(buffer, "PNG")
    page = browse(server)
    page.click("summary >> text=More")
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.locator("label.filepick", has_text="Add a ControlNet").locator("input").set_input_files([picture])
    page.click("text=Show what it follows")
    until(page, "document.querySelector('fieldset .thumb img')?.src.startsWith('blob:')")
    page.locator("label.filepick", has_text="Add a ControlNet").locator("input").set_input_files([picture])
    page.wait_for_selector("text=Show what it follows >> nth=1")
    draw(page, "a fox")
    finished(page, "a fox")
    page.reload()  # the draft's pictures are kept, too
    page.wait_for_selector("text=Show what it follows >> nth=1")
    job = server.client.get("/api/jobs?state=finished").json()["jobs"][0]
    assert [control["net"] for control in job["controls"]] == ["edges", "edges"]
    again = server.post(f"/api/jobs/{job['id']}/rerun")  # with the same control
    assert server.ended(again["id"])["state"] == "finished"
    assert len([path for path in (server.data / "inputs").rglob("*") if path.is_file()]) == 1
