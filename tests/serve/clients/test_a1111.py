"""Clients of A1111's web UI, unmodified, with a key and without."""

from __future__ import annotations

from ..conftest import Running
from .conftest import Client


def test_webuiapi(server: Running, python_client: Client) -> None:
    python_client("webuiapi_script.py", server, "webuiapi")


def test_sd_backend_client(server: Running, python_client: Client) -> None:
    python_client("sd_backend_script.py", server, "sd-backend-client")


def test_image_generation_mcp(server: Running, python_client: Client) -> None:
    python_client("image_generation_mcp_script.py", server, "image-generation-mcp")


def test_aaa1111(server: Running, python_client: Client) -> None:
    python_client("aaa1111_script.py", server, "aaa1111")
