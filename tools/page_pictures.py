"""Screenshots of the page, of twelve views in four manners, to be looked at after a change: `make page-pictures`.

    python tools/page_pictures.py [FOLDER]         (default: out/page)

Needs the extra `serve`, playwright for Python and Debian's chromium (CHROMIUM names another). It starts a server with
the embedded model and a folder of its own, and draws what it shows.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
MANNERS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}, "locale": "en-US"},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}, "locale": "en-US"},
    "phone": {"color_scheme": "light", "locale": "en-US", "device_scale_factor": 2, **PHONE},
    "korean": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}, "locale": "ko-KR"},
}
PROMPTS = ("a large fox on a yellow background", "a small owl", "a red apple on a blue background", "two cats")
SECONDS = 60


def asked(url: str, path: str, body: Any = None) -> Any:
    """A route's answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def until(true: Any, seconds: float = 300) -> Any:
    """Wait until something is true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := true():
                return found
        except OSError:
            pass  # the server is not there yet
        time.sleep(0.2)
    raise SystemExit("the server did not get ready, or a picture did not get finished")


def shoot(browser: Any, url: str, sweep: str, folder: Path) -> int:
    """Write the screenshots; how many."""
    count = 0
    for manner, options in MANNERS.items():
        context = browser.new_context(**options)
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()

        def keep(name: str, manner: str = manner, page: Any = page) -> None:
            nonlocal count
            count += 1
            page.wait_for_timeout(400)
            page.screenshot(path=folder / f"{count:02}-{name}-{manner}.png")

        page.goto(url)
        page.wait_for_selector(".cells li >> nth=3")
        page.wait_for_selector(".examples button")
        keep("begin")
        page.fill("#field-prompt", "a large fo")
        page.press("#field-prompt", "End")
        page.wait_for_selector('[role="option"]')
        keep("words")
        page.fill("#field-prompt", "a (large:1.2) fox on a green background")
        page.click(".compose > details > summary")
        page.wait_for_selector(".adapters li", state="attached")
        page.evaluate("document.querySelectorAll('.compose details').forEach((one) => { one.open = true })")
        page.wait_for_selector(".adapters li")
        page.fill("#field-steps", "60")
        keep("more")
        page.evaluate("document.querySelector('#sweep').scrollIntoView()")
        keep("more-below")
        page.evaluate("document.querySelector('.compose > details').open = false")
        page.evaluate("scrollTo(0, 0)")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".canvas .preview")
        keep("drawing")
        page.click("nav a[href='#gallery']")
        page.wait_for_selector("#search")
        keep("gallery")
        page.click(".cells button")
        page.wait_for_selector("dialog.viewer dl")
        keep("viewer")
        page.evaluate("location.hash = 'sweeps'")
        page.wait_for_selector(".sweeps li")
        page.click(".sweeps li a")
        page.wait_for_selector(".sheet button.cell >> nth=5")
        keep("grid")
        page.evaluate("location.hash = 'settings'")
        page.wait_for_selector("section.settings")
        keep("settings")
        page.evaluate("location.hash = 'gallery'")
        page.wait_for_selector("#search")
        page.click(".cells button[data-at='1']")
        page.wait_for_selector("dialog.viewer dl")
        page.evaluate("[...document.querySelectorAll('dialog.viewer .about button, dialog.viewer .row button')]"
                      ".find((one) => /Repaint|다시/.test(one.textContent))?.click()")  # fmt: skip
        page.wait_for_selector("dialog.masking canvas")
        keep("mask")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog.masking", state="detached")
        keep("start")
        page.evaluate("location.hash = 'draw'")
        page.click("header nav > button")
        page.wait_for_selector("dialog.ask")
        keep("keys")
        context.close()
    return count


def main() -> None:
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/page")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9]-*.png"):
        old.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "darkroom", "serve", "--port", str(port), "--data", data]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: urllib.request.urlopen(f"{url}/readyz", timeout=5).status == 200)
            for seed, prompt in enumerate(PROMPTS):
                asked(url, "/api/jobs", {"prompt": prompt, "seed": seed})
            body = {"prompt": "a small owl", "seed": 7, "axes": ["steps=5,10,20", "guidance=1,4"]}
            sweep = asked(url, "/api/sweeps", body)["id"]
            until(lambda: len(asked(url, "/api/images")["images"]) == len(PROMPTS) + 6)
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
                count = shoot(browser, url, sweep, folder)
                browser.close()
        finally:
            server.terminate()
            server.wait(30)
    print(f"{count} pictures in {folder}; look at them")


if __name__ == "__main__":
    main()
