"""ControlNets in the loop: equal to diffusers' pipelines, and what a recipe and a wrong input say."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom import hints
from darkroom.diffusion.condition import window
from darkroom.engine import Inputs
from darkroom.models.config import ControlNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.pipeline import Pipeline

PROMPT, NEGATIVE = "a red fox on a rocket", "blue"


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def peers(tiny_reference: Any, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Path]]:
    """Two of diffusers' ControlNets for the tiny reference, all weights random, and their folders."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    made = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peer = ControlNetModel.from_unet(tiny_reference.unet).eval()
            with torch.no_grad():
                for parameter in peer.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.15)
        folder = tmp_path_factory.mktemp("controlnets") / f"net{seed}"
        peer.save_pretrained(folder)
        made.append((peer, folder))
    return made


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder)


def reference(tiny_reference: Any, controlnet: Any, task: str = "") -> Any:
    import diffusers

    kind = getattr(diffusers, f"StableDiffusionControlNet{task}Pipeline")
    parts = {n: getattr(tiny_reference, n) for n in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    other = kind(
        **parts, controlnet=controlnet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    return other


def difference(ours: Any, theirs: torch.Tensor) -> float:
    return float((ours.images - theirs).abs().max() / theirs.abs().max())


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))


CASES = {
    "plain": ({}, {}),
    "scaled": ({"scale": 0.6}, {"controlnet_conditioning_scale": 0.6}),
    "window": ({"start": 0.2, "stop": 0.7}, {"control_guidance_start": 0.2, "control_guidance_end": 0.7}),
    "first half": ({"stop": 0.5}, {"control_guidance_end": 0.5}),
    "guess": ({"guess": True}, {"guess_mode": True}),
    "guess, scaled": ({"guess": True, "scale": 1.7}, {"guess_mode": True, "controlnet_conditioning_scale": 1.7}),
    "unguided": ({"guess": True, "guidance": 1.0}, {"guess_mode": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers(case: str, tiny_reference: Any, peers: Any, pipe: Pipeline) -> None:
    """With the checkpoint's own PNDM, whose first interval is asked twice."""
    peer, folder = peers[0]
    given, theirs = CASES[case]
    scale = given.get("guidance", 5.0)
    hint = picture(1, 64, 48)
    expected = reference(tiny_reference, peer)(
        PROMPT, image=hint, width=64, height=64, negative_prompt=NEGATIVE, num_inference_steps=6, latents=noise(),
        guidance_scale=scale, output_type="latent", **theirs,
    ).images  # fmt: skip
    control = darkroom.Control(folder, hint, **{k: v for k, v in given.items() if k != "guidance"})
    common = {"steps": 6, "guidance_scale": scale, "latents": noise(), "output": "latent", "prompt_style": "plain"}
    ours = pipe.generate(PROMPT, NEGATIVE, width=64, height=64, controls=[control], **common)
    assert difference(ours, expected) < 1e-3
    without = pipe.generate(PROMPT, NEGATIVE, width=64, height=64, **common)
    assert difference(without, expected) > 1e-2


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "EulerDiscreteScheduler"])
def test_windows_of_samplers_that_ask_twice(scheduler: str, tiny_reference: Any, peers: Any, pipe: Pipeline) -> None:
    import diffusers

    peer, folder = peers[0]
    other = reference(tiny_reference, peer)
    other.scheduler = getattr(diffusers, scheduler).from_config(other.scheduler.config, timestep_spacing="leading")
    expected = other(
        PROMPT, image=picture(1), num_inference_steps=4, latents=noise(), output_type="latent", width=64, height=64,
        control_guidance_start=0.3, control_guidance_end=0.8,
    ).images  # fmt: skip
    control = darkroom.Control(folder, picture(1), start=0.3, stop=0.8)
    ours = pipe.generate(
        PROMPT, steps=4, latents=noise(), output="latent", controls=[control], sampler=scheduler, prompt_style="plain"
    )
    assert difference(ours, expected) < 1e-3


def test_several_equal_diffusers(tiny_reference: Any, peers: Any, pipe: Pipeline) -> None:
    expected = reference(tiny_reference, [peer for peer, _ in peers])(
        PROMPT, image=[picture(1), picture(2)], width=64, height=64, num_inference_steps=5, latents=noise(),
        controlnet_conditioning_scale=[0.8, 0.5], control_guidance_start=[0.0, 0.3], control_guidance_end=[0.6, 1.0],
        output_type="latent",
    ).images  # fmt: skip
    controls = [
        darkroom.Control(peers[0][1], picture(1), 0.8, stop=0.6),
        darkroom.Control(peers[1][1], picture(2), 0.5, start=0.3),
    ]
    ours = pipe.generate(PROMPT, steps=5, latents=noise(), output="latent", controls=controls, prompt_style="plain")
    assert difference(ours, expected) < 1e-3


def test_image_to_image_equals_diffusers(tiny_reference: Any, peers: Any, pipe: Pipeline) -> None:
    peer, folder = peers[0]
    start = picture(3)
    generator = torch.Generator().manual_seed(11)
    expected = reference(tiny_reference, peer, "Img2Img")(
        PROMPT, image=start, control_image=picture(1), strength=0.6, num_inference_steps=8, generator=generator,
        guidance_scale=4.0, controlnet_conditioning_scale=0.9, control_guidance_end=0.8, output_type="latent",
    ).images  # fmt: skip
    control = darkroom.Control(folder, picture(1), 0.9, stop=0.8)
    ours = pipe.generate(
        PROMPT, image=start, strength=0.6, steps=8, seed=11, guidance_scale=4.0, controls=[control], output="latent",
        prompt_style="plain",
    )  # fmt: skip
    assert difference(ours, expected) < 1e-3


def test_controls_of_different_pictures_share_calls(peers: Any, pipe: Pipeline) -> None:
    """Pictures with other nets, scales, windows and none at all, in one engine: each as if alone."""
    engine = darkroom.Engine(pipe, max_rows=16)
    nets = [folder for _, folder in peers]
    given = [
        (),
        (darkroom.Control(nets[0], picture(1), 0.4),),
        (darkroom.Control(nets[0], picture(2), 1.3, stop=0.5), darkroom.Control(nets[1], picture(1), guess=True)),
        (darkroom.Control(nets[0], picture(2)), darkroom.Control(nets[0], picture(1), 0.5)),
    ]
    requests = [darkroom.Request(prompt=PROMPT, steps=4, seed=i) for i in range(len(given))]
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _m, inputs: calls.append(len(inputs[0])))
    ids = [engine.add(r, Inputs(controls=c), output="latent") for r, c in zip(requests, given, strict=True)]
    results = {}
    while engine.jobs:
        for event in engine.step():
            assert not isinstance(event, darkroom.Failed)
            if isinstance(event, darkroom.Finished):
                results[event.id] = event.result
    hook.remove()
    assert max(calls) == 8  # two rows a picture
    for id, request, controls in zip(ids, requests, given, strict=True):
        alone = pipe.draw([request], [Inputs(controls=controls)], output="latent").images[0]
        assert (results[id] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_a_net_that_is_only_begun_changes_nothing(pipe: Pipeline) -> None:
    net = ControlNet.from_unet(pipe.unet)
    plain = pipe.generate(PROMPT, steps=2, seed=1)
    steered = pipe.generate(PROMPT, steps=2, seed=1, controls=[darkroom.Control(net, picture(1, 30, 50))])
    assert plain.images[0].tobytes() == steered.images[0].tobytes()
    assert steered.requests[0].controls[0].hash is None


def test_hints_of_any_size_mode_and_preprocessor(peers: Any, pipe: Pipeline) -> None:
    folder = peers[0][1]
    for size in ((1, 1), (300, 3), (64, 64)):
        for mode in ("L", "RGBA", "1"):
            pipe.generate(
                PROMPT, steps=1, width=50, height=70, controls=[darkroom.Control(folder, Image.new(mode, size))]
            )
    made = darkroom.Control(folder, picture(1), hint="canny")
    given = darkroom.Control(folder, hints.canny(picture(1)))
    a, b = (pipe.generate(PROMPT, steps=2, seed=3, controls=[c]) for c in (made, given))
    assert a.images[0].tobytes() == b.images[0].tobytes()
    assert a.requests == b.requests


def test_jobs_are_pickled_and_go_on(peers: Any, pipe: Pipeline) -> None:
    control = darkroom.Control(peers[0][1], picture(1), stop=0.7)
    request = darkroom.Request(prompt=PROMPT, steps=4, seed=5)
    expected = pipe.draw([request], [Inputs(controls=(control,))], output="latent").images[0]
    engine = darkroom.Engine(pipe, deterministic=True)
    id = engine.add(request, Inputs(controls=(control,)), output="latent")
    engine.step()
    job = pickle.loads(pickle.dumps(engine.jobs[id]))
    other = darkroom.Engine(pipe, deterministic=True)
    other.resume(job)
    events = []
    while other.jobs:
        events += other.step()
    assert torch.equal(events[-1].result, expected)


def test_recipes_name_the_controls(peers: Any, pipe: Pipeline) -> None:
    control = darkroom.Control(peers[0][1], picture(1), 0.5, 0.1, 0.9)
    result = pipe.generate(PROMPT, steps=2, seed=3, controls=[control])
    (used,) = result.requests[0].controls
    assert (used.name, used.scale, used.start, used.stop, used.guess) == ("net0", 0.5, 0.1, 0.9, False)
    assert used.hash == pipe.controlnet(peers[0][1]).hash
    assert len(used.hint) == 16
    recipe = darkroom.Request.from_dict(result.requests[0].to_dict())
    assert recipe == result.requests[0]
    with pytest.raises(darkroom.RequestError, match="was made with pictures that were given to ControlNets"):
        pipe.draw([recipe])
    again = pipe.draw([recipe], [Inputs(controls=(control,))])
    assert again.images[0].tobytes() == result.images[0].tobytes()
    assert again.requests[0] == recipe


def test_loaded_once(peers: Any, pipe: Pipeline) -> None:
    assert pipe.controlnet(peers[0][1]).net is pipe.controlnet(str(peers[0][1])).net


def test_what_does_not_fit(pipe: Pipeline, tmp_path: Path) -> None:
    wide = ControlNetConfig(
        block_out_channels=(32, 32),
        layers_per_block=(1, 1),
        attention_levels=(True, False),
        only_cross_attention=(False, False),
        transformer_layers=(1, 1),
        heads=(2, 2),
        cross_attention_dim=768,
    )

    def draw(control: Any) -> None:
        pipe.generate(PROMPT, steps=1, controls=[control])

    with pytest.raises(darkroom.RequestError, match=r"is made for Stable Diffusion 1\.x \(texts of width 768\), and"):
        draw(darkroom.Control(ControlNet(wide), picture(1)))
    with pytest.raises(darkroom.RequestError, match="is made for another model: its block_out_channels is"):
        draw(darkroom.Control(ControlNet(replace(wide, cross_attention_dim=32)), picture(1)))
    own = ControlNet.from_unet(pipe.unet).config
    with pytest.raises(darkroom.RequestError, match="takes hints of 1 channels"):
        draw(darkroom.Control(ControlNet(replace(own, hint_channels=1)), picture(1)))
    with pytest.raises(darkroom.CheckpointError, match="none"):
        draw(darkroom.Control(tmp_path / "none.safetensors", picture(1)))
    with pytest.raises(darkroom.ImageError, match="does not exist"):
        draw(darkroom.Control(ControlNet.from_unet(pipe.unet), tmp_path / "none.png"))
    with pytest.raises(darkroom.RequestError, match=r"it must be a list of darkroom\.Control"):
        draw("canny")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scale": float("nan")}, "a control's scale is nan"),
        ({"scale": 11}, "a control's scale is 11"),
        ({"start": 0.5, "stop": 0.5}, r"starts at 0\.5 and stops at 0\.5"),
        ({"stop": 1.2}, r"a control's stop is 1\.2"),
        ({"hint": "cany"}, "did you mean 'canny'"),
        ({"net": 3}, "a ControlNet is '3'; give a path"),
        ({"guess": "yes"}, "guess is 'yes'"),
    ],
)
def test_controls_that_can_not_be(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(darkroom.RequestError, match=sentence):
        darkroom.Control(**{"net": "x", "image": picture(1), **values})


def test_the_window_is_diffusers_rule() -> None:
    for n in (1, 3, 7, 30):
        for start, stop in ((0.0, 1.0), (0.3, 0.8), (0.1, 0.15), (0.5, 1.0), (0.0, 0.34)):
            keep = [1.0 - float(i / n < start or (i + 1) / n > stop) for i in range(n)]
            assert [float(i in window(start, stop, n)) for i in range(n)] == keep
