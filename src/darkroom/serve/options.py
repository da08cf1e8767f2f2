"""What a server can be told at its start: `darkroom serve`'s options, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOST, PORT = "127.0.0.1", 7860


@dataclass(kw_only=True)
class ServeOptions:
    """Everything that a server is told.

    Attributes:
        data: its folder; model, models: a model by path or name, and a folder of models (`models.ModelIndex`).
        database: the address of a PostgreSQL database that other processes share; None: SQLite in the folder.
        lease: seconds after which another process takes over what one that is not heard of had.
        engines: engine processes; None: one, or on a processor one a core for small models; 0, on a shared database:
            none, others draw.
        max_rows: U-Net rows of a tick; None: what suits the device.
        model_memory: bytes that models may take in all engines together.
        snapshot_every: seconds of a picture's running time between snapshots.
        keys: the file of API keys; None: no key is asked for.
        public_url: how the server is reached from outside; sets origin, path prefix and cookies.
        max_cost: of one job, and of a key's unfinished ones: rows x megapixels x evaluations.
        engine_command: another program of the same protocol in place of the engine's, for tests.
    """

    data: Path
    host: str = HOST
    port: int = PORT
    model: str | None = None
    models: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    database: str | None = None
    lease: float = 30.0
    engines: int | None = None
    max_rows: int | None = None
    model_memory: float = 0.0
    snapshot_every: float = 5.0
    keys: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    behind_proxy: bool = False
    cors: tuple[str, ...] = ()
    cancel_when_client_goes: bool = False
    log_prompts: bool = False
    keep_days: float | None = None
    keep_gb: float | None = None
    max_cost: float = 2_000.0
    max_outstanding: float = 20_000.0
    max_jobs: int = 1_000
    max_queue: int = 10_000
    max_body: int = 32 * 2**20
    max_pixels: int = 16_000_000
    engine_command: Sequence[str] | None = None
    cores: int = field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )

    def __post_init__(self) -> None:
        if not self.model_memory:
            self.model_memory = 0.6 * _free_memory()


def _free_memory() -> float:
    """Bytes that are free now; 8 GB where the system doesn't say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 8e9
