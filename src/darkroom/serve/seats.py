"""An engine as the dispatcher sees it: what it has in hand, which models it holds, what it is given next."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..embedded import MODEL
from .engines import EngineLink
from .jobs import roles_in_order
from .models import Found
from .queue import Claimed

FACTS = ("hash", "size", "task", "defaults", "sampler", "xl", "base", "words", "examples")  # that are shown of a model
TURN = 10.0  # seconds that a model with work runs before another takes its place in memory


@dataclass
class Seat:
    """An engine, and what it has in hand."""

    link: EngineLink
    owner: str  # its name in rows
    aboard: dict[str, Claimed] = field(default_factory=dict)
    turn: float = 0.0  # when the model that it draws with was loaded
    told_watched: set[str] = field(default_factory=set)
    wanted: str | None = None  # a model that there is no room for yet
    used: dict[str, float] = field(default_factory=dict)  # model -> when it was last needed

    def choose(self, rows: Sequence[Any]) -> list[str]:
        """Of the pictures that wait (`queue.waiting`) those that it has room for: twice what fits into one of its
        ticks. What an engine died with is drawn with nothing else aboard."""
        loaded = {} if self.wanted is not None and not self.may_stay(rows) else self.link.models
        chosen: list[str] = []
        held = sum(picture.width for picture in self.aboard.values())
        alone = any(picture.deaths for picture in self.aboard.values())
        for row in rows:
            if row.model not in loaded:
                continue
            if alone or (row.deaths and (self.aboard or chosen)):
                break
            room = 2 * loaded[row.model]["budget"]
            width = row.cost / max(row.steps, 1)
            if held and held + width > room:
                break
            held += width
            chosen.append(row.id)
            alone = bool(row.deaths)
        return chosen

    def may_stay(self, rows: Iterable[Any]) -> bool:
        """Whether the models that it holds go on being given work while another waits for their place."""
        return any(row.model in self.link.models for row in rows) and time.monotonic() - self.turn < TURN

    def load(self, found: Found, lora_dir: str | None) -> None:
        """Have it load a model."""
        self.link.loading[found.name] = self.turn = time.monotonic()
        vae = None if found.vae is None else found.vae.path
        path = None if found.path == str(MODEL) else found.path  # None: with what comes with it
        self.link.send("load", name=found.name, path=path, vae=vae, lora_dir=lora_dir)

    def submit(
        self,
        picture: Claimed,
        wanted: Mapping[str, Any],
        words: Mapping[str, str],
        blobs: Sequence[bytes],
        state: bytes | None,
        watched: bool,
    ) -> None:
        """Have it draw a picture.

        Args:
            wanted, words: `jobs.wanted_for_engine`'s.
            blobs: what it is made from, in the order of its roles.
            state: how far it was.
        """
        self.aboard[picture.id] = picture
        self.used[picture.model] = time.monotonic()
        self.link.send(
            "submit",
            *blobs,
            *([] if state is None else [state]),
            id=picture.id,
            claim=picture.claim,
            job=picture.job,
            index=picture.index,
            model=picture.model,
            wanted=wanted,
            words=words,
            roles=roles_in_order(picture.inputs),
            rank=picture.rank,
            snapshot=state is not None,
            watched=watched,
        )

    def landed(self, picture: Claimed) -> None:
        """It has a picture in hand no more; a later claim of it, taken aboard meanwhile, stays."""
        if self.aboard.get(picture.id) == picture:
            del self.aboard[picture.id]

    def make_room(self, need: float, room: float) -> bool:
        """Let models go that have nothing in progress, the least recently needed first, until `need` bytes fit into
        `room`; whether they do. The last model stays while nothing else is needed, and a single one is tried whatever
        it takes."""
        held = {name: told["bytes"] for name, told in self.link.models.items()}
        busy = {picture.model for picture in self.aboard.values()}
        for name in sorted(held, key=lambda name: self.used.get(name, 0.0)):
            if sum(held.values()) + need <= room or (len(held) == 1 and not need):
                return True
            if name not in busy:
                del held[name]
                self.link.models.pop(name)
                self.link.send("unload", name=name)
        return not held or sum(held.values()) + need <= room

    def tell_watched(self, is_watched: Callable[[str, str], bool]) -> None:
        """Have it make previews of the jobs that somebody watches (job, key), and of no others."""
        jobs = {picture.job: picture.key for picture in self.aboard.values()}
        watched = {job for job, key in jobs.items() if is_watched(job, key)}
        for job in watched ^ (self.told_watched & jobs.keys()):
            self.link.send("watch", job=job, on=job in watched)
        self.told_watched = watched

    @property
    def shown(self) -> dict[str, Any]:
        """What there is of it, for people."""
        return {"alive": self.link.alive, "models": list(self.link.models), "aboard": len(self.aboard)}


def astray(
    seats: Iterable[Seat],
    held: Mapping[str, tuple[int, str]],
    aboard: Mapping[str, Claimed],
    lives: Mapping[str, int],
) -> dict[str, int]:
    """Pictures that are an engine's by their rows and aboard none: id -> claim. Nobody would ever draw them, and their
    leases are renewed. (Where the database goes away in a commit, nobody knows whether they were claimed.)

    held: `queue.held`, read while nothing was taken aboard.
    aboard: what was in hand before that; what ended meanwhile ended in the rows first.
    lives: the engines that lived before that -> `restarts`. What one had that died since goes back with a death.
    """
    steady = {seat.owner for seat in seats if seat.link.alive and lives.get(seat.owner) == seat.link.restarts}
    return {
        id: claim
        for id, (claim, owner) in held.items()
        if owner in steady and (id not in aboard or aboard[id].claim != claim)
    }


def told_of(seats: Sequence[Seat], models: Iterable[str]) -> dict[str, Any]:
    """What a process tells others of its engines; `models`: the names of those that it can draw with."""
    held = {name: told for seat in seats for name, told in seat.link.models.items()}
    speeds = [speed for seat in seats if (speed := seat.link.stats.get("seconds_per_unit"))]
    return {
        "models": sorted(models),
        "held": {name: told["hash"] for name, told in held.items()},
        "failed": {name: text for seat in seats for name, text in seat.link.failed_loads.items()},
        "bits": sorted({told.get("bit_class", "") for told in held.values()}),
        "exact": all(told.get("bit_exact", False) for told in held.values()),
        "speed": sum(speeds) / len(speeds) if speeds else None,
        "engines": [seat.shown for seat in seats],
    }


def shown_model(
    found: Found,
    seats: Sequence[Seat],
    descriptions: Mapping[str, Mapping[str, Any]],
    room: float,
    elsewhere: Container[str] = (),
) -> dict[str, Any]:
    """A model as it is shown: whether there is room for it, how long loading it takes, and what engines told.

    elsewhere: the names of those that other processes hold.
    """
    known = descriptions.get(found.fingerprint)
    loaded = found.name in elsewhere or any(found.name in seat.link.models for seat in seats)
    loading = any(found.name in seat.link.loading for seat in seats)
    paces = [one["load_seconds"] / one["bytes"] for one in descriptions.values() if one.get("load_seconds")]
    seconds = (known or {}).get("load_seconds") or (found.bytes * sum(paces) / len(paces) if paces else None)
    return {
        "name": found.name,
        "bytes": found.bytes,
        "fits": found.bytes <= room,
        "state": "loaded" if loaded else "loading" if loading else "here",
        "seconds": seconds,
        **({} if known is None else {name: known.get(name) for name in FACTS}),
    }
