"""What a maker waits for in the page: its first paint, the first preview after a key, typing while previews arrive.

    python benchmarks/page.py [--rounds 5] [--smoke]

A real server with the embedded model on one engine of one thread, and Debian's Chromium (CHROMIUM=...) through
playwright for Python. First paint: the browser's own first-contentful-paint of a new tab, cold cache, as it is and with
the processor slowed six times. First preview: from Ctrl+Enter to a preview in the page, by the page's own clock; the
model is loaded. Typing: each key's event to the next frame (Event Timing, which rounds to 8 ms) and long tasks of the
page while eight previews a second arrive, which are sent by a stand-in of the event source, as no single picture has so
many.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
START = """
import sys
from pathlib import Path
from darkroom.serve.options import ServeOptions
from darkroom.serve.run import run
options = ServeOptions(data=Path(sys.argv[1]), port=0, engines=1, cores=1)
sys.exit(run(options, lambda server: print(options.port, flush=True)))
"""
TEXT = "a large fox on a yellow background, in the evening, "
# Every preview is put where events put it: the page's listeners of its one EventSource are called.
STAND_IN = """
(() => {
    const Real = EventSource
    window.EventSource = class extends Real {
        constructor(...all) { super(...all); window.source = this }
    }
    window.first = null
    window.taken = 0
    new MutationObserver(() => {
        const shown = document.querySelector('.canvas .preview')
        if (shown && window.asked && window.first === null) window.first = performance.now() - window.asked
    }).observe(document, { subtree: true, childList: true, attributes: true })
    addEventListener('keydown', (event) => {
        if (event.key === 'Enter' && event.ctrlKey) { window.asked = performance.now(); window.first = null }
    }, true)
    window.keys = []
    window.tasks = []
    new PerformanceObserver((list) => {
        for (const one of list.getEntries()) if (one.name === 'keydown') window.keys.push(one.duration)
    }).observe({ type: 'event', durationThreshold: 16, buffered: true })
    new PerformanceObserver((list) => {
        for (const one of list.getEntries()) window.tasks.push(one.duration)
    }).observe({ type: 'longtask', buffered: true })
})()
"""


def painted(browser: Any, url: str, slower: int) -> float:
    """Milliseconds to the first contentful paint of a new tab with nothing cached."""
    context = browser.new_context()
    page = context.new_page()
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    page.goto(url)
    page.wait_for_selector("#field-prompt")
    paints = "performance.getEntriesByName('first-contentful-paint').map((one) => one.startTime)"
    while not (found := page.evaluate(paints)):
        page.wait_for_timeout(20)
    context.close()
    return float(found[0])


def previewed(page: Any) -> float:
    """Milliseconds from Ctrl+Enter to the first preview."""
    page.fill("#field-prompt", TEXT)
    page.keyboard.press("Control+Enter")
    while page.evaluate("window.first") is None:
        page.wait_for_timeout(5)
    found = float(page.evaluate("window.first"))
    while page.locator(".queue li").count():
        page.wait_for_timeout(50)
    return found


def typed(page: Any, keys: int) -> dict[str, float]:
    """What typing costs while a job runs and eight previews a second arrive."""
    page.fill("#field-prompt", TEXT)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".canvas .preview")
    shown = page.get_attribute(".canvas .preview", "src").partition("base64,")[2]
    page.evaluate(
        """(preview) => {
            const id = 'stand-in'
            const job = { id, state: 'running', position: null, step: 1, steps: 1000, request: { prompt: 'a fox' },
                          images: [], n: 1, error: null, created: Date.now(), seconds: 100, inputs: {}, model: '',
                          loras: [], controls: [], upscale: null, finished: null, alias: null }
            const send = (kind, data) =>
                window.source.dispatchEvent(new MessageEvent(kind, { data: JSON.stringify(data) }))
            send('progress', job)
            window.sending = setInterval(() => {
                window.taken++
                send('progress', { ...job, step: window.taken })
                send('preview', { id, index: 0, preview })
            }, 125)
            window.keys.length = 0
            window.tasks.length = 0
        }""",
        shown,
    )
    page.focus("#field-prompt")
    before, began = page.evaluate("window.taken"), time.monotonic()
    for i in range(keys):
        page.keyboard.type(TEXT[i % len(TEXT)])
        page.wait_for_timeout(60)
    seconds = time.monotonic() - began
    page.evaluate("clearInterval(window.sending)")
    found, tasks = page.evaluate("window.keys"), page.evaluate("window.tasks")
    return {
        "previews a second": (page.evaluate("window.taken") - before) / seconds,
        "keys over 16 ms": len(found),
        "longest key": max(found, default=0),
        "long tasks": len(tasks),
        "longest task": max(tasks, default=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="once, to see that it runs")
    arguments = parser.parse_args()
    rounds, keys = (1, 10) if arguments.smoke else (arguments.rounds, 150)
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-c", START, str(Path(folder, "data"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            while httpx.get(url + "/readyz").status_code != 200:
                time.sleep(0.1)
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
                for slower in (1, 6):
                    all = [painted(browser, url, slower) for _ in range(rounds)]
                    print(f"first paint, processor slowed {slower}x: {statistics.median(all):.0f} ms ({max(all):.0f})")
                page = browser.new_page()
                page.add_init_script(STAND_IN)
                page.goto(url)
                page.wait_for_selector("#field-prompt")
                previewed(page)  # the engine's first picture
                all = [previewed(page) for _ in range(rounds)]
                print(f"key to first preview: {statistics.median(all):.0f} ms ({max(all):.0f})")
                for name, value in typed(page, keys).items():
                    print(f"typing, {name}: {value:.3g}")
                browser.close()
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
