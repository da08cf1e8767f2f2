"""variation_seed and variation_strength: other versions of one picture, told by one declaration everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

import darkroom
from darkroom import Noise, Request, RequestError
from darkroom.formats.infotext import parse_infotext, to_infotext
from darkroom.pipeline import Pipeline
from darkroom.sweeps.axes import parse_axis


def drawn(pipe: Pipeline, **settings: object) -> Image.Image:
    (picture,) = pipe.generate("a fox", steps=2, sampler="euler", seed=3, **settings).images  # type: ignore[arg-type]
    assert isinstance(picture, Image.Image)
    return picture


def test_a_variation_lies_between_two_pictures(tiny_pipe: Pipeline) -> None:
    plain, other = drawn(tiny_pipe), tiny_pipe.generate("a fox", steps=2, sampler="euler", seed=9).images[0]
    half = drawn(tiny_pipe, noise=Noise(variation_seed=9, variation_strength=0.5)).tobytes()
    assert half not in (plain.tobytes(), other.tobytes())
    assert drawn(tiny_pipe, noise=Noise(variation_seed=9, variation_strength=0.0)).tobytes() == plain.tobytes()
    whole = drawn(tiny_pipe, noise=Noise(variation_seed=9, variation_strength=1.0))
    pairs = zip(whole.tobytes(), other.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1  # the angle's rounding


def test_the_variation_seed_counts_and_the_seed_stays(tiny_pipe: Pipeline) -> None:
    varied = Noise(variation_seed=2**64 - 1, variation_strength=0.2)
    result = tiny_pipe.generate("a fox", steps=1, seed=3, num_images=2, noise=varied)
    assert [request.seed for request in result.requests] == [3, 3]
    assert [request.variation_seed for request in result.requests] == [2**64 - 1, 0]
    again = tiny_pipe.draw([result.requests[1]]).images[0]
    assert again.tobytes() == result.images[1].tobytes()


def test_a_variation_seed_that_was_left_open_is_reported(tiny_pipe: Pipeline) -> None:
    (request,) = tiny_pipe.generate("a fox", steps=1, noise=Noise(variation_strength=0.2)).requests
    assert request.variation_seed is not None
    engine = darkroom.Engine(tiny_pipe)
    engine.add(Request(prompt="a fox", steps=1, variation_strength=0.2))
    (finished,) = [event for event in engine.step() if isinstance(event, darkroom.Finished)]
    assert finished.request.variation_seed is not None


def test_a_recipe_tells_and_reads_it() -> None:
    request = Request(prompt="a fox", seed=3, variation_seed=9, variation_strength=0.25)
    assert Request.from_dict(request.to_dict()) == request
    text = to_infotext(request.to_dict())
    assert "Variation seed: 9, Variation seed strength: 0.25" in text
    read = parse_infotext(text)
    assert (read["variation_seed"], read["variation_strength"]) == (9, 0.25)
    assert "variation_seed" not in Request(prompt="a fox").to_dict()


def test_a_sweep_varies_it() -> None:
    assert parse_axis("x", "variation_strength=0,0.5").values == (0.0, 0.5)
    assert parse_axis("x", "variation_seed=4..6").values == (4, 5, 6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"variation_seed": 3}, "variation_seed is given without variation_strength; give it too"),
        ({"variation_strength": 1.5}, "variation_strength is 1.5; it must be from 0 to 1"),
        ({"variation_seed": 2**64, "variation_strength": 0.1}, "variation_seed is 18446744073709551616"),
    ],
)
def test_what_cannot_be(given: dict[str, object], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        replace(Request(prompt="a fox"), **given)  # type: ignore[arg-type]
