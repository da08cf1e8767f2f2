"""OpenAI's clients and those that go through them, unmodified, with a key and without."""

from __future__ import annotations

from ..conftest import Running
from .conftest import Client


def test_openai_of_python(server: Running, python_client: Client) -> None:
    python_client("openai_python.py", server, "openai")


def test_openai_of_npm(server: Running, node_client: Client) -> None:
    node_client("openai_node.mjs", server, "openai")


def test_langchain(server: Running, python_client: Client) -> None:
    python_client("langchain_dalle.py", server, "langchain-community", "openai")


def test_litellm(server: Running, python_client: Client) -> None:
    python_client("litellm_images.py", server, "litellm")


def test_vercel_ai(server: Running, node_client: Client) -> None:
    node_client("vercel_ai.mjs", server, "ai", "@ai-sdk/openai-compatible")
