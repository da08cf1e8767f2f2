"""The built-in scenes: captions that say all there is, and the pictures they describe.

A scene is a function of (seed, index), so any part of the endless data set can be read at any time, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .glyphs import Drawings, Glyph, Glyphs, load_glyphs
from .objects import BACKGROUNDS, CANVAS, COUNTS, GRID, OBJECTS, OPPOSITE, RELATIONS, SIZES, plural, with_article

KINDS = ("single", "count", "relation")
MARGIN = GRID  # pixels of background left free at every border and between objects
# What a relation says of the places of its first and its second object.
PLACES = {
    "to the left of": ("left", "right"),
    "to the right of": ("right", "left"),
    "above": ("above", "below"),
    "below": ("below", "above"),
}
NOUNS = tuple(OBJECTS)
COLOURS = tuple(BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in a scene: its square's side and upper left corner, in pixels."""

    noun: str
    side: int
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, and the caption that says so."""

    kind: str  # one of KINDS
    caption: str
    background: str
    objects: tuple[Placed, ...]
    relation: str = ""  # for kind "relation": objects[0] is `relation` objects[1]

    @property
    def held_out(self) -> bool:
        """Whether training must never see this scene: a tenth of (object, background), a tenth of the triples."""
        if any(_tenth(o.noun, self.background) for o in self.objects):
            return True
        return bool(self.relation) and triple_held_out(self.objects[0].noun, self.relation, self.objects[1].noun)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption; and of a pair one that says each place before its noun, the noun first in the alphabet first.

        "a fox to the left of a cat on a red background": "right a cat left a fox on a red background". A text encoder
        that reads from left to right learns from the second kind what the first kind means (docs/decisions/0012).
        """
        if not self.relation:
            return (self.caption,)
        first, second = (with_article(o.noun) for o in self.objects)
        here, there = PLACES[self.relation]
        placed = sorted([f"{here} {first}", f"{there} {second}"], key=lambda words: words.partition(" ")[2].split()[1:])
        tail = self.caption.removeprefix(f"{first} {self.relation} {second}")
        return self.caption, " ".join(placed) + tail


def _tenth(*words: str) -> bool:
    """True for a tenth of all word tuples, by a hash of the words."""
    return hashlib.sha256(" ".join(words).encode()).digest()[0] % 10 == 0


def triple_held_out(first: str, relation: str, second: str) -> bool:
    """Whether "first relation second" is held out; a triple and its mirror ("right" for "left") share their fate."""
    if relation in OPPOSITE:
        first, relation, second = second, OPPOSITE[relation], first
    return _tenth(first, relation, second)


def draw_scene(seed: int, index: int, kind: str | None = None, held_out: bool | None = False) -> Scene:
    """The scene number `index` of the data set `seed`.

    `kind` restricts it to one of KINDS; `held_out` False gives training scenes, True held-out ones, None either.
    """
    rng = np.random.default_rng((seed, index))
    while True:
        scene = _draw(rng, kind)
        if held_out is None or scene.held_out == held_out:
            return scene


def _pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def _draw(rng: np.random.Generator, kind: str | None) -> Scene:
    kind = kind or KINDS[int(rng.choice(3, p=(0.4, 0.25, 0.35)))]
    colour, noun = _pick(rng, COLOURS), _pick(rng, NOUNS)
    tail = _ground(rng, colour)
    if kind == "single":
        return _single(rng, noun, noun, colour, tail)
    small = SIZES["small"]
    if kind == "count":
        word = _pick(rng, tuple(COUNTS))
        placed = _place(rng, (noun,) * COUNTS[word], small)
        return Scene(kind, f"{word} {plural(noun)}{tail}", colour, placed)
    other = noun
    while other == noun:
        other = _pick(rng, NOUNS)
    relation = _pick(rng, RELATIONS)
    placed = _place(rng, (noun, other), small, relation)
    caption = f"{with_article(noun)} {relation} {with_article(other)}{tail}"
    return Scene(kind, caption, colour, placed, relation)


def draw_object(seed: int, index: int, noun: str, word: str | None = None) -> Scene:
    """The scene number `index` of the data set `seed` that shows one new object, which the caption calls `word`."""
    rng = np.random.default_rng((seed, index))
    colour = _pick(rng, COLOURS)
    return _single(rng, noun, word or noun, colour, _ground(rng, colour))


def _ground(rng: np.random.Generator, colour: str) -> str:
    """The end of a caption. Now and then the background goes without saying: then it is white."""
    return "" if colour == "white" and rng.random() < 0.3 else f" on {with_article(colour)} background"


def _single(rng: np.random.Generator, noun: str, word: str, colour: str, tail: str) -> Scene:
    size = _pick(rng, tuple(SIZES))
    # Without a size an object is large.
    words = word if size == "large" and rng.random() < 0.3 else f"{size} {word}"
    placed = _place(rng, (noun,), SIZES[size])
    return Scene("single", with_article(words) + tail, colour, placed)


def _place(rng: np.random.Generator, nouns: tuple[str, ...], side: int, relation: str = "") -> tuple[Placed, ...]:
    """Random places on the grid, apart from each other and from the border, and as the relation says."""
    cells = (CANVAS - side - 2 * MARGIN) // GRID + 1
    while True:
        at = MARGIN + GRID * rng.integers(cells, size=(len(nouns), 2))
        placed = tuple(Placed(n, side, int(x), int(y)) for n, (x, y) in zip(nouns, at, strict=True))
        if _apart(placed, side) and (not relation or holds(placed[0], relation, placed[1], slack=side // 2)):
            return placed


def _apart(placed: tuple[Placed, ...], side: int) -> bool:
    gap = side + MARGIN
    return all(abs(a.x - b.x) >= gap or abs(a.y - b.y) >= gap for i, a in enumerate(placed) for b in placed[:i])


def holds(a: Placed, relation: str, b: Placed, slack: float) -> bool:
    """Whether a is `relation` b: in that direction first of all, and at most `slack` pixels aside."""
    dx, dy = a.x - b.x, a.y - b.y
    ahead, aside = {
        "to the left of": (-dx, dy),
        "to the right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]
    return ahead > abs(aside) and abs(aside) <= slack


def render_scene(scene: Scene, new: Glyphs | None = None, large: Drawings | None = None) -> NDArray[np.uint8]:
    """The scene's picture, [128, 128, 3]. `new` are the glyphs of objects that are none of ours; with `large` drawings
    it is so many times as large as those are."""
    times = 1 if large is None else large.times
    picture = np.empty((times * CANVAS, times * CANVAS, 3), np.float32)
    picture[:] = np.asarray(BACKGROUNDS[scene.background], np.float32) / 255
    glyphs: Glyphs = large or {**load_glyphs(), **(new or {})}
    for o in scene.objects:
        glyph = glyphs[o.noun, o.side]
        x, y, side = times * o.x, times * o.y, times * o.side
        spot = picture[y : y + side, x : x + side]
        spot *= 1 - glyph[..., 3:]
        spot += glyph[..., :3]
    return _to_bytes(picture)


def _to_bytes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 to 0..255, rounded."""
    values: NDArray[np.uint8] = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return values


def draw_collage(seed: int, index: int, others: Sequence[Glyph], large: Drawings | None = None) -> NDArray[np.uint8]:
    """A picture [128, 128, 3] with no caption and no grid: one to four emoji of any size anywhere, on any colour.

    What keeps the autoencoder general. `others` are glyphs besides our objects (may be empty). With `large` drawings
    the same picture so many times as large as those are; `others` are of any size.
    """
    rng = np.random.default_rng((seed, index, 1))
    times = 1 if large is None else large.times
    canvas = times * CANVAS
    picture = np.empty((canvas, canvas, 3), np.float32)
    picture[:] = rng.random(3, np.float32)
    ours: Glyphs = large or load_glyphs()
    for _ in range(int(rng.integers(1, 5))):
        i = int(rng.integers(len(NOUNS) + len(others)))
        glyph = ours[NOUNS[i], max(SIZES.values())] if i < len(NOUNS) else others[i - len(NOUNS)]
        side = int(rng.integers(24, 113))
        x, y = (times * int(v) for v in rng.integers(-side // 3, CANVAS - 2 * side // 3, size=2))
        side *= times
        small = np.asarray(_resize(glyph, side))
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, canvas), min(y + side, canvas)
        part = small[y0 - y : y1 - y, x0 - x : x1 - x]
        spot = picture[y0:y1, x0:x1]
        spot *= 1 - part[..., 3:]
        spot += part[..., :3]
    return _to_bytes(picture)


def _resize(glyph: Glyph, side: int) -> NDArray[np.float32]:
    """A premultiplied glyph at another size."""
    tensor = torch.from_numpy(glyph).permute(2, 0, 1)[None]
    small = F.interpolate(tensor, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0).numpy()
