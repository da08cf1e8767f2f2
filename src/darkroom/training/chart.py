"""The loss of a run as an SVG: a file that a browser opens, without any library.

What is drawn comes from log.jsonl: the loss of each row, a mean over steps; and the held-out loss, where one was
measured. The scale of losses begins at zero only if they reach down there: what a run changes is often a small part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from ..files import whole_file
from .log import read_log

NAME = "loss.svg"  # in a run's folder
WIDTH, HEIGHT = 720, 360  # pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 44
SERIES: Mapping[str, tuple[str, str]] = {"loss": ("loss", "#2456b8"), "validation": ("held out", "#c2410c")}
TICKS = 5  # about so many on an axis

Point = tuple[float, float]


def draw_loss(run: Path, title: str) -> Path | None:
    """Write the chart of a run's log into its folder; None where the log has fewer than two losses."""
    rows = read_log(run)
    series = {key: points for key in SERIES if (points := points_of(rows, key))}
    if len(series.get("loss", ())) < 2:
        return None
    with whole_file(run / NAME) as draft:
        draft.write_text(chart(series, title), encoding="utf-8")
    return run / NAME


def points_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of the rows that have a finite one, by their steps; of rows of one step the last."""
    found = {}
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found[float(row["step"])] = float(value)
    return sorted(found.items())


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within low..high."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(series: Mapping[str, Sequence[Point]], title: str) -> str:
    """An SVG with a line for each series of (step, value), of `SERIES`' names and colours."""
    values = [value for points in series.values() for _, value in points]
    last = max(step for points in series.values() for step, _ in points)
    low, high = min(values), max(values)
    edge = 0.08 * ((high - low) or abs(high) or 1.0)
    low, high = (max(0.0, low - edge) if low >= 0 else low - edge), high + edge

    def at(step: float, value: float) -> Point:
        return (
            LEFT + step / last * (WIDTH - LEFT - RIGHT),
            TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    return "\n".join(_parts(series, title, last, (low, high), at)) + "\n"


def _parts(series: Mapping[str, Sequence[Point]], title: str, last: float, span: Point, at: Any) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield _text(LEFT, 24, title, "start", "#111111", 'font-size="15"')
    bottom = HEIGHT - BOTTOM
    for value in ticks(*span):
        y = at(0, value)[1]
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e2e2e2"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", "end")
    for step in ticks(0.0, last):
        x = at(step, span[0])[0]
        yield f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#888888"/>'
        yield _text(x, bottom + 18, f"{step:,g}", "middle")
    yield f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}" stroke="#888888"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step", "middle")
    for i, (key, points) in enumerate(series.items()):
        name, colour = SERIES[key]
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
        x, y = at(*points[-1])
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        told = f"{name} {points[-1][1]:.4g}"
        yield _text(WIDTH - RIGHT, 20 + 14 * i, told, "end", colour)
    yield "</svg>"


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#444444", more: str = "") -> str:
    style = f'text-anchor="{anchor}" fill="{colour}"' + (f" {more}" if more else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
