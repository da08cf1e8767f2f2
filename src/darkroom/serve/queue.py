"""The durable queue: jobs and their pictures in the database. Every function is a statement of `store`'s.

A job is one request for one picture or more. What is acknowledged is on disk, and ends exactly once: `claim` rises with
every claim of a picture and is a fencing token, so a worker that was given up for dead can't finish what another took
over.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, insert, or_, select, update

from ..engine.scheduler import rank
from ..errors import Error
from .engines import DEATHS_ALONE, deaths_after, given_up
from .tables import CANCELLED, FAILED, FINISHED, LIVE, QUEUED, RUNNING, clock, job_inputs, jobs, one_at_a_time, pictures

REPEATED = 900.0  # seconds after its end in which a job is still what a repeated request gets
IDEMPOTENT = 86400.0  # seconds that an Idempotency-Key stands for its job
LEASE = 30.0  # seconds that a worker's claim holds without a word from it

_sequence = itertools.count(secrets.randbelow(1 << 12))


def new_id(now: float) -> str:
    """An id that sorts by time, then by arrival in this process, and can't be guessed."""
    return f"{int(now * 1000):011x}{next(_sequence) & 0xFFFF:04x}{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much unfinished work a key, and all together, may have."""

    cost: float  # rows x megapixels x evaluations
    jobs: int
    queue: int  # of all keys


class TooMuch(Error):
    """A limit is reached; `seconds` is when there may be room."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class Conflict(Error):
    """An idempotency key stands for another request, or a job's own name is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What `admit` writes."""

    key: str
    dialect: str
    version: str
    request: str  # JSON
    model: str
    cost: float
    seconds: float
    seeds: Sequence[int]  # one a picture
    steps: int  # of one picture
    inputs: Mapping[str, str]  # role -> SHA-256
    idempotency: str | None = None
    digest: str | None = None
    alias: str | None = None


# --- taking in


def admit(connection: Connection, new: NewJob, limits: Limits, now: float) -> str:
    """Write a job and its pictures; its id. Raises TooMuch and Conflict, and then nothing is written."""
    live = jobs.c.state.in_(LIVE)
    one_at_a_time(connection, f"admit {new.key}")
    if (
        new.alias is not None
        and connection.execute(select(jobs.c.id).where(jobs.c.key == new.key, jobs.c.alias == new.alias, live)).first()
    ):
        raise Conflict(f"there is an unfinished job named {new.alias[:60]!r} already; choose another name")
    count, cost, seconds = connection.execute(
        select(func.count(), func.coalesce(func.sum(jobs.c.cost), 0.0), func.coalesce(func.sum(jobs.c.seconds), 0.0))
        .select_from(jobs)
        .where(jobs.c.key == new.key, live)
    ).one()
    everyone = connection.execute(select(func.count()).select_from(jobs).where(live)).scalar_one()
    if everyone >= limits.queue:
        raise TooMuch(f"the queue is full ({limits.queue:,} jobs); try again later", _backlog(connection))
    if count >= limits.jobs:
        raise TooMuch(f"you have {count:,} unfinished jobs, as many as you may; wait for one", seconds / max(count, 1))
    if count and cost + new.cost > limits.cost:
        raise TooMuch(f"your unfinished jobs cost {cost:,.0f} of {limits.cost:,.0f}; wait for them", seconds)
    id, place = new_id(now), rank(now, new.seconds, seconds)
    connection.execute(
        insert(jobs).values(
            id=id,
            key=new.key,
            dialect=new.dialect,
            state=QUEUED,
            rank=place,
            created=now,
            changed=now,
            version=new.version,
            request=new.request,
            model=new.model,
            cost=new.cost,
            seconds=new.seconds,
            n=len(new.seeds),
            idempotency=new.idempotency,
            digest=new.digest,
            alias=new.alias,
        )
    )
    connection.execute(
        insert(pictures),
        [
            {
                "id": f"{id}-{i}",
                "job": id,
                "key": new.key,
                "number": i,
                "seed": str(seed),
                "state": QUEUED,
                "rank": place,
                "claim": 0,
                "deaths": 0,
                "step": 0,
                "steps": new.steps,
                "pinned": False,
            }
            for i, seed in enumerate(new.seeds)
        ],
    )
    if new.inputs:
        connection.execute(
            insert(job_inputs),
            [{"job": id, "role": role, "key": new.key, "sha256": sha} for role, sha in new.inputs.items()],
        )
    return id


def _backlog(connection: Connection) -> float:
    """Seconds of work that wait, of all keys."""
    return float(
        connection.execute(
            select(func.coalesce(func.sum(jobs.c.seconds), 0.0)).where(jobs.c.state.in_(LIVE))
        ).scalar_one()
    )


# --- handing out


@dataclass(frozen=True, slots=True)
class Claimed:
    """A picture handed to a worker; what it reports counts while `claim` is the picture's newest."""

    id: str
    job: str
    key: str
    index: int
    claim: int
    deaths: int
    rank: float
    model: str
    request: str
    inputs: Mapping[str, str]
    cost: float  # of this picture
    seconds: float
    steps: int
    of: int  # the job's pictures

    @property
    def width(self) -> float:
        """What it adds to a tick: rows x megapixels, about."""
        return self.cost / max(self.steps, 1)


def waiting(connection: Connection, models: Iterable[str] | None, most: int) -> list[Row[Any]]:
    """The next pictures to draw, lowest rank first, at most `most`: (id, model, deaths, cost, seconds, steps)."""
    wanted = select(
        pictures.c.id,
        jobs.c.model,
        pictures.c.deaths,
        (jobs.c.cost / jobs.c.n).label("cost"),
        (jobs.c.seconds / jobs.c.n).label("seconds"),
        pictures.c.steps,
        pictures.c.rank,
    ).join(jobs, jobs.c.id == pictures.c.job)
    wanted = wanted.where(pictures.c.state == QUEUED)
    if models is not None:
        wanted = wanted.where(jobs.c.model.in_(list(models)))
    return list(connection.execute(wanted.order_by(pictures.c.rank, pictures.c.job, pictures.c.number).limit(most)))


def claim(connection: Connection, ids: Sequence[str], owner: str, now: float, lease: float = LEASE) -> list[Claimed]:
    """Take pictures that wait, for a worker; those that another took, or that were cancelled, are left out."""
    free = select(pictures.c.id).where(pictures.c.id.in_(list(ids)), pictures.c.state == QUEUED)
    taken = connection.execute(
        update(pictures)
        .where(pictures.c.id.in_(free.with_for_update(skip_locked=True)))
        .values(state=RUNNING, claim=pictures.c.claim + 1, lease_owner=owner, lease_until=now + lease)
        .returning(pictures.c.id)
    ).scalars()
    rows = connection.execute(
        select(pictures, jobs.c.model, jobs.c.request, jobs.c.cost, jobs.c.seconds, jobs.c.n)
        .join(jobs, jobs.c.id == pictures.c.job)
        .where(pictures.c.id.in_(list(taken)))
        .order_by(pictures.c.rank, pictures.c.job, pictures.c.number)
    ).all()
    ofs = {row.job for row in rows}
    made_of: dict[str, dict[str, str]] = {job: {} for job in ofs}
    for row in connection.execute(select(job_inputs).where(job_inputs.c.job.in_(ofs))):
        made_of[row.job][row.role] = row.sha256
    found = [
        Claimed(
            id=row.id,
            job=row.job,
            key=row.key,
            index=row.number,
            claim=row.claim,
            deaths=row.deaths,
            rank=row.rank,
            model=row.model,
            request=row.request,
            inputs=made_of[row.job],
            cost=row.cost / row.n,
            seconds=row.seconds / row.n,
            steps=row.steps,
            of=row.n,
        )
        for row in rows
    ]
    settle(connection, ofs, now)
    return found


def renew(connection: Connection, owners: Sequence[str], now: float, lease: float = LEASE) -> None:
    """A worker's word that it is alive, for all that its engines hold."""
    connection.execute(
        update(pictures)
        .where(pictures.c.lease_owner.in_(list(owners)), pictures.c.state == RUNNING)
        .values(lease_until=now + lease)
    )


def held(connection: Connection, owners: Sequence[str]) -> dict[str, tuple[int, str]]:
    """What a worker's engines hold, by the rows: id -> (claim, owner)."""
    mine = (pictures.c.lease_owner.in_(list(owners)), pictures.c.state == RUNNING)
    found = connection.execute(select(pictures.c.id, pictures.c.claim, pictures.c.lease_owner).where(*mine))
    return {row.id: (row.claim, row.lease_owner) for row in found}


def progress(connection: Connection, steps: Mapping[str, int], owners: Sequence[str], now: float) -> None:
    """How far a worker's pictures are, for those who look from other processes: one statement for all."""
    if not steps:
        return
    mine = (pictures.c.id.in_(list(steps)), pictures.c.lease_owner.in_(list(owners)), pictures.c.state == RUNNING)
    moved = update(pictures).where(*mine).values(step=case(dict(steps), value=pictures.c.id, else_=pictures.c.step))
    changed = set(connection.execute(moved.returning(pictures.c.job)).scalars())
    _lock(connection, changed)
    connection.execute(update(jobs).where(jobs.c.id.in_(changed)).values(changed=now))


# --- what workers report: True if it still counted


def _report(connection: Connection, id: str, claim: int, now: float, **values: Any) -> bool:
    changed = connection.execute(
        update(pictures)
        .where(pictures.c.id == id, pictures.c.claim == claim, pictures.c.state == RUNNING)
        .values(lease_owner=None, lease_until=None, **values)
        .returning(pictures.c.job)
    ).scalar_one_or_none()
    if changed is not None:
        settle(connection, [changed], now)
    return changed is not None


def finish(connection: Connection, id: str, claim: int, now: float, *, file: str, **facts: Any) -> bool:
    """A picture is drawn and its file in place: the same row is the gallery's now. Said again, where the database went
    away in the commit and nobody knew, it still counts."""
    if _report(connection, id, claim, now, state=FINISHED, created=now, file=file, **facts):
        return True
    said = (pictures.c.id == id, pictures.c.claim == claim, pictures.c.state == FINISHED, pictures.c.file == file)
    return connection.execute(select(pictures.c.id).where(*said)).first() is not None


def fail(connection: Connection, id: str, claim: int, now: float, error: str) -> bool:
    """A picture can't be drawn."""
    return _report(connection, id, claim, now, state=FAILED, error=error)


def put_back(connection: Connection, id: str, claim: int, now: float) -> bool:
    """A picture that was claimed waits again; nobody died of it."""
    return _report(connection, id, claim, now, state=QUEUED)


def kept(connection: Connection, id: str, claim: int, step: int) -> bool:
    """A newer snapshot of a picture is on disk: what killed its worker before lies behind it."""
    row = (pictures.c.id == id, pictures.c.claim == claim, pictures.c.state == RUNNING)
    return connection.execute(update(pictures).where(*row).values(step=step, deaths=0)).rowcount == 1


def died(connection: Connection, owner: str | None, now: float, reason: str) -> list[str]:
    """A worker (None: all that there were) has died: what it had goes back, to be drawn alone, or is given up after
    `DEATHS_ALONE` deaths with nothing else aboard. The jobs that changed."""
    owned = [] if owner is None else [pictures.c.lease_owner == owner]
    return _lost(connection, owned, now, reason, skip_locked=False)  # a snapshot's row may be on its way: wait for it


def expired(connection: Connection, now: float) -> list[str]:
    """Workers that have not been heard of for a lease are taken for dead. The jobs that changed."""
    which = [pictures.c.lease_until < now]
    return _lost(connection, which, now, "its worker was not heard of any more", skip_locked=True)  # others look, too


def _lost(connection: Connection, which: list[Any], now: float, reason: str, skip_locked: bool) -> list[str]:
    wanted = select(pictures.c.id, pictures.c.job, pictures.c.deaths, pictures.c.lease_owner)
    wanted = wanted.where(pictures.c.state == RUNNING, *which).order_by(pictures.c.id)
    rows = connection.execute(wanted.with_for_update(skip_locked=skip_locked)).all()
    aboard = Counter(row.lease_owner for row in rows)
    for row in rows:
        deaths = deaths_after(row.deaths, alone=aboard[row.lease_owner] == 1)
        told = {"state": FAILED, "error": given_up(reason)} if deaths > DEATHS_ALONE else {}
        connection.execute(
            update(pictures)
            .where(pictures.c.id == row.id)
            .values(**({"state": QUEUED} | told), deaths=deaths, lease_owner=None, lease_until=None)
        )
    changed = list(dict.fromkeys(row.job for row in rows))
    settle(connection, changed, now)
    return changed


def released(connection: Connection, owner: str | None, now: float) -> list[str]:
    """What a worker (None: all) had goes back without a death: it stopped in order. The jobs that changed."""
    held = [pictures.c.state == RUNNING] + ([] if owner is None else [pictures.c.lease_owner == owner])
    changed = connection.execute(
        update(pictures).where(*held).values(state=QUEUED, lease_owner=None, lease_until=None).returning(pictures.c.job)
    ).scalars()
    jobs_changed = list(dict.fromkeys(changed))
    settle(connection, jobs_changed, now)
    return jobs_changed


# --- what people do


def cancel(connection: Connection, job: str, now: float, waiting: bool = True) -> list[str]:
    """End a job's unfinished pictures, those that wait too unless told otherwise; those that were running come back,
    so that their worker can be told."""
    running = list(
        connection.execute(select(pictures.c.id).where(pictures.c.job == job, pictures.c.state == RUNNING)).scalars()
    )
    connection.execute(
        update(pictures)
        .where(pictures.c.job == job, pictures.c.state.in_(LIVE if waiting else (RUNNING,)))
        .values(state=CANCELLED, lease_owner=None, lease_until=None)
    )
    settle(connection, [job], now)
    return running


def settle(connection: Connection, ids: Iterable[str], now: float) -> None:
    """Bring jobs' states up to their pictures'."""
    wanted = _lock(connection, ids)
    by_state = select(pictures.c.job, pictures.c.state, func.count()).where(pictures.c.job.in_(wanted))
    counts: dict[str, dict[str, int]] = {}
    for job, state, count in connection.execute(by_state.group_by(pictures.c.job, pictures.c.state)):
        counts.setdefault(job, {})[state] = count
    settled: dict[str, list[str]] = {}
    for job, found in counts.items():
        settled.setdefault(_state(found), []).append(job)
    for state, members in settled.items():
        told: dict[str, Any] = {"state": state, "changed": now}
        if state not in LIVE:
            told["finished"] = now
        if state == FAILED:
            failed = (pictures.c.job == jobs.c.id, pictures.c.state == FAILED)
            told["error"] = select(func.min(pictures.c.error)).where(*failed).scalar_subquery()
        connection.execute(update(jobs).where(jobs.c.id.in_(members)).values(**told))


def _state(counts: Mapping[str, int]) -> str:
    """A job's state from its pictures'."""
    if RUNNING in counts or (QUEUED in counts and FINISHED in counts):
        return RUNNING
    if QUEUED in counts:
        return QUEUED
    return next(state for state in (CANCELLED, FAILED, FINISHED) if state in counts)


def _lock(connection: Connection, ids: Iterable[str]) -> list[str]:
    """Hold jobs' rows to the end of the transaction, always in one order; what others did to their pictures before is
    seen by the next statement. (Two workers that finish a job's last pictures must not both see the other's running.)
    """
    wanted = sorted(set(ids))
    if wanted and connection.dialect.name == "postgresql":
        connection.execute(select(jobs.c.id).where(jobs.c.id.in_(wanted)).order_by(jobs.c.id).with_for_update())
    return wanted


# --- looking


def find(connection: Connection, job: str, key: str | None) -> Row[Any] | None:
    """A job by its id or the name that its sender gave it (the newest of that name); of one key, or (None) of any."""
    mine = [] if key is None else [jobs.c.key == key]
    return connection.execute(
        select(jobs).where(or_(jobs.c.id == job, jobs.c.alias == job), *mine).order_by(jobs.c.id.desc()).limit(1)
    ).first()


def same(connection: Connection, new: NewJob, repeat: bool, awaited: Container[str], now: float) -> str | None:
    """The job that a request is answered with instead of a new one, if any.

    With an Idempotency-Key: the one that it stands for. Raises Conflict if that asked something else. Without, where
    its sender says that it is a repeat: the newest that asked the same, that nobody waits for (`awaited`: who does),
    and that is unfinished or was finished a short while ago.
    """
    one_at_a_time(connection, f"admit {new.key}")
    if new.idempotency is not None:
        row = connection.execute(
            select(jobs.c.id, jobs.c.digest)
            .where(jobs.c.key == new.key, jobs.c.idempotency == new.idempotency, jobs.c.created >= now - IDEMPOTENT)
            .order_by(jobs.c.id.desc())
            .limit(1)
        ).first()
        if row is not None and row.digest != new.digest:
            raise Conflict("this Idempotency-Key was used with another request; use a new one")
        return None if row is None else row.id
    if not repeat:
        return None
    known = connection.execute(
        select(jobs.c.id)
        .where(jobs.c.key == new.key, jobs.c.digest == new.digest)
        .where(or_(jobs.c.state.in_(LIVE), and_(jobs.c.state == FINISHED, jobs.c.finished >= now - REPEATED)))
        .order_by(jobs.c.id.desc())
    ).scalars()
    return next((id for id in known if id not in awaited), None)


def position(connection: Connection, behind: float) -> int:
    """How many jobs that wait come before this rank."""
    return connection.execute(
        select(func.count()).select_from(jobs).where(jobs.c.state == QUEUED, jobs.c.rank < behind)
    ).scalar_one()


def pictures_of(connection: Connection, job: str) -> list[Row[Any]]:
    """A job's pictures in order."""
    return list(connection.execute(select(pictures).where(pictures.c.job == job).order_by(pictures.c.number)))


def inputs_of(connection: Connection, job: str) -> dict[str, str]:
    """The pictures that a job is made from: role -> SHA-256."""
    rows = connection.execute(select(job_inputs.c.role, job_inputs.c.sha256).where(job_inputs.c.job == job))
    return {row.role: row.sha256 for row in rows}


def view(connection: Connection, row: Row[Any], live: Mapping[int, int]) -> dict[str, Any]:
    """A job as it is told: `{id, state, alias, position, step, steps, request, images, error}` and when; what it was
    asked to attach (`loras`, `controls`, `upscale`) and is made from (`inputs`: role -> SHA-256).

    live: how far its pictures in progress are, by their numbers, where that is known better than rows say.
    """
    shown = pictures_of(connection, row.id)
    steps = [p.steps if p.state == FINISHED else min(max(p.step, live.get(p.number, 0)), p.steps) for p in shown]
    document = json.loads(row.request)
    return {
        "id": row.id,
        "state": row.state,
        "alias": row.alias,
        "position": position(connection, row.rank) if row.state == QUEUED else None,
        "step": sum(steps),
        "steps": sum(p.steps for p in shown),
        "request": document["request"],
        "loras": document["loras"],
        "controls": document["controls"],
        "upscale": document["upscale"],
        "inputs": inputs_of(connection, row.id),
        "model": row.model,
        "images": [
            {"id": p.id, "index": p.number, "seed": p.seed, "width": p.width, "height": p.height, "sha256": p.sha256}
            | {"warnings": json.loads(p.warnings or "[]")}
            for p in shown
            if p.state == FINISHED and p.deleted is None
        ],
        "n": row.n,
        "error": row.error,
        "created": row.created,
        "finished": row.finished,
        "seconds": row.seconds,
    }


def listed(
    connection: Connection, key: str | None, states: Sequence[str], most: int, live: Mapping[str, Mapping[int, int]]
) -> list[dict[str, Any]]:
    """Jobs of a key (None: all) in these states, newest first; `live`: as in `view`, by job."""
    wanted = select(jobs).where(jobs.c.state.in_(list(states)))
    if key is not None:
        wanted = wanted.where(jobs.c.key == key)
    rows = connection.execute(wanted.order_by(jobs.c.id.desc()).limit(most)).all()
    return [view(connection, row, live.get(row.id, {})) for row in rows]


def oldest_of(connection: Connection, key: str) -> str | None:
    """A key's oldest job that runs, else that waits."""
    mine = select(jobs.c.id).where(jobs.c.key == key)
    for state in (RUNNING, QUEUED):
        found = connection.execute(mine.where(jobs.c.state == state).order_by(jobs.c.id).limit(1)).scalar_one_or_none()
        if found is not None:
            return str(found)
    return None


def counts(connection: Connection) -> dict[str, int]:
    """Jobs by state."""
    rows = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    return {row[0]: row[1] for row in rows}


def oldest(connection: Connection) -> float:
    """The age in seconds of the job that has waited longest."""
    since = connection.execute(select(func.min(jobs.c.created)).where(jobs.c.state == QUEUED)).scalar_one()
    return 0.0 if since is None else max(0.0, clock(connection) - since)


def forget(connection: Connection, job: str) -> None:
    """Remove a job whose pictures are gone, with what it was made of."""
    for table in (pictures, job_inputs):
        connection.execute(delete(table).where(table.c.job == job))
    connection.execute(delete(jobs).where(jobs.c.id == job))
