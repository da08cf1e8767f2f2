"""A browser for the tests of the page, and what they do in it.

Tests are skipped where playwright (Python) or Debian's Chromium isn't there. No browser is ever downloaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Opened = Callable[..., Any]  # conftest's `browse`
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 20_000  # milliseconds that anything may take on a busy machine


def until(page: Any, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true. Playwright's own wait evaluates a text in the page, which its CSP forbids."""
    end = time.monotonic() + SECONDS / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"it did not come true: {expression}"
        page.wait_for_timeout(30)


def draw(page: Any, prompt: str) -> None:
    page.fill("#field-prompt", prompt)
    page.keyboard.press("Control+Enter")


def finished(page: Any, prompt: str) -> Any:
    return page.wait_for_selector(f'.canvas a img[alt="{prompt}"]')


def fits(page: Any) -> None:
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
