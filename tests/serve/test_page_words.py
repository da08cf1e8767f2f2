"""What the page does with the prompt's words: the rest of words, weights, LoRAs and what calls them, what is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .browser import Opened, draw, finished, until
from .conftest import Running


def test_words_are_completed_and_weighed_by_keys(serve: Callable[..., Running], browse: Opened) -> None:
    page = browse(serve())
    page.wait_for_selector(".examples button >> nth=2")
    assert page.locator(".examples button").all_inner_texts() == ["an owl", "a fox", "a fig"]
    page.type("#field-prompt", "a f")
    page.wait_for_selector('[role="option"] >> nth=1')
    assert page.locator('[role="option"]').all_inner_texts() == ["fox", "fig"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#field-prompt", "aria-activedescendant") == "words-prompt-1"
    page.keyboard.press("Enter")
    assert page.input_value("#field-prompt") == "a fig"
    assert page.locator('[role="option"]').count() == 0
    page.type("#field-prompt", " o")
    page.click('[role="option"] >> text=owl')
    assert page.input_value("#field-prompt") == "a fig owl"
    assert page.evaluate("document.activeElement.id") == "field-prompt"
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#field-prompt") == "a fig (owl:1.2)"
    page.keyboard.press("Control+z")
    assert page.input_value("#field-prompt") == "a fig (owl:1.1)"
    page.keyboard.press("Control+z")
    assert page.input_value("#field-prompt") == "a fig owl"
    page.keyboard.press("Control+ArrowDown")
    assert page.input_value("#field-prompt") == "a fig (owl:0.9)"
    page.keyboard.press("Escape")  # of the words: nothing is cancelled
    page.type("#field-prompt", "\n")  # Enter is a line where no word is chosen
    assert "\n" in page.input_value("#field-prompt")


def test_loras_are_picked_with_their_words(serve: Callable[..., Running], browse: Opened, tmp_path: Path) -> None:
    for name in ("Stable-diffusion/any", "Lora/ink", "Lora/ink-xl", "Lora/oil", "embeddings/easy"):
        path = tmp_path / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    server = serve(models=str(tmp_path / "models"))
    page = browse(server)
    page.fill("#field-prompt", "a fox")
    page.click("summary >> text=More")
    page.click("summary >> text=LoRA and words")
    page.fill('.more input[type="search"]', "INK")
    assert page.locator(".adapters li").count() == 2
    page.locator('.grid label:has-text("Weight") input').fill("0.8")
    page.click(".adapters button >> text=/^ink LoRA/")
    page.click(".adapters button >> text=+ ink style")
    assert page.input_value("#field-prompt") == "a fox <lora:ink:0.8> ink style"
    # What is for another model can't be taken, and says why.
    unfit = page.locator(".adapters li.unfit")
    assert "this model is Stable Diffusion 1.x" in unfit.inner_text()
    unfit.locator("button").click(force=True)
    assert "ink-xl" not in page.input_value("#field-prompt")
    page.keyboard.press("Control+Enter")
    job = server.until(lambda: server.client.get("/api/jobs?state=finished").json()["jobs"])[0]
    assert job["request"]["prompt"] == "a fox <lora:ink:0.8> ink style"
    page.click(".adapters button >> text=/^ink LoRA/")
    assert page.input_value("#field-prompt") == "a fox ink style"


def test_what_is_read_is_shown_as_it_is_typed(serve: Callable[..., Running], browse: Opened) -> None:
    """From a key to the chips: with the real engine, and while it draws."""
    server = serve(real=True)
    page = browse(server)
    draw(page, "a large fox")
    page.wait_for_selector("details.explain >> text=3 of 75 tokens")
    page.click("details.explain summary")
    page.focus("#field-prompt")
    page.keyboard.press("End")
    page.keyboard.type(" (owl:1.3)")
    page.wait_for_selector(".token.up >> text=owl")
    assert page.locator(".token").all_inner_texts() == ["a", "large", "fox", "owl1.3"]
    finished(page, "a large fox")
    until(page, "!document.querySelector('.queue li')")
    took = page.evaluate(
        """async () => {
            const box = document.querySelector('#field-prompt')
            const all = []
            for (const word of ['red', 'blue', 'green', 'small', 'owl', 'cat', 'dog', 'bee', 'bus']) {
                const tokens = () => [...document.querySelectorAll('.token')].map((one) => one.textContent)
                box.select()
                const began = performance.now()
                document.execCommand('insertText', false, 'a ' + word)
                while (tokens()[1] !== word || tokens().length !== 2) {
                    await new Promise((done) => setTimeout(done, 2))
                    if (performance.now() - began > 10000) return 'it did not come'
                }
                all.push(performance.now() - began)
            }
            return all.sort((a, b) => a - b)
        }"""
    )
    assert isinstance(took, list), took
    print("from a key to what is read, ms:", [round(one) for one in took])
