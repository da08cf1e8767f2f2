"""What `/metrics` tells, in Prometheus's form. Labels never hold what a user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_WAITS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One server's counters, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.jobs = Gauge("darkroom_jobs", "Jobs by state", ["state"], registry=r)
        self.queue_age = Gauge("darkroom_queue_age_seconds", "Age of the oldest waiting job", registry=r)
        self.total = Histogram("darkroom_picture_seconds", "From admission to file", buckets=_WAITS, registry=r)
        self.previews = Counter("darkroom_previews", "Previews made", registry=r)
        self.restarts = Counter("darkroom_engine_restarts", "Engines that ended by themselves", registry=r)
        self.failures = Counter("darkroom_pictures_failed", "Pictures that could not be drawn", registry=r)
        self.requests = Counter("darkroom_http_requests", "Answers by class", ["status"], registry=r)
        self.rows = Gauge("darkroom_tick_rows", "Rows of the last tick", ["engine"], registry=r)
        self.busy = Gauge("darkroom_tick_seconds", "Seconds spent in ticks", ["engine"], registry=r)
        self.ticks = Gauge("darkroom_ticks", "Ticks", ["engine"], registry=r)
        self.memory = Gauge("darkroom_engine_memory_bytes", "Resident memory", ["engine"], registry=r)
        self.aboard = Gauge("darkroom_leases", "Pictures in an engine's hands", ["engine"], registry=r)
        self.disk = Gauge("darkroom_disk_bytes", "Bytes of finished pictures on disk", registry=r)

    def engine(self, name: str, stats: Mapping[str, Any]) -> None:
        """Note what an engine tells of itself."""
        self.rows.labels(name).set(stats.get("rows", 0))
        self.busy.labels(name).set(stats.get("busy", 0))
        self.ticks.labels(name).set(stats.get("ticks", 0))
        self.memory.labels(name).set(stats.get("memory", 0))
        self.aboard.labels(name).set(stats.get("aboard", 0))

    def finished(self, seconds: float) -> None:
        """A picture came to its file, so many seconds after its job was taken in."""
        self.total.observe(max(seconds, 0.0))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
