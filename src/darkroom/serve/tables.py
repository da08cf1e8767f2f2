"""The server's database: its tables, and how an older one becomes a newer one. The statements suit SQLite and
PostgreSQL alike.

A finished row of `pictures` is the gallery's row. Times are seconds since 1970, ids begin with a time so that they sort
as they came; texts hold no lone surrogates (requests are ASCII JSON).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import Error

QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = "queued", "running", "finished", "failed", "cancelled"
LIVE = (QUEUED, RUNNING)

LOCK = 0x6461726B  # of PostgreSQL's advisory locks: ours
metadata = MetaData()

schema = Table("schema", metadata, Column("version", Integer, nullable=False))

# What engines told of models (so that requests are completed and priced without them), of LoRAs and of learned words.
# `fingerprint`: path, size, time.
models = Table(
    "models",
    metadata,
    Column("fingerprint", String(200), primary_key=True),
    Column("description", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(100), nullable=False),  # the name of the API key, "" where there are none
    Column("dialect", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("rank", Float, nullable=False),  # lowest first (docs/serve.md)
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Column("version", String(40), nullable=False),  # the Darkroom that took it in
    Column("request", Text, nullable=False),  # jobs.Wanted as JSON: with its pictures' hashes, a pure function
    Column("model", String(300), nullable=False),
    Column("cost", Float, nullable=False),  # rows x megapixels x evaluations of all its pictures
    Column("seconds", Float, nullable=False),  # what they are expected to take
    Column("n", Integer, nullable=False),
    Column("idempotency", String(300)),  # an Idempotency-Key
    Column("digest", String(64)),  # of what was asked, to know a repeat
    Column("alias", String(300)),  # another name that its sender gave it
    Column("error", Text),
    # Where several processes share the database (`together`), by its clock: when the job last changed, and until when
    # somebody looks at its steps, or at its previews.
    Column("changed", Float, nullable=False, server_default="0"),
    Column("watched", Float, nullable=False, server_default="0"),
    Column("previewed", Float, nullable=False, server_default="0"),
    Index("jobs_by_key", "key", "state", "created"),
    Index("jobs_by_change", "changed"),
    Index("jobs_by_rank", "state", "rank"),
    Index("jobs_by_digest", "key", "digest"),
    Index("jobs_by_idempotency", "key", "idempotency"),
    Index("jobs_by_alias", "key", "alias"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("job", String(40), nullable=False),
    Column("key", String(100), nullable=False),  # the job's
    Column("number", Integer, nullable=False),  # 0 to n - 1, in its job
    Column("seed", String(20), nullable=False),  # up to 2^64, which no integer column holds
    Column("state", String(20), nullable=False),
    Column("rank", Float, nullable=False, server_default="0"),  # the job's
    Column("claim", Integer, nullable=False),  # rises with every claim: a fencing token
    Column("deaths", Integer, nullable=False),  # of engines and servers with it aboard
    Column("lease_owner", String(100)),
    Column("lease_until", Float),
    Column("step", Integer, nullable=False),  # of its newest snapshot, or as far as is known
    Column("steps", Integer, nullable=False),
    Column("file", String(300)),  # below DATA; empty again when the file was let go
    Column("bytes", BigInteger),
    Column("width", Integer),
    Column("height", Integer),
    Column("sha256", String(64)),
    Column("infotext", Text),  # what the gallery searches
    Column("recipe", Text),  # the complete one, as JSON
    Column("warnings", Text),  # sentences, as JSON: what was asked and not followed
    Column("error", Text),
    Column("pinned", Boolean, nullable=False),
    Column("rating", Integer),
    Column("tags", Text),
    Column("created", Float),  # when it was finished
    Column("deleted", Float),
    Index("pictures_by_job", "job", "number"),
    Index("pictures_by_rank", "state", "rank", "job", "number"),
    Index("pictures_by_owner", "lease_owner"),
    Index("pictures_by_time", "key", "state", "created", "id"),
)

inputs = Table(
    "inputs",
    metadata,
    Column("key", String(100), primary_key=True),
    Column("sha256", String(64), primary_key=True),  # of what was sent; the file is its re-encoding
    Column("bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job", String(40), primary_key=True),
    Column("role", String(40), primary_key=True),  # image, mask, depth, control.0, ...
    Column("key", String(100), nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("job_inputs_by_hash", "key", "sha256"),
)

# Grids of jobs: their pictures are laid out when they are asked for, so nothing of a sheet is kept.
sweeps = Table(
    "sweeps",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(100), nullable=False),
    Column("created", Float, nullable=False),
    Column("request", Text, nullable=False),  # the one whose values the axes replace, as JSON
    Column("axes", Text, nullable=False),  # as they were given, as JSON
    Column("jobs", Text, nullable=False),  # one a cell, x fastest, as JSON
    Index("sweeps_by_key", "key", "created"),
)

preferences = Table(
    "preferences",
    metadata,
    Column("key", String(100), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("value", Text, nullable=False),
)

# Processes with engines on a database that several share; `told`: what they have and are, as JSON.
workers = Table(
    "workers",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("seen", Float, nullable=False),
    Column("told", Text, nullable=False),
)

# Models that somebody wants to know of, for a worker to load.
wishes = Table(
    "wishes",
    metadata,
    Column("fingerprint", String(200), primary_key=True),  # under which it shall be told
    Column("model", String(300), nullable=False),
    Column("asked", Float, nullable=False),
)


class StoreError(Error):
    """The database can't be used: of a newer version, broken, or held by another server."""


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


def _sweeps(connection: Connection) -> None:
    sweeps.create(connection, checkfirst=True)


def _together(connection: Connection) -> None:
    """Ranks on pictures, so that the next ones are found by an index; what processes tell each other."""
    metadata.create_all(connection)
    there = inspect(connection)
    for table, names in ((jobs, ("changed", "watched", "previewed")), (pictures, ("rank",))):
        known = {column["name"] for column in there.get_columns(table.name)}
        for name in names:
            if name not in known:
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {name} FLOAT NOT NULL DEFAULT 0"))
    connection.execute(
        update(pictures).values(rank=select(jobs.c.rank).where(jobs.c.id == pictures.c.job).scalar_subquery())
    )
    connection.execute(text("DROP INDEX IF EXISTS pictures_by_state"))
    for index in (*jobs.indexes, *pictures.indexes):
        index.create(connection, checkfirst=True)


# A database is brought up by the functions behind its version, each in one transaction. Only ever append.
MIGRATIONS: Sequence[Callable[[Connection], None]] = (_first, _sweeps, _together)


def migrate(connection: Connection) -> None:
    """Bring a database to the newest version, in the transaction that is open. Raises StoreError for a newer one."""
    one_at_a_time(connection, "migrate")
    found = 0
    if inspect(connection).has_table("schema"):
        found = connection.execute(select(schema.c.version)).scalar_one()
    if found > len(MIGRATIONS):
        raise StoreError(
            f"the database is of version {found}, and this Darkroom knows {len(MIGRATIONS)}; use the newer Darkroom"
        )
    for step in MIGRATIONS[found:]:
        step(connection)
    if found == 0:
        connection.execute(insert(schema).values(version=len(MIGRATIONS)))
    elif found < len(MIGRATIONS):
        connection.execute(update(schema).values(version=len(MIGRATIONS)))


def clock(connection: Connection) -> float:
    """Seconds since 1970 by the clock that all who share the database see: its own."""
    if connection.dialect.name != "postgresql":
        return time.time()
    return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())


def one_at_a_time(connection: Connection, what: str) -> None:
    """To the end of its transaction, nobody else is past this line for the same purpose. SQLite has one writer."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(LOCK, func.hashtext(what))))


def upsert(connection: Connection, table: Table, keys: Sequence[str], row: Mapping[str, Any], **changed: Any) -> None:
    """Insert a row, or change what is `changed` (nothing: all of it) of the one that has these keys already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**row)
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed or dict(row)))
