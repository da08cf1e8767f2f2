"""Pictures in a terminal: by kitty's, iTerm2's or DEC's (sixel) way, whichever the terminal says that it has."""

from __future__ import annotations

import base64
import os
import re
import select
import sys
import time
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

from . import note

if TYPE_CHECKING:
    from PIL import Image

SIDE = 512  # pixels, of a preview at most
_WAIT = 0.3  # seconds for a terminal to answer
_CHUNK = 4096  # bytes of base64 in one of kitty's sequences


def shower(wanted: bool) -> Callable[[Image.Image], None]:
    """What shows a picture in the terminal, if that is wanted and it can; else what does nothing. Says so, once."""
    if not wanted:
        return lambda image: None
    how = protocol()
    if how is None:
        note(
            "--preview: this terminal shows no pictures that we know of (kitty, iTerm2, sixel); they are written anyway"
        )
        return lambda image: None
    encode = {"kitty": kitty, "iterm2": iterm2, "sixel": sixel}[how]

    def show(image: Image.Image) -> None:
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        sys.stdout.write(encode(small) + "\n")
        sys.stdout.flush()

    return show


def protocol() -> str | None:
    """How the terminal on stdout shows pictures: "kitty", "iterm2" or "sixel"; None: it doesn't, or is none."""
    if not sys.stdout.isatty():
        return None
    told = {name: os.environ.get(name, "") for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL")}
    if os.environ.get("TMUX") or told["TERM"].startswith("screen"):
        return "sixel" if _has_sixel() else None  # the others' sequences don't pass through
    if told["KITTY_WINDOW_ID"] or "kitty" in told["TERM"] or told["TERM_PROGRAM"] in ("ghostty", "WezTerm"):
        return "kitty"
    if (
        "iTerm" in told["TERM_PROGRAM"]
        or "iTerm" in told["LC_TERMINAL"]
        or told["TERM_PROGRAM"] in ("mintty", "vscode")
    ):
        return "iterm2"
    return "sixel" if _has_sixel() else None


def _has_sixel() -> bool:
    """Whether the terminal tells the attribute 4 when it is asked for its primary ones (DA1)."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            os.write(terminal, b"\x1b[c")
            answer, end = b"", time.monotonic() + _WAIT
            while not answer.endswith(b"c") and (left := end - time.monotonic()) > 0:
                if not select.select([terminal], [], [], left)[0]:
                    break
                answer += os.read(terminal, 64)
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    except (OSError, termios.error):
        return False
    finally:
        os.close(terminal)
    found = re.search(rb"\x1b\[\?([\d;]+)c", answer)
    return found is not None and b"4" in found[1].split(b";")


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def kitty(image: Image.Image) -> str:
    """A picture by kitty's protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol/): PNG, in pieces."""
    data = base64.b64encode(_png(image)).decode("ascii")
    pieces = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    told = []
    for i, piece in enumerate(pieces):
        keys = ("a=T,f=100,q=2," if i == 0 else "") + f"m={int(i + 1 < len(pieces))}"
        told.append(f"\x1b_G{keys};{piece}\x1b\\")
    return "".join(told)


def iterm2(image: Image.Image) -> str:
    """A picture by iTerm2's protocol (https://iterm2.com/documentation-images.html)."""
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)};width={image.width}px:{base64.b64encode(data).decode('ascii')}\a"


def sixel(image: Image.Image) -> str:
    """A picture in sixels, of 256 colours (VT330/VT340 Programmer Reference, chapter 14).

    Bands of six rows: in each, every colour in turn, a character a column whose low six bits are the rows that have it.
    """
    import numpy as np

    small = image.quantize(256)
    palette = np.asarray(small.getpalette() or [], np.int32).reshape(-1, 3)
    pixels = np.asarray(small)
    told = [f'\x1bPq"1;1;{image.width};{image.height}']
    told += [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate((palette * 100 + 127) // 255)]
    for top in range(0, pixels.shape[0], 6):
        band = pixels[top : top + 6]
        for colour in np.unique(band):
            bits = (band == colour).T @ (1 << np.arange(len(band)))
            told.append(f"#{colour}{_runs([chr(63 + b) for b in bits])}$")
        told.append("-")
    return "".join(told) + "\x1b\\"


def _runs(letters: list[str]) -> str:
    """Letters, with those that repeat written as "!COUNT LETTER"."""
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", "".join(letters))
