"""That everybody can use the page: by keys alone, with a screen reader, on a phone and a wall, in other languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .browser import Opened, draw, finished, fits, until
from .conftest import ROOT, Running

VIEWS = ("draw", "more", "gallery", "viewer", "sweeps", "sweep", "settings", "keys")


def some(server: Running) -> str:
    """Pictures and a grid; the grid's id."""
    for prompt in ("an owl", "a fox"):
        server.ended(server.post(prompt=prompt)["id"])
    made = server.post("/api/sweeps", prompt="an owl", axes=["steps=1,2", "sampler=euler,lms"])
    server.until(lambda: server.client.get(f"/api/sweeps/{made['id']}").json()["finished"] == 4)
    return str(made["id"])


def visit(page: Any, view: str, sweep: str) -> None:
    """Show one of the views, from wherever the page is."""
    page.evaluate("document.querySelectorAll('dialog[open]').forEach((one) => one.close())")
    page.evaluate("(to) => { location.hash = to }", {"more": "draw", "sweep": f"sweeps/{sweep}"}.get(view, view))
    if view == "draw":
        page.wait_for_selector("#field-prompt")
    elif view == "more":
        page.wait_for_selector("#field-prompt")
        page.evaluate("document.querySelector('.compose > details').open = true")
        page.wait_for_selector(".more .adapters, .more details >> nth=0")
        page.wait_for_timeout(200)  # what there is of LoRAs comes from the server
        page.evaluate("document.querySelectorAll('.more details').forEach((one) => { one.open = true })")
    elif view == "gallery":
        page.wait_for_selector(".cells li")
    elif view == "viewer":
        page.evaluate("location.hash = 'gallery'")
        page.click(".cells button")
        page.wait_for_selector("dialog.viewer dl")
    elif view == "sweeps":
        page.wait_for_selector(".sweeps li")
    elif view == "sweep":
        page.wait_for_selector(".sheet button.cell >> nth=3")
    elif view == "settings":
        page.wait_for_selector("section.settings")
    elif view == "keys":
        page.evaluate("location.hash = 'draw'")
        page.click("nav button")
        page.wait_for_selector("dialog.ask dl")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(serve: Callable[..., Running], browse: Opened, scheme: str) -> None:
    """axe-core finds nothing against WCAG 2.2 AA in eleven views."""
    axe = ROOT / "page" / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("needs axe-core: make page")
    server = serve(environment={"FAKE_TICK": "0.02"})
    sweep = some(server)
    page = browse(server, color_scheme=scheme, bypass_csp=True)
    page.evaluate(axe.read_text())
    found: dict[str, list[str]] = {}

    def check(name: str) -> None:
        told = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa']})")
        assert len(told["passes"]) > 5
        found[name] = [f"{one['id']}: {one['nodes'][0]['html']}" for one in told["violations"]]

    for view in VIEWS:
        visit(page, view, sweep)
        check(view)
    visit(page, "more", sweep)
    page.fill("#field-steps", "90000")
    draw(page, "a fox, slow")
    page.wait_for_selector("#fault-steps")
    check("fault")
    page.fill("#field-steps", "20")
    page.fill("#field-prompt", "an o")
    page.locator("#field-prompt").press("End")
    page.wait_for_selector('[role="option"]')
    check("words")
    draw(page, "a tiger, slow")
    page.wait_for_selector(".queue li")
    check("queue")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    visit(page, "viewer", sweep)
    page.click("dialog.viewer >> text=Repaint a part")
    page.wait_for_selector("dialog.masking canvas")
    page.click("summary >> text=Rectangle")
    check("mask")
    assert {name: faults for name, faults in found.items() if faults} == {}


def tab(page: Any, selector: str, most: int = 90) -> None:
    """Go to an element by the Tab key alone; wherever it stops can be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """(selector) => {
                const one = document.activeElement
                if (one.matches(selector)) return getComputedStyle(one).outlineStyle + getComputedStyle(one).boxShadow
            }""",
            selector,
        )
        if at is not None:
            assert at != "nonenone"
            return
    raise AssertionError(f"Tab never comes to {selector}")


def focused(page: Any) -> str:
    """What has the focus: never the page as a whole after something was done."""
    page.wait_for_timeout(60)
    told = page.evaluate(
        "document.activeElement === document.body ? '' : document.activeElement.outerHTML.slice(0, 200)"
    )
    assert told, "the focus is lost"
    return str(told)


def test_keys_alone_do_all(serve: Callable[..., Running], browse: Opened) -> None:
    server = serve(environment={"FAKE_TICK": "0.005"})
    page = browse(server)
    page.keyboard.press("Tab")
    assert "skip" in focused(page)
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'field-prompt'")
    page.keyboard.type("an owl")
    page.keyboard.press("Control+Enter")
    finished(page, "an owl")
    page.keyboard.press("Control+a")
    page.keyboard.type("a fox")
    tab(page, "button.main")
    page.keyboard.press("Enter")
    finished(page, "a fox")
    focused(page)
    tab(page, ".canvas a")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.viewer dl")
    focused(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('dialog.viewer[aria-label="an owl"]')
    focused(page)
    page.keyboard.press("Delete")
    page.wait_for_selector('dialog.viewer[aria-label="a fox"]')
    focused(page)
    tab(page, ".notice button:not(.plain)")
    page.keyboard.press("Enter")  # undo
    server.until(lambda: len(server.client.get("/api/images").json()["images"]) == 2)
    focused(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.viewer", state="detached")
    focused(page)
    page.keyboard.press("?")
    page.wait_for_selector("dialog.ask")
    focused(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.ask", state="detached")
    focused(page)
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'search'")
    page.keyboard.type("owl")
    until(page, "document.querySelectorAll('.cells li').length === 1")
    tab(page, ".cells button")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.viewer dl")
    tab(page, "dialog.viewer button.main")  # use these settings
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'field-prompt'")
    # A mask by numbers.
    tab(page, "nav a[href='#gallery']", 120)
    page.keyboard.press("Enter")
    tab(page, ".cells button")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.viewer dl")
    page.locator("dialog.viewer button", has_text="Repaint a part").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.masking canvas")
    focused(page)
    tab(page, "dialog.masking summary")
    page.keyboard.press("Enter")
    tab(page, "dialog.masking details input")
    for value in ("8", "8", "16", "16"):
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Tab")
    assert "Add the rectangle" in focused(page)
    page.keyboard.press("Enter")
    page.locator("dialog.masking button", has_text="Done").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Change the mask")
    focused(page)


def test_a_screen_reader_is_told_what_matters(serve: Callable[..., Running], browse: Opened) -> None:
    """Queued, quarters, finished, failed: not every step."""
    page = browse(serve(environment={"FAKE_TICK": "0.03"}))
    page.evaluate(
        """() => {
            const live = document.querySelector('[aria-live]')
            window.told = []
            new MutationObserver(() => window.told.push(live.textContent))
                .observe(live, { childList: true, characterData: true, subtree: true })
        }"""
    )
    draw(page, "an owl, slow")
    finished(page, "an owl, slow")
    until(page, "window.told.at(-1) === 'The picture is finished.'")
    told = [text for text in page.evaluate("window.told") if text]
    assert told[0] == "Queued."
    assert set(told[1:-1]) <= {"25 percent.", "50 percent.", "75 percent."}
    assert len(told) <= 5
    draw(page, "a fox, fail")
    until(page, "window.told.at(-1) === 'It failed: it came out as NaN'")
    assert page.locator("main").count() == page.locator("header").count() == page.locator("nav").count() == 1


CROWDED = """() => {
    // Controls that lie over one another, reach out of the window, or have more text than room.
    const within = [...document.querySelectorAll('dialog[open]')].pop() ?? document
    const kinds = 'button, a, input, select, textarea, summary, [role=option]'
    const scroll = '.hidden, .skip, .cells, .sheet, .adapters, .completions ul, .strip'
    const seen = [...within.querySelectorAll(kinds)].filter((one) => {
        const box = one.getBoundingClientRect()
        return box.width > 1 && box.height > 1 && !one.closest(scroll) && !one.matches('.filepick input')
            && one.checkVisibility({ visibilityProperty: true })
    })
    const faults = []
    const name = (one) => `${one.tagName} ${one.id || one.textContent.slice(0, 40) || one.getAttribute('aria-label')}`
    const boxes = seen.map((one) => one.getBoundingClientRect())
    const sunk = within.closest?.('dialog') ? within.getBoundingClientRect() : { left: 0, right: innerWidth }
    seen.forEach((one, i) => {
        const a = boxes[i]
        const right = Math.max(sunk.right, innerWidth)
        if (a.left < sunk.left - 1 || a.right > right + 1) faults.push(`outside: ${name(one)}`)
        const cut = one.matches('button, a.button') && one.scrollWidth > one.clientWidth + 2
        if (cut) faults.push(`cut: ${name(one)}`)
        for (let j = i + 1; j < seen.length; j++) {
            const b = boxes[j]
            if (seen[i].contains(seen[j]) || seen[j].contains(seen[i])) continue
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left)
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
            if (wide > 2 && high > 2) faults.push(`over one another: ${name(one)}, ${name(seen[j])}`)
        }
    })
    const wide = document.documentElement.scrollWidth
    if (wide > innerWidth) faults.push(`the page is ${wide} wide`)
    return faults
}"""


@pytest.mark.parametrize(
    ("width", "height", "options", "size"),
    [
        (320, 640, {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}, "100%"),
        (820, 1180, {"has_touch": True, "is_mobile": True}, "100%"),
        (3840, 2160, {}, "100%"),
        (1280, 900, {}, "200%"),
        (640, 900, {}, "200%"),
        (320, 640, {"locale": "ko-KR"}, "100%"),
    ],
)
def test_it_fits(
    serve: Callable[..., Running], browse: Opened, width: int, height: int, options: dict[str, Any], size: str
) -> None:
    """From 320 pixels to 4K, on phones and tablets, with text of twice the size: nothing overlaps, nothing is cut."""
    server = serve()
    sweep = some(server)
    page = browse(server, viewport={"width": width, "height": height}, **options)
    page.evaluate("(size) => { document.documentElement.style.fontSize = size }", size)
    found = {}
    for view in VIEWS:
        visit(page, view, sweep)
        page.wait_for_timeout(50)
        found[view] = page.evaluate(CROWDED)
    assert {view: faults for view, faults in found.items() if faults} == {}


def test_everything_is_translated_and_longer_texts_have_room(serve: Callable[..., Running], browse: Opened) -> None:
    """In the pseudo-language every text of the page is in brackets; what isn't is a name or comes from somebody."""
    server = serve()
    sweep = some(server)
    page = browse(server, "/?lang=pseudo", viewport={"width": 360, "height": 700})
    plain = {
        "Darkroom",
        "?",
        "‹",
        "›",
        "English",
        "한국어",
        "an owl",
        "a fox",
        "a fig",
        "an owl, a fox",
        "LoRA",
        "1:1",
        "4:3",
    }
    plain |= {"3:4", "16:9", "9:16", "sepia", "blue-heart", "darkroom-embedded"}
    known = server.client.get("/api/server").json()
    plain |= (
        {one["label"] for one in known["samplers"]} | {one["id"] for one in known["samplers"]} | {*known["schedules"]}
    )
    plain |= {*known["hints"], known["version"]}
    for view in VIEWS:
        visit(page, view, sweep)
        texts = page.evaluate(
            """() => {
                const found = []
                const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
                while (walker.nextNode()) {
                    const text = walker.currentNode.textContent.trim()
                    const from = walker.currentNode.parentElement
                    const others = 'noscript, kbd, output, dd, time, .sheet th, .token, .chip, .adapters'
                    if (text && !from.closest(others)) found.push(text)
                }
                const names = ['aria-label', 'placeholder', 'title']
                for (const one of document.querySelectorAll('[aria-label], [placeholder], [title]')) {
                    if (one.closest('.sheet, .cells, .adapters, .chip, dialog.viewer')) continue
                    found.push(...names.map((name) => one.getAttribute(name)).filter(Boolean))
                }
                return found
            }"""
        )
        strange = [
            text for text in texts if not text.startswith("[") and text not in plain and any(map(str.isalpha, text))
        ]
        assert [text for text in strange if "·" not in text and "×" not in text] == [], view
        assert page.evaluate(CROWDED) == [], view


def test_nothing_moves_for_those_who_want_it_so(serve: Callable[..., Running], browse: Opened) -> None:
    page = browse(serve(environment={"FAKE_TICK": "0.2"}), reduced_motion="reduce")
    draw(page, "an owl, slow")
    page.wait_for_selector(".waiting, .preview")
    assert page.evaluate("document.getAnimations().length") == 0
    fits(page)
