"""The hub's client talks to a stand-in on 127.0.0.1; each look-up is a process of its own, since the client reads its
environment when it is imported."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from darkroom.errors import CheckpointError
from darkroom.formats.hub import needed, resolve

SHA = "0123456789abcdef0123456789abcdef01234567"
MODEL = {
    "model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}',
    "README.md": b"# A model",
    "v1.ckpt": b"seven gigabytes that nobody asked for",
    "unet/config.json": b'{"in_channels": 4}',
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.bin": b"the same as a pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half of them",
    "unet/model.onnx": b"onnx",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.bin": b"only a pickle",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"large",
}
REPOSITORIES = {
    "lab/model": MODEL,
    "lab/single": {"only.safetensors": b"abc", "README.md": b""},
    "lab/empty": {"a.txt": b""},
}
GATED, PRIVATE_TOKEN = "lab/gated", "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """The few addresses that a download needs: a model's description, its file tree, its files."""

    asked: list[str] = []  # noqa: RUF012 (shared on purpose)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.asked.append(path)
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        rest = path.removeprefix("api/models/").removeprefix(repo).strip("/")
        allowed = self.headers.get("Authorization") == f"Bearer {PRIVATE_TOKEN}"
        if repo == "lab/broken":
            return self.reply(500)
        if repo == GATED and not (allowed or path.startswith("api/")):
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model lab/gated is restricted.")
        files = MODEL if repo == GATED else REPOSITORIES.get(repo)
        if files is None:
            return self.reply(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
        if path.startswith("api/"):
            what, _, revision = rest.partition("/")
            if revision.split("/")[0] not in {"", "main", "v2", SHA}:
                return self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            if what == "tree":
                answer: object = [{"type": "file", "path": f, "size": len(b), "oid": sha1(b)} for f, b in files.items()]
            else:
                answer = {"id": repo, "sha": SHA, "siblings": [{"rfilename": file} for file in files]}
            return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")
        body = files[rest.removeprefix("resolve/").partition("/")[2]]
        return self.reply(200, body, ETag=f'"{sha1(body)}"', X_Repo_Commit=SHA)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def sha1(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def look_up(home: Path, endpoint: str, *sources: str, **environment: str) -> list[str]:
    """What `resolve` answers for each source in a fresh process: a path, or "Error: sentence"."""
    script = (
        "import sys; from darkroom.errors import CheckpointError; from darkroom.formats.hub import resolve\n"
        "for source in sys.argv[1:]:\n"
        "    try: print(resolve(source))\n"
        "    except CheckpointError as error: print('Error:', error)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *sources],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(sources), done.stdout + done.stderr
    return lines


def test_downloads_what_a_model_needs_and_finds_it_again_offline(endpoint, home):
    folder, pinned, single = look_up(home, endpoint, "lab/model", "lab/model@v2", "lab/single")
    assert str(home) in folder
    assert pinned == folder
    found = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }
    assert found == {
        name: MODEL[name]
        for name in [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "tokenizer/merges.txt",
        ]
    }
    assert Path(single).name == "only.safetensors"
    assert Path(single).read_bytes() == b"abc"

    before = len(Hub.asked)
    sources = ["lab/model", "lab/model@v2", "lab/single", "lab/never"]
    *again, absent = look_up(home, endpoint, *sources, HF_HUB_OFFLINE="1")
    assert again == [folder, folder, single]
    assert absent.startswith("Error: lab/never is not in the hub's cache, and HF_HUB_OFFLINE forbids")
    assert len(Hub.asked) == before

    nowhere = "http://127.0.0.1:9"  # the discard port: nobody listens
    cached, absent = look_up(home, nowhere, "lab/model", "lab/never")
    assert cached == folder
    assert "lab/never is not in the hub's cache, and the hub can't be reached" in absent


def test_every_refusal_is_one_sentence(endpoint, home):
    unknown, revision, gated, empty, broken = look_up(
        home, endpoint, "lab/unknown", "lab/model@nope", GATED, "lab/empty", "lab/broken"
    )
    assert unknown.startswith("Error: lab/unknown is neither a path here nor a model on the hub")
    assert revision == "Error: lab/model@nope is not on the hub: the model is, but not that revision"
    assert gated.startswith("Error: lab/gated is gated: accept its terms")
    assert empty == "Error: lab/empty on the hub holds no weights that Darkroom reads"
    assert "the hub answered with status 500" in broken


def test_the_token_opens_what_is_gated(endpoint, home):
    (folder,) = look_up(home, endpoint, GATED, HF_TOKEN=PRIVATE_TOKEN)
    assert (Path(folder) / "unet/diffusion_pytorch_model.safetensors").read_bytes() == b"weights"


def test_a_path_wins(tmp_path, monkeypatch):
    (tmp_path / "lab" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("lab/model") == Path("lab/model")
    assert resolve(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/lab") == tmp_path / "lab"


@pytest.mark.parametrize(
    "source",
    ["", "model", "no/such/folder", "./lab/model", "../model", "lab/model.safetensors", "/lab/model", "lab/", "lab/m l",
     "lab/model@", "lab/model@-x", "-lab/model", "a" * 5000, "lab/\0model", "lab/..", "lab/model@../../x", "lab/a--b",
     "https://huggingface.co/lab/model", "~nobody-of-that-name/model", "läb/model", "lab/" + "m" * 100],
)  # fmt: skip
def test_what_is_neither_path_nor_hub_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"org/name"):
        resolve(source)


def test_needed_prefers_whole_safetensors_and_keeps_shards_together():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = ["unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors", "unet/diffusion_pytorch_model.bin"]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert needed(["model_index.json", index, *half, *shards]) == sorted(["model_index.json", index, *shards])
    part = ["config.json", "diffusion_pytorch_model.safetensors", "other.safetensors", "sub/config.json"]
    assert needed(part) == ["config.json", "diffusion_pytorch_model.safetensors"]
    only_half = [
        "model_index.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.non_ema.bin",
    ]
    assert needed(only_half) == only_half[:2]
    traps = ["../unet/config.json", "unet/../../config.json", "openvino_model.bin", "model.ckpt"]
    assert needed(["model_index.json", *traps]) == ["model_index.json"]
    assert needed(["a.ckpt", "b.safetensors", "sub/c.safetensors"]) == ["b.safetensors"]
