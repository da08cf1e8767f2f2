"""The groups of `Pipeline.generate`: each holds what `Request` declares for it, and a flat name works for a version."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

import darkroom
from darkroom.arguments import GROUPS, grouped, ungrouped
from darkroom.cli.drawing import options_of
from darkroom.errors import RequestError
from darkroom.formats.infotext import parse_infotext, rows_of, to_infotext
from darkroom.pipeline import Pipeline
from darkroom.request import Request
from darkroom.settings import default, real, setting, settings
from darkroom.sweeps.axes import sweepable

DECLARED = {
    name: tuple(declared.group.split(".")) for name, declared in settings(Request).items() if declared.group is not None
}


@pytest.mark.parametrize("argument", GROUPS)
def test_a_group_has_what_the_request_declares_for_it(argument: str) -> None:
    group = GROUPS[argument]
    wanted = {member: default(Request, name) for name, (place, member) in DECLARED.items() if place == argument}
    assert {field.name: field.default for field in fields(group)} == wanted
    assert all(name in (group.__doc__ or "") for name in wanted)
    assert getattr(darkroom, group.__name__) is group


def test_generate_takes_what_people_use_and_the_groups() -> None:
    taken = inspect.signature(Pipeline.generate).parameters
    arguments = [name for name, p in taken.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    assert len(arguments) <= 32
    assert set(GROUPS) < set(arguments)
    asked = {name for name, declared in settings(Request).items() if declared.axis and declared.group is None}
    assert asked < set(arguments)
    told = Pipeline.generate.__doc__ or ""
    assert all(f"{name}:" in told or f"{name}," in told for name in asked)
    for name in asked - {"prompt"}:
        assert taken[name].default == default(Request, name), name


def test_groups_open_and_close() -> None:
    flat = {"guidance_rescale": 0.5, "cache_interval": 2, "steps": 3}
    made = grouped(flat)
    assert made == {
        "steps": 3, "guidance": darkroom.Guidance(rescale=0.5), "speed": darkroom.Speed(cache_interval=2)
    }  # fmt: skip
    assert flat.items() <= ungrouped(made).items()
    assert Request(prompt="x", **ungrouped(made)) == Request(prompt="x", **flat)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"guidance is 7; it must be a darkroom\.Guidance"):
        ungrouped({"guidance": 7})
    assert ungrouped({"noise": "nv"}) == {"noise": "nv"}  # a group that is called as one of its fields
    assert ungrouped({"noise": darkroom.Noise(source="nv")})["noise"] == "nv"
    with pytest.raises(RequestError, match=r"noise is 7; it must be a darkroom\.Noise"):
        ungrouped({"noise": 7})


@pytest.mark.filterwarnings("default")
def test_a_flat_name_works_with_a_warning_that_says_where_it_went(tiny_pipe: Pipeline) -> None:
    with pytest.warns(DeprecationWarning, match=r"say guidance=darkroom\.Guidance\(rescale=\.\.\.\)") as caught:
        old = tiny_pipe.generate("a fox", steps=2, seed=1, guidance_rescale=0.5, output="pt")
    assert caught[0].filename == __file__
    new = tiny_pipe.generate("a fox", steps=2, seed=1, guidance=darkroom.Guidance(rescale=0.5), output="pt")
    assert old.requests == new.requests
    assert torch.equal(old.images, new.images)  # type: ignore[arg-type]
    for name in DECLARED.keys() - GROUPS.keys():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            ungrouped({name: None})
        argument, member = DECLARED[name]
        assert f"{argument}=darkroom.{GROUPS[argument].__name__}({member}=" in str(told[0].message)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"widht": 512}, "there is no argument 'widht'; did you mean 'width'"),
        ({"guidence": 7}, "did you mean 'guidance'"),
        ({"guidance_rescal": 1}, "did you mean 'guidance_rescale'"),
        ({"model_hash": "0" * 10}, "there is no argument 'model_hash'"),
        ({"xyzzy": 1}, "there is no argument 'xyzzy'"),
    ],
)
def test_what_is_no_argument_is_said(tiny_pipe: Pipeline, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        tiny_pipe.generate("a fox", steps=1, **wrong)


def test_what_overrides_generate_may_pass_any_keyword_on(tiny_pipe: Pipeline) -> None:
    class Quick(Pipeline):
        def generate(self, *given: Any, **asked: Any) -> Any:
            return super().generate(*given, steps=1, **asked)

    quick = Quick(tiny_pipe.model)
    assert quick.generate("a fox", seed=1).requests[0].steps == 1
    with pytest.raises(RequestError, match="there is no argument 'sede'; did you mean 'seed'"):
        quick.generate("a fox", sede=1)


def test_a_size_is_a_width_and_a_height(tiny_pipe: Pipeline) -> None:
    assert ungrouped({"size": (512, 768), "steps": 3}) == {"width": 512, "height": 768, "steps": 3}
    assert ungrouped({"size": "512x768"}) == {"width": 512, "height": 768}
    assert ungrouped({"size": None, "width": 8}) == {"width": 8}
    assert tiny_pipe.generate("a fox", size=[72, 56], steps=1)[0].size == (72, 56)  # type: ignore[call-overload]
    for wrong, sentence in (
        ({"size": (8, 8), "width": 8}, "size and width are both given; give size alone, or width and height"),
        ({"size": 64}, "size is 64; it must be two numbers of pixels"),
        ({"size": (64,)}, r"size is \(64,\); it must be two numbers"),
        ({"size": "large"}, "size is 'large'; give width and height"),
        ({"size": (4, 64)}, "width is 4; it must be from 8 to 8192 pixels"),
    ):
        with pytest.raises(RequestError, match=sentence):
            tiny_pipe.generate("a fox", **wrong)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="size is given, which upscale doesn't take"):
        tiny_pipe.upscale("fox.png", size=(8, 8))  # type: ignore[call-overload]


def test_upscale_and_sweep_take_groups(tiny_pipe: Pipeline) -> None:
    small = tiny_pipe.generate("a fox", steps=1, seed=1).images[0]
    given: dict[str, Any] = {"scale": 1.5, "steps": 4, "seed": 1, "output": "pt"}
    one = tiny_pipe.upscale(small, **given, tile=48, overlap=8)  # type: ignore[arg-type]
    two = tiny_pipe.upscale(small, **given, tiling=darkroom.Tiling(tile=48, overlap=8))  # type: ignore[arg-type]
    assert one.requests == two.requests
    assert (one.requests[0].tile, one.requests[0].overlap) == (48, 8)
    with pytest.raises(RequestError, match="outpaint is given, which upscale doesn't take"):
        tiny_pipe.upscale(small, inpaint=darkroom.Inpaint(outpaint=(8, 0, 0, 0)))  # type: ignore[arg-type]
    sheet = tiny_pipe.sweep("a fox", "steps=1,2", seed=1, guidance=darkroom.Guidance(rescale=0.5))
    assert [cell.request.guidance_rescale for cell in sheet.cells] == [0.5, 0.5]


# --- a setting more


@dataclass(frozen=True, slots=True, kw_only=True)
class Grainy(Request):
    """A request with one setting more, which is declared here and nowhere else."""

    grain: float = setting(0.0, real(0.0, 1.0), "0 to 1: film grain.", option="", key="")


def test_a_setting_that_a_subclass_adds_is_found_everywhere() -> None:
    assert Grainy(prompt="", grain=1).grain == 1.0
    with pytest.raises(RequestError, match="grain is 2; it must be from 0 to 1"):
        Grainy(prompt="", grain=2)
    request = Grainy(prompt="a fox", grain=0.5, steps=5, sampler="euler")
    assert request.to_dict()["grain"] == 0.5
    assert Grainy.from_dict(request.to_dict()) == request
    with pytest.raises(RequestError, match="did you mean 'grain'"):
        Grainy.from_dict({"prompt": "", "grian": 1})
    with pytest.raises(RequestError, match="no field 'grain'"):
        Request.from_dict(request.to_dict())
    (option,) = [option for option in options_of(Grainy) if option.fields == ("grain",)]
    assert (option.name, option.declared.option, option.declared.help) == ("grain", "--grain", "0 to 1: film grain.")
    assert "grain" in sweepable(Grainy)
    rows = rows_of(Grainy)
    text = to_infotext(request.to_dict(), rows)
    assert text.endswith("Grain: 0.5")
    assert parse_infotext(text, rows)["grain"] == 0.5
    assert parse_infotext(text)["extra"] == {"Grain": "0.5"}
