"""A monkey at the page: seeded clicks, texts and keys. The fixture hears of every fault that it causes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .browser import Opened
from .conftest import Running

STEPS = 200
WALK = """async ([seed, steps]) => {
    const chance = () => { // mulberry32
        seed = (seed + 0x6d2b79f5) | 0
        let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
        t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
        return ((t ^ (t >>> 14)) >>> 0) / 4294967296
    }
    const of = (all) => all[Math.floor(chance() * all.length)]
    const kinds = 'button, a:not([download]), summary, select, textarea, input:not([type=file]), [role=option]'
    const keys = ['Escape', 'Enter', 'ArrowRight', 'ArrowDown', 'ArrowUp', 'c', 'i', '?', '/', 'Delete', '+', '0']
    for (let i = 0; i < steps; i++) {
        const within = [...document.querySelectorAll('dialog[open]')].pop() ?? document
        if (chance() < 0.25) {
            const options = { key: of(keys), ctrlKey: chance() < 0.2, bubbles: true, cancelable: true }
            const target = document.activeElement ?? document.body
            target.dispatchEvent(new KeyboardEvent('keydown', options))
            target.dispatchEvent(new KeyboardEvent('keyup', options))
            if (options.key === 'Escape' && within !== document) within.close()
        } else {
            const one = of([...within.querySelectorAll(kinds)])
            if (!one) continue
            one.focus?.()
            if (one.matches('button, a, summary, [type=checkbox], [role=option]')) {
                one.click()
            } else {
                if (one.matches('select')) one.selectedIndex = Math.floor(chance() * one.options.length)
                else if (one.type === 'range') one.value = chance() * 10
                else if (one.type === 'number') one.value = of(['7', '', '-1', '64', '1e9'])
                else one.value = of(['7', '', '-1', 'owl', 'a (fox:1.2), <lora:sepia:1>'])
                one.dispatchEvent(new Event('input', { bubbles: true }))
                one.dispatchEvent(new Event('change', { bubbles: true }))
            }
        }
        await new Promise((done) => setTimeout(done, chance() < 0.1 ? 40 : 0))
    }
}"""


@pytest.mark.parametrize("walks", [20, pytest.param(500, marks=pytest.mark.soak)])
def test_whatever_is_clicked_nothing_breaks(serve: Callable[..., Running], browse: Opened, walks: int) -> None:
    server = serve(environment={"FAKE_TICK": "0.005"}, max_jobs=100_000, max_queue=100_000)
    for prompt in ("an owl", "a fox", "<img src=x onerror=alert(1)>"):
        server.ended(server.post(prompt=prompt)["id"])
    server.post("/api/sweeps", prompt="an owl", axes=["steps=1,2"])
    page = browse(server)
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    for seed in range(walks):
        page.evaluate(WALK, [seed, STEPS])
        server.client.delete("/api/jobs?state=queued")
        page.goto(f"{server.url}/?walk={seed}")  # the same tab, begun anew with what the monkey left
        page.wait_for_selector("#field-prompt")
