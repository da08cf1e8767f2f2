"""What the hub keeps of jobs in progress: nothing once their pictures have landed."""

from __future__ import annotations

from darkroom.serve.events import Hub


def test_a_job_s_last_picture_takes_all_that_is_known_of_it_along() -> None:
    hub = Hub()
    for index in (0, 1):
        hub.progress("job", "", index, 1, 4)
        hub.preview("job", "", index, b"jpeg")
    hub.landed("job", 0)
    assert hub.steps() == {"job": {1: 1}}
    hub.landed("job", 1)
    assert hub.live == {}
    hub.landed("job", 1)  # told twice: nothing happens
    assert hub.live == {}
