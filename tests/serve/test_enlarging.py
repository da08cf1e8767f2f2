"""Networks that enlarge, on the server: found in the folders, named by A1111's clients, run in an engine's process."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.upscaler import save_upscaler
from darkroom.models.upscaler import Compact, CompactConfig
from darkroom.request import EMBEDDED_UPSCALER, Enlarge, Hires, Request
from darkroom.serve.a1111.pictures import target
from darkroom.serve.jobs import upscalers_of, wanted_for_engine
from darkroom.serve.models import ModelIndex
from darkroom.serve.questions import enlarged


@pytest.fixture
def index(tmp_path: Path) -> ModelIndex:
    config = CompactConfig(width=4, layers=1, scale=2)
    (tmp_path / "models" / "ESRGAN").mkdir(parents=True)
    path = tmp_path / "models" / "ESRGAN" / "RealESRGAN_x4plus.safetensors"
    save_upscaler(path, Compact(config).state_dict(), config)
    return ModelIndex(tmp_path / "models")


def test_a_network_is_found_by_its_name_and_by_a1111s(index: ModelIndex) -> None:
    for name in ("RealESRGAN_x4plus", "realesrgan_x4plus.safetensors", "R-ESRGAN 4x+"):
        assert index.upscaler(name).name == "RealESRGAN_x4plus"
    for name in ("/etc/passwd", "../x", "R-ESRGAN 2x+"):
        with pytest.raises(RequestError, match="there is no upscaler"):
            index.upscaler(name)


def test_an_engine_is_sent_its_path(index: ModelIndex) -> None:
    request = Request(prompt="x", hires=Hires(upscaler="R-ESRGAN 4x+"), enlarge=Enlarge(upscaler=EMBEDDED_UPSCALER))
    assert upscalers_of(request) == ["R-ESRGAN 4x+"]
    document = json.dumps({"request": request.to_dict(), "controls": [], "loras": []})
    wanted, _ = wanted_for_engine(document, index)
    assert wanted["upscalers"] == {"R-ESRGAN 4x+": index.upscaler("RealESRGAN_x4plus").path}


def test_a_picture_is_enlarged_to_a_size(index: ModelIndex) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 6), "red").save(buffer, "PNG")
    found = index.upscaler("RealESRGAN_x4plus")
    told = {"path": found.path, "fingerprint": found.fingerprint, "size": [20, 15]}
    large = Image.open(io.BytesIO(base64.b64decode(enlarged(buffer.getvalue(), told))))
    assert (large.mode, large.size) == ("RGBA", (20, 15))
    Path(found.path).write_bytes(b"broken")
    with pytest.raises(CheckpointError):
        enlarged(buffer.getvalue(), told | {"fingerprint": "another"})


def test_sizes_are_as_a1111_reckons_them() -> None:
    assert target((30, 20), 0, 2.5, (1, 1)) == (75, 50)
    assert target((30, 20), 1, 9.0, (60, 60)) == (90, 60)
    with pytest.raises(RequestError, match="sides may have"):
        target((5000, 20), 0, 2.0, (1, 1))
