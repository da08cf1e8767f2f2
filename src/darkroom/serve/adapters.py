"""What the LoRAs and learned words of a server are for, and whether they fit a model: engines read their files, and
what they tell is kept by the files' fingerprints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ..errors import RequestError
from .dispatcher import Dispatcher
from .models import Found, ModelIndex

KINDS = ("lora", "embedding")
AT_ONCE = 32  # files of one question to an engine
PATIENCE = 3.0  # seconds that an answer waits for files that nobody has read yet
log = logging.getLogger(__name__)


class Adapters:
    """Knows, or finds out, what files are for."""

    def __init__(self, dispatcher: Dispatcher, index: ModelIndex) -> None:
        self.dispatcher, self.index = dispatcher, index
        self._reading: asyncio.Task[None] | None = None

    async def listed(self, model: Found) -> dict[str, Any]:
        """All that can be named in prompts, with what it needs and whether it fits a model.

        Keys: loras and embeddings (name, use, words, title, base, fits, why), controlnets and vaes (name), reading (how
        many files are still to be read; their fits is None, as of a model that was never loaded).
        """
        if self._unread() and self.dispatcher.ready:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.wait({self._reading}, timeout=PATIENCE)
        found, own = self.index.found, self.dispatcher.descriptions.get(model.fingerprint, {})
        return {
            "loras": [self._shown(one, f"<lora:{name}:1>", own) for name, one in found["lora"].items()],
            "embeddings": [self._shown(one, name, own) for name, one in found["embedding"].items()],
            "controlnets": [{"name": name} for name in found["controlnet"]],
            "vaes": [{"name": name} for name in found["vae"]],
            "reading": len(self._unread()),
        }

    def close(self) -> None:
        """Read no further."""
        if self._reading is not None:
            self._reading.cancel()

    def _unread(self) -> list[Found]:
        known = self.dispatcher.descriptions
        return [one for kind in KINDS for one in self.index.found[kind].values() if one.fingerprint not in known]

    async def _read(self) -> None:
        """Have all files read that aren't known yet."""
        try:
            while files := self._unread()[:AT_ONCE]:
                answer = await self.dispatcher.call("adapters", files=[[one.kind, one.path] for one in files])
                told = dict(zip([one.fingerprint for one in files], answer["value"], strict=True))
                await self.dispatcher.remember(told)
        except RequestError as error:
            log.warning("what LoRAs and learned words are for can't be told: %s", error)

    def _shown(self, one: Found, use: str, model: Mapping[str, Any]) -> dict[str, Any]:
        told = self.dispatcher.descriptions.get(one.fingerprint, {})
        why = _misfit(told, model)
        known = any(told.get(name) and model.get(name) for name in ("text_width", "text_widths"))
        words = [word for word in told.get("words", ()) if word != use]
        return {
            "name": one.name,
            "use": use,
            "title": told.get("title"),
            "words": words,
            "base": told.get("base"),
            "bytes": one.bytes,
            "fits": False if why else True if known else None,
            "why": why,
        }


def _misfit(told: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Why a file can't be used with a model; None where it can, or nobody knows yet."""
    if told.get("error"):
        return str(told["error"])
    for name in ("text_width", "text_widths"):
        theirs, ours = told.get(name), model.get(name)
        if theirs and ours and theirs != ours:
            return f"it is made for {told.get('base')}; this model is {model.get('base')}"
    return None
