"""Every operation of /openapi.json with whatever schemathesis makes up: no answer is a stumble."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from .conftest import Running

schemathesis = pytest.importorskip("schemathesis")


EXAMPLES = int(os.environ.get("DARKROOM_EXAMPLES", "12"))  # an operation; `make soak` asks for 300


def test_no_operation_stumbles(fake: Running) -> None:
    """Not the event streams, which have no end."""
    schema = schemathesis.openapi.from_url(f"{fake.url}/openapi.json").exclude(path_regex="events")
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def stumbles(case: Any) -> None:
            answer = case.call(timeout=60)
            assert answer.status_code < 500 or answer.status_code == 503, (case.path, answer.text)

        stumbles()
        count += 1
    assert count >= 25


def test_the_schema_tells_a_job_s_settings(fake: Running) -> None:
    told = fake.client.get("/openapi.json").json()
    body = told["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["steps"]["type"] == "integer"
    assert body["properties"]["guidance_scale"]["type"] == "number"
    assert {"prompt", "n", "image", "mask", "loras", "hires"} <= body["properties"].keys()
    assert not {"model_hash", "version", "embeddings"} & body["properties"].keys()
