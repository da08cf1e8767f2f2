"""What a LoRA file is and holds, without a model: `darkroom info FILE`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import open_tensors
from .lora import content_hash, family, is_lora, lora_path, scan_lora

_NOTES = ("ss_", "sshs_", "modelspec.")


def holds_lora(source: str | Path) -> bool:
    """Whether a file (or a folder that diffusers or PEFT wrote) is a LoRA; False for what can't be read at all."""
    try:
        with open_tensors(lora_path(source)) as file:
            return is_lora(file)
    except (CheckpointError, OSError, ValueError):
        return False


def describe_lora(source: str | Path) -> dict[str, Any]:
    """A LoRA's form, kinds and sizes, ready for JSON.

    Keys: name, path, form ("kohya" or "diffusers"), kinds (kind -> layers), ranks (rank -> layers), base (which models
    it is made for, or None), text_width, dtypes (name -> tensors), size (bytes), hash (12 digits, A1111's), unknown
    (names that are no LoRA's), metadata (ss_*, modelspec.*). Raises CheckpointError.
    """
    path = lora_path(source)
    with open_tensors(path) as file:
        scan = scan_lora(file)
        dtypes = Counter(file.dtype_name(name) for name in file.names())
    ranks: Counter[int] = Counter()
    for slots in scan.slots.values():
        name = next((slots[s] for s in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if s in slots), None)
        if name is not None and scan.shapes[name]:
            ranks[scan.shapes[name][0]] += 1
    width = scan.text_width
    return {
        "name": path.stem,
        "path": str(path),
        "kind": "LoRA",
        "form": scan.form,
        "kinds": scan.kinds,
        "ranks": {str(rank): count for rank, count in ranks.most_common()},
        "base": None if width is None else family(width),
        "text_width": width,
        "dtypes": dict(dtypes.most_common()),
        "size": path.stat().st_size,
        "hash": content_hash(path)[:12],
        "unknown": list(scan.strangers),
        "metadata": {key: text for key, text in sorted(scan.metadata.items()) if key.startswith(_NOTES)},
    }
