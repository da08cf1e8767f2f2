"""An engine of the server's protocol without torch: pictures are made from the digest of what is asked.

It is started as the real one is: `python fake_engine.py FD`. The prompt of a picture says what befalls it:

    "... die"            the process kills itself while it draws it
    "... hang"           it stops answering
    "... fail"           the picture fails
    "... slow"           ten times as many ticks
    "... unencodable"    submitting it fails
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from PIL import Image

from darkroom.formats.infotext import to_infotext
from darkroom.formats.picture import dump_recipe, encoded
from darkroom.request import Request
from darkroom.serve.messages import Message, read

TICK = float(os.environ.get("FAKE_TICK", "0.002"))  # seconds
LOAD = float(os.environ.get("FAKE_LOAD", "0"))  # seconds


def description(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "hash": hashlib.sha256(name.encode()).hexdigest()[:10],
        "title": name,
        "size": [64, 64],
        "downscale": 8,
        "defaults": {"steps": 4, "guidance_scale": 3.0},
        "sampler": "euler",
        "schedule": "automatic",
        "task": "text",
        "xl": False,
        "parameters": 200_000_000,
        "bytes": 1_000_000,
        "dtype": "float32",
        "device": "cpu",
        "text_width": 768,
        "text_widths": [768],
        "base": "Stable Diffusion 1.x (text width 768)",
        "words": ["owl", "fox", "fig"],
        "examples": ["an owl", "a fox", "a fig"],
        "load_seconds": 0.5,
        "bit_class": "fake",
        "bit_exact": True,
        "budget": 32 * 64 * 64 / 1e6,
    }


def adapter(kind: str, path: str) -> dict[str, Any]:
    """By its name: what an "xl" is for is SDXL, and a "broken" one can't be read."""
    name = Path(path).stem
    if "broken" in name:
        return {"error": f"{name} is broken"}
    width, base = (2048, "SDXL (text width 2048)") if "xl" in name else (768, "Stable Diffusion 1.x (text width 768)")
    return {"base": base, "text_width" if kind == "lora" else "text_widths": width if kind == "lora" else [width],
            "words": [f"{name} style"], "title": name.title()}  # fmt: skip


def drawn(
    wanted: dict[str, Any], index: int, model: str, pictures: dict[str, bytes]
) -> tuple[Image.Image, dict[str, Any]]:
    """The picture and recipe of a request: a function of what is asked and nothing else."""
    request = Request.from_dict(wanted["request"]).numbered(index)
    size = Image.open(io.BytesIO(pictures["image"])).size if "image" in pictures else (64, 64)
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    width, height = request.width or size[0] + left + right, request.height or size[1] + top + bottom
    digest = hashlib.sha256(dump_recipe(request.to_dict()).encode())
    for picture in pictures.values():
        digest.update(picture)
    side = Image.frombytes("RGB", (2, 2), digest.digest()[:12])
    recipe = request.to_dict() | {
        "model": model,
        "model_hash": description(model)["hash"],
        "width": width,
        "height": height,
    }
    return side.resize((width, height), Image.Resampling.BILINEAR), recipe


class Fake:
    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.pictures: dict[str, dict[str, Any]] = {}
        self.models: list[str] = []

    def say(self, kind: str, *blobs: bytes, **fields: Any) -> None:
        self.line.sendall(Message(kind, fields, blobs).packed())

    def run(self) -> None:
        told = 0.0
        while True:
            try:
                message = self.inbox.get(timeout=0.2) if not self.pictures else self.inbox.get_nowait()
                while True:
                    if self.do(message):
                        return
                    message = self.inbox.get_nowait()
            except queue.Empty:
                pass
            if self.pictures:
                self.tick()
            if time.monotonic() - told > 1:
                told = time.monotonic()
                self.say(
                    "stats",
                    ticks=1,
                    rows=1,
                    busy=0.1,
                    seconds_per_unit=0.1,
                    memory=1,
                    models=self.models,
                    aboard=len(self.pictures),
                )

    def do(self, message: Message) -> bool:
        if message.kind == "load":
            time.sleep(LOAD)
            if "broken" in message["name"]:
                self.say("failed_load", name=message["name"], error="the file is broken")
            else:
                self.models.append(message["name"])
                self.say("loaded", name=message["name"], description=description(message["name"]))
        elif message.kind == "unload":
            self.models.remove(message["name"])
            self.say("unloaded", name=message["name"])
        elif message.kind == "submit":
            assert message["model"] in self.models
            blobs = list(message.blobs)
            begun = int(blobs.pop()) if message["snapshot"] else 0
            prompt = message["wanted"]["request"]["prompt"]
            if prompt.endswith("unencodable"):
                self.say("failed", id=message["id"], claim=message["claim"], error="it can't be encoded", retry=False)
                return False
            steps = message["wanted"]["request"].get("steps", 4) * (10 if prompt.endswith("slow") else 1)
            self.pictures[message["id"]] = {"message": message, "blobs": blobs, "step": begun, "steps": steps}
        elif message.kind == "cancel":
            self.pictures.pop(message["id"], None)
        elif message.kind == "watch":
            for picture in self.pictures.values():
                if picture["message"]["job"] == message["job"]:
                    picture["watched"] = message["on"]
        elif message.kind == "call":
            self.call(message)
        elif message.kind == "stop":
            for id, picture in self.pictures.items():
                if picture["step"]:
                    self.keep(id, picture)
            self.say("stopped")
            return True
        return False

    def call(self, message: Message) -> None:
        if message["name"] == "explain":
            prompt = message["arguments"]["prompt"]
            chunk = [{"text": word, "weight": 1.0} for word in prompt.split()]
            told = {"prompt": prompt, "parts": [{"texts": [{"chunks": [chunk]}]}]}
            self.say("answer", call=message["call"], value=told, error=None)
        elif message["name"] == "adapters" and "FAKE_ADAPTERS" not in os.environ:
            told = [adapter(kind, path) for kind, path in message["arguments"]["files"]]
            self.say("answer", call=message["call"], value=told, error=None)
        else:
            self.say("answer", call=message["call"], value=None, error=f"no call {message['name']}")

    def keep(self, id: str, picture: dict[str, Any]) -> None:
        self.say(
            "snapshot", str(picture["step"]).encode(), id=id, claim=picture["message"]["claim"], step=picture["step"]
        )

    def tick(self) -> None:
        time.sleep(TICK)
        items = []
        for id, picture in list(self.pictures.items()):
            message, prompt = picture["message"], picture["message"]["wanted"]["request"]["prompt"]
            picture["step"] += 1
            if prompt.endswith("die") and picture["step"] >= 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if prompt.endswith("hang"):
                self.say("phase", name="ticking", seconds=float(os.environ.get("FAKE_HANG", "-29")))
                time.sleep(1000)
            if prompt.endswith("fail"):
                del self.pictures[id]
                self.say("failed", id=id, claim=message["claim"], error="it came out as NaN", retry=False)
                continue
            items.append([id, message["claim"], picture["step"], picture["steps"]])
            if message["watched"] or picture.get("watched"):
                buffer = io.BytesIO()
                Image.new("RGB", (32, 32), (picture["step"] * 20 % 256, 0, 0)).save(buffer, "JPEG")
                self.say("preview", buffer.getvalue(), id=id, claim=message["claim"], step=picture["step"])
            if picture["step"] % 5 == 0:
                self.keep(id, picture)
            if picture["step"] >= picture["steps"]:
                del self.pictures[id]
                self.finish(id, message, picture["blobs"])
        self.say("progress", items=items)

    def finish(self, id: str, message: Message, blobs: list[bytes]) -> None:
        pictures = dict(zip(message["roles"], blobs, strict=True))
        image, recipe = drawn(message["wanted"], message["index"], message["model"], pictures)
        data = encoded(image, "PNG", recipe)
        self.say(
            "finished",
            data,
            id=id,
            claim=message["claim"],
            width=image.width,
            height=image.height,
            sha256=hashlib.sha256(data).hexdigest(),
            infotext=to_infotext(recipe).encode("utf-8", "replace").decode(),
            recipe=dump_recipe(recipe),
        )


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line = socket.socket(fileno=int(sys.argv[1]))
    stream = line.makefile("rb")
    assert read(stream) is not None
    fake = Fake(line)

    def listen() -> None:
        while (message := read(stream)) is not None:
            fake.inbox.put(message)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    fake.say("ready", pid=os.getpid())
    fake.run()


if __name__ == "__main__":
    main()
