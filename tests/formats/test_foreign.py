"""Recipes of other tools: one right value each, what isn't followed is told, and anything else is inert."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.diffusion import has_torchsde
from darkroom.formats.foreign import Found, recognise
from darkroom.formats.foreign.webui import NO_TORCHSDE
from darkroom.samplers import canonical
from darkroom.samplers import names as samplers


def read(**texts: object) -> Found:
    found = recognise({key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()})
    assert found is not None
    return found


# ComfyUI -------------------------------------------------------------------------------------------------------------


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def comfy(positive: Any = None, negative: Any = None, **more: Any) -> dict[str, Any]:
    """A graph of the usual form, with other nodes in it: n10=node(...) is the node "10"."""
    graph = {
        "3": node(
            "KSampler",
            **{"seed": 5, "steps": 20, "cfg": 6.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1},
            **{"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": positive or node("CLIPTextEncode", text="a boat on a lake", clip=["4", 1]),
        "7": negative or node("CLIPTextEncode", text="fog", clip=["4", 1]),
    }
    return graph | {key[1:]: one for key, one in more.items()}


def with_text(*nodes: dict[str, Any]) -> dict[str, Any]:
    """A graph whose prompt is the text of node 10."""
    return comfy(
        node("CLIPTextEncode", text=["10", 0], clip=["4", 1]), **{f"n{10 + i}": one for i, one in enumerate(nodes)}
    )


@pytest.mark.parametrize(
    "way",
    [
        (),
        ("ConditioningSetTimestepRange",),
        ("ControlNetApply",),
        ("FluxGuidance", "ConditioningSetArea"),
        ("GLIGENTextBoxApply",),
    ],
)
def test_a_zeroed_prompt_is_empty(way: tuple[str, ...]) -> None:
    more: dict[str, Any] = {}
    last = "6"
    for i, kind in enumerate(("ConditioningZeroOut", *way)):
        more[f"n{20 + i}"] = node(kind, conditioning=[last, 0], start=0.1, end=1.0, strength=1.0, text="a box")
        last = str(20 + i)
    if way == ("GLIGENTextBoxApply",):
        more["n21"]["inputs"]["conditioning_to"] = more["n21"]["inputs"].pop("conditioning")
    graph = comfy(**more)
    graph["3"]["inputs"]["negative"] = [last, 0]
    found = read(prompt=graph)
    assert (found.recipe["prompt"], found.recipe["negative_prompt"]) == ("a boat on a lake", "")
    assert found.ignored.keys() == {"ConditioningZeroOut", *way}
    assert found.warnings == []


def test_of_a_sum_of_conditions_the_zeroed_one_says_nothing() -> None:
    graph = comfy(
        n20=node("ConditioningZeroOut", conditioning=["7", 0]),
        n21=node("ConditioningSetTimestepRange", conditioning=["20", 0], start=0.1, end=1),
        n22=node("ConditioningSetTimestepRange", conditioning=["7", 0], start=0, end=1),
        n23=node("ConditioningCombine", conditioning_1=["21", 0], conditioning_2=["22", 0]),
    )
    graph["3"]["inputs"]["negative"] = ["23", 0]
    assert read(prompt=graph).recipe["negative_prompt"] == "fog"


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("dpmpp_sde_gpu", "dpmpp_sde", "normal"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", "normal"),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", "normal"),
        ("dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde_heun", "normal"),
        ("k_euler_a", "euler_ancestral", "normal"),
        ("uni_pc_bh2", "uni_pc_bh2", "normal"),
        ("euler_cfg_pp", "euler_cfg_pp", "normal"),
    ],
)
def test_names_of_samplers(name: str, sampler: str, schedule: str) -> None:
    graph = comfy()
    graph["3"]["inputs"]["sampler_name"] = name
    found = read(prompt=graph).recipe
    assert (found["sampler"], found["schedule"]) == (sampler, schedule)
    if sampler in samplers():
        assert canonical(name)[0] == sampler  # as an option, too


@pytest.mark.parametrize(
    "nodes",
    [
        [node("StringConcatenate", string_a="a boat", string_b="on a lake", delimiter=" ")],
        [
            node("Text Concatenate", delimiter=" ", clean_whitespace="true", text_a="a boat ", text_b=["11", 0]),
            node("Text Multiline", text=" on a lake"),
        ],
        [
            node("JoinStrings", string1="a boat", string2=["11", 0], delimiter=" "),
            node("PrimitiveString", value="on a lake"),
        ],
        [node("CR Text Concatenate", text1="a boat", text2="on a lake", separator=" ")],
        [node("StringReplace", string="a ship on a lake", find="ship", replace="boat")],
        [
            node("Text Find and Replace", text=["11", 0], find="ship", replace="boat"),
            node("CR Text", text="a ship on a lake"),
        ],
        [node("StringTrim", string="  a boat on a lake\n", mode="Both")],
        [node("CaseConverter", string="A BOAT ON A LAKE", mode="lowercase")],
        [
            node("ShowText|pysssss", text=["11", 0], text_0="old"),
            node("PrimitiveStringMultiline", value="a boat on a lake"),
        ],
        [
            node("ShowText|pysssss", text=["11", 0], text_0="a boat on a lake"),
            node("SomeModelThatWrites", image=["4", 0]),
        ],
        [node("ImpactWildcardProcessor", wildcard_text="a {boat|ship}", populated_text="a boat on a lake")],
        [node("StringFunction|pysssss", action="append", tidy_tags="no", text_a="a boat", text_b=" on a lake")],
        [node("Reroute", **{"": ["11", 0]}), node("String Literal", string="a boat on a lake")],
        [
            node("ImpactSwitch", select=2, input1="no", input2=["11", 0]),
            node("PrimitiveString", value="a boat on a lake"),
        ],
    ],
)
def test_texts_that_nodes_put_together(nodes: list[dict[str, Any]]) -> None:
    found = read(prompt=with_text(*nodes))
    assert found.recipe["prompt"] == "a boat on a lake"
    assert [warning for warning in found.warnings if "SomeModelThatWrites" not in warning] == []


def test_a_text_that_only_an_unknown_node_knows_is_not_guessed() -> None:
    found = read(prompt=with_text(node("PromptEnhancer", text=["11", 0]), node("PrimitiveString", value="a boat")))
    assert "prompt" not in found.recipe
    assert found.recipe["seed"] == 5
    assert any("'PromptEnhancer'" in warning for warning in found.warnings)
    found = read(prompt=with_text(node("DPRandomGenerator", text="a {boat|ship}", seed=3)))
    assert found.recipe["prompt"] == "a {boat|ship}"
    assert any("DPRandomGenerator" in warning for warning in found.warnings)


def test_unknown_nodes_on_the_way_are_told() -> None:
    graph = comfy(n20=node("Mystery", conditioning=["6", 0]), n21=node("Odd", model=["4", 0]))
    graph["3"]["inputs"] |= {"positive": ["20", 0], "model": ["21", 0]}
    found = read(prompt=graph)
    assert found.recipe["prompt"] == "a boat on a lake"
    assert found.recipe["model"] == "m.safetensors"
    assert ["Mystery" in found.warnings[0], "Odd" in found.warnings[1]] == [True, True]


def guided(guider: dict[str, Any], **more: Any) -> dict[str, Any]:
    graph = comfy(
        n30=node("RandomNoise", noise_seed=7),
        n31=node("KSamplerSelect", sampler_name="dpmpp_2m"),
        n32=node("BasicScheduler", scheduler="karras", steps=12, denoise=1.0, model=["4", 0]),
        n33=guider,
        **more,
    )
    links = {
        "noise": ["30", 0],
        "sampler": ["31", 0],
        "sigmas": ["32", 0],
        "guider": ["33", 0],
        "latent_image": ["5", 0],
    }
    graph["3"] = node("SamplerCustomAdvanced", **links)
    return graph


def test_guiders() -> None:
    found = read(prompt=guided(node("BasicGuider", model=["4", 0], conditioning=["6", 0])))
    assert found.recipe == {
        "prompt": "a boat on a lake",
        "negative_prompt": "",
        "steps": 12,
        "guidance_scale": 1.0,
        "seed": 7,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "model": "m.safetensors",
        "width": 64,
        "height": 64,
        "sgm_noise_multiplier": True,
    }
    dual = {"model": ["4", 0], "cond1": ["6", 0], "cond2": ["8", 0], "negative": ["7", 0]}
    scales = {"cfg_conds": 7.5, "cfg_cond2_negative": 1.5, "style": "regular"}
    second = node("CLIPTextEncode", text="a ship", clip=["4", 1])
    found = read(prompt=guided(node("DualCFGGuider", **dual, **scales), n8=second))
    assert (found.recipe["prompt"], found.recipe["negative_prompt"]) == ("a boat on a lake", "fog")
    assert found.recipe["guidance_scale"] == 7.5
    assert found.ignored == {"DualCFGGuider": {"cond2": "a ship", "cfg_cond2_negative": 1.5}}


def test_instruct_pix2pix() -> None:
    edit = node("InstructPixToPixConditioning", positive=["6", 0], negative=["7", 0], pixels=["41", 0], vae=["4", 2])
    guider = node(
        "DualCFGGuider",
        **{"model": ["4", 0], "cond1": ["40", 0], "cond2": ["40", 1], "negative": ["7", 0]},
        **{"cfg_conds": 7.5, "cfg_cond2_negative": 1.5, "style": "regular"},
    )
    found = read(prompt=guided(guider, n40=edit, n41=node("LoadImage", image="a.png")))
    assert (found.recipe["prompt"], found.recipe["negative_prompt"]) == ("a boat on a lake", "fog")
    assert (found.recipe["guidance_scale"], found.recipe["image_guidance_scale"]) == (7.5, 1.5)
    assert (found.ignored, found.warnings) == ({}, [])


def test_both_texts_of_sdxl_and_its_sizes() -> None:
    sizes = {"width": 1024, "height": 768, "crop_w": 8, "crop_h": 0, "target_width": 64, "target_height": 64}
    positive = node("CLIPTextEncodeSDXL", text_g="a boat", text_l="lake", clip=["4", 1], **sizes)
    negative = node(
        "CLIPTextEncodeSDXL", text_g="fog", text_l="fog", clip=["4", 1], **sizes | {"width": 64, "height": 64}
    )
    found = read(prompt=comfy(positive, negative))
    assert (found.recipe["prompt"], found.recipe["negative_prompt"]) == ("a boat\nlake", "fog")
    assert (found.recipe["original_size"], found.recipe["crop"]) == ([1024, 768], [8, 0])
    assert found.recipe["negative_crop"] == [8, 0]
    assert not found.recipe.keys() & {"target_size", "negative_original_size"}
    assert found.ignored == {"positive text_g, text_l": "a text of its own for each encoder"}


def test_efficient_loader() -> None:
    loader = node(
        "Efficient Loader",
        **{"ckpt_name": "e.safetensors", "vae_name": "Baked VAE", "clip_skip": -2, "lora_name": "ink.safetensors"},
        **{"lora_model_strength": 0.8, "lora_clip_strength": 0.5, "positive": ["11", 0], "negative": "fog"},
        **{"empty_latent_width": 96, "empty_latent_height": 128, "batch_size": 2},
    )
    graph = {
        "1": node(
            "KSampler (Efficient)",
            **{
                "seed": 5,
                "steps": 9,
                "cfg": 4,
                "sampler_name": "euler_ancestral",
                "scheduler": "karras",
                "denoise": 1.0,
            },
            **{"model": ["2", 0], "positive": ["2", 1], "negative": ["2", 2], "latent_image": ["2", 3]},
        ),
        "2": loader,
        "11": node("PrimitiveString", value="a boat"),
    }
    found = read(prompt=graph)
    assert found.recipe == {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "steps": 9,
        "guidance_scale": 4.0,
        "seed": 5,
        "sampler": "euler_ancestral",
        "schedule": "karras",
        "loras": [{"name": "ink", "hash": "", "scale": 0.8, "text_scale": 0.5}],
        "model": "e.safetensors",
        "clip_skip": 2,
        "width": 96,
        "height": 128,
        "sgm_noise_multiplier": True,
        "sampler_noise": "nv",
    }
    assert found.ignored == {"batch_size": 2}


def test_what_is_done_to_the_model_and_the_picture() -> None:
    graph = comfy(
        n20=node("FreeU_V2", model=["21", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        n21=node("RescaleCFG", model=["22", 0], multiplier=0.7),
        n22=node(
            "Power Lora Loader (rgthree)",
            model=["4", 0],
            lora_1={"on": True, "lora": "a.safetensors", "strength": 0.5},
            lora_2={"on": False, "lora": "b.safetensors", "strength": 1},
            lora_3={"on": True, "lora": "c.pt", "strength": 1},
        ),
        n23=node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        n24=node("ImageUpscaleWithModel", image=["23", 0], upscale_model=["25", 0]),
        n26=node("SaveImage", images=["24", 0], filename_prefix="x"),
    )
    graph["3"]["inputs"]["model"] = ["20", 0]
    found = read(prompt=graph)
    assert found.recipe["guidance_rescale"] == 0.7
    assert [lora["name"] for lora in found.recipe["loras"]] == ["a", "c"]
    assert found.ignored == {"FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, "ImageUpscaleWithModel": True}


def test_the_saved_samplers_recipe_counts_and_a_second_pass_is_told() -> None:
    graph = {"1": node("KSampler", **comfy()["3"]["inputs"] | {"seed": 99})} | comfy(
        n20=node("KSampler", **comfy()["3"]["inputs"] | {"latent_image": ["3", 0], "denoise": 0.5, "steps": 8}),
        n21=node("VAEDecode", samples=["20", 0]),
        n22=node("SaveImage", images=["21", 0]),
    )
    found = read(prompt=graph)
    assert found.recipe["seed"] == 5
    assert found.ignored == {"second KSampler": {"steps": 8, "denoise": 0.5}}
    del graph["22"]
    found = read(prompt=graph)
    assert any("2 samplers" in warning for warning in found.warnings)


def test_weights_are_read_in_comfyuis_grammar() -> None:
    assert "prompt_style" not in read(prompt=comfy()).recipe
    weighted = comfy(node("CLIPTextEncode", text="(a boat:1.2) [on a lake]", clip=["4", 1]))
    assert read(prompt=weighted).recipe["prompt_style"] == "comfy"


def test_a_workflow_with_what_only_the_editor_has() -> None:
    """Reroutes, primitives, named wires, bypassed nodes and a subgraph, in both forms of links."""
    inner = {
        "id": "sub",
        "nodes": [
            {"id": 1, "type": "CLIPTextEncode", "widgets_values": [""], "inputs": [{"name": "text", "link": 1}]},
            {"id": 2, "type": "Reroute", "inputs": [{"name": "", "link": 2}], "outputs": [{"type": "CONDITIONING"}]},
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0},
            {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0},
            {"id": 3, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
    }
    sampler = [
        {"name": "model", "link": 1},
        {"name": "positive", "link": 2},
        {"name": "negative", "link": 3},
        {"name": "latent_image", "link": 4},
        {"name": "seed", "link": 5, "widget": {"name": "seed"}},
    ]
    workflow = {
        "nodes": [
            {
                "id": 3,
                "type": "KSampler",
                "widgets_values": [0, "fixed", 20, 8, "euler", "karras", 1],
                "inputs": sampler,
            },
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["m.ckpt"]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {"id": 6, "type": "sub", "widgets_values": [], "inputs": [{"name": "text", "link": 6}], "outputs": [{}]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["fog"]},
            {"id": 8, "type": "SetNode", "widgets_values": ["wire"], "inputs": [{"name": "CONDITIONING", "link": 7}]},
            {"id": 9, "type": "GetNode", "widgets_values": ["wire"]},
            {"id": 10, "type": "PrimitiveNode", "widgets_values": [123, "fixed"]},
            {"id": 11, "type": "StringConcatenate", "widgets_values": ["a", "boat", " "]},
            {
                "id": 12,
                "type": "FreeU",
                "mode": 4,
                "widgets_values": [1, 1, 1, 1],
                "inputs": [{"name": "model", "type": "MODEL", "link": 8}],
                "outputs": [{"type": "MODEL"}],
            },
        ],
        "links": [
            [1, 12, 0, 3, 0, "MODEL"],
            [2, 6, 0, 3, 1, "CONDITIONING"],
            [3, 9, 0, 3, 2, "CONDITIONING"],
            [4, 5, 0, 3, 3, "LATENT"],
            [5, 10, 0, 3, 4, "INT"],
            [6, 11, 0, 6, 0, "STRING"],
            [7, 7, 0, 8, 0, "CONDITIONING"],
            [8, 4, 0, 12, 0, "MODEL"],
        ],
        "definitions": {"subgraphs": [inner]},
    }
    found = read(workflow=workflow)
    assert found.recipe == {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "steps": 20,
        "guidance_scale": 8.0,
        "seed": 123,
        "sampler": "euler",
        "schedule": "karras",
        "model": "m.ckpt",
        "width": 512,
        "height": 768,
        "sgm_noise_multiplier": True,
    }
    assert (found.ignored, found.warnings) == ({}, [])


def test_a_text_that_joins_itself_ends() -> None:
    join = node("StringConcatenate", string_a=["10", 0], string_b=["10", 0], delimiter="")
    assert "prompt" not in read(prompt=with_text(join)).recipe
    doubling = [node("StringConcatenate", string_a=[str(11 + i), 0], string_b=[str(11 + i), 0]) for i in range(50)]
    found = read(prompt=with_text(*doubling, node("PrimitiveString", value="x" * 1000)))
    assert len(found.recipe.get("prompt", "")) <= 100_000


# One flat object -----------------------------------------------------------------------------------------------------

BOAT = {"prompt": "a boat", "negative_prompt": "fog", "seed": 12, "steps": 20, "guidance_scale": 7.0}


def test_swarmui() -> None:
    params = {
        "prompt": "a boat",
        "negativeprompt": "fog",
        "model": "SDXL/m",
        "seed": 12,
        "steps": 20,
        "cfgscale": 7.0,
        "width": 64,
        "height": 64,
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "loras": ["ink", "gold"],
        "loraweights": ["0.8", "1"],
        "variationseed": 3,
        "swarm_version": "0.9.5",
    }
    extra = {"sui_extra_data": {"date": "today"}, "sui_models": []}
    missing = {} if has_torchsde() else {"Brownian noise": NO_TORCHSDE}
    for text in ({"sui_image_params": params} | extra, params):
        found = read(parameters=text)
        assert found.source == "swarmui"
        assert found.recipe == BOAT | {
            "width": 64,
            "height": 64,
            "model": "SDXL/m",
            "sampler": "dpmpp_2m_sde",
            "schedule": "karras",
            "loras": [
                {"name": "ink", "hash": "", "scale": 0.8, "text_scale": 0.8},
                {"name": "gold", "hash": "", "scale": 1.0, "text_scale": 1.0},
            ],
            "sgm_noise_multiplier": True,
            "sampler_noise": "nv",
            **({"brownian": True} if has_torchsde() else {}),
        }
        assert found.ignored == missing
    params |= {"variationseedstrength": 0.2, "seamlesstileable": "x", "refinercontrolpercentage": 0.2}
    assert read(parameters={"sui_image_params": params}).ignored == missing | {
        "variationseedstrength": 0.2,
        "seamlesstileable": "x",
        "refinercontrolpercentage": 0.2,
        "variationseed": 3,
    }


def test_fooocus() -> None:
    data = {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "full_prompt": ["a boat, cinematic"],
        "full_negative_prompt": ["fog"],
        "steps": 20,
        "guidance_scale": 7,
        "seed": "12",
        "resolution": "(896, 1152)",
        "base_model": "juggernautXL",
        "base_model_hash": "aeb7e9e689",
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "sharpness": 2,
        "adm_guidance": "(1.5, 0.8, 0.3)",
        "performance": "Speed",
        "styles": "['Fooocus V2']",
        "refiner_model": "None",
        "loras": [["offset", 0.1, "4852686128"]],
        "lora_combined_1": "offset : 0.1",
        "vae": "Default (model)",
        "metadata_scheme": "fooocus",
        "version": "Fooocus v2.5.0",
    }
    for scheme in ({"fooocus_scheme": "fooocus"}, {}):
        found = read(parameters=data, **scheme)
        assert found.source == "fooocus"
        assert found.recipe == BOAT | {
            "model": "juggernautXL",
            "model_hash": "aeb7e9e689",
            "width": 896,
            "height": 1152,
            "sampler": "dpmpp_2m_sde",
            "schedule": "karras",
            "loras": [{"name": "offset", "hash": "4852686128", "scale": 0.1, "text_scale": 0.1}],
        }
        assert found.ignored == {"sharpness": 2, "adm_guidance": "(1.5, 0.8, 0.3)", "styles": "['Fooocus V2']"}
    text = (
        "a boat, cinematic\nNegative prompt: fog\nSteps: 20, Sampler: DPM++ 2M SDE Karras, Seed: 12, Size: 896x1152, "
        'CFG scale: 7, Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernautXL, Scheduler: karras, '
        'Lora hashes: "offset: 4852686128", Lora weights: "offset: 0.1", Version: Fooocus v2.5.0'
    )
    found = read(parameters=text, fooocus_scheme="a1111")
    assert (found.source, found.recipe["sampler"], found.recipe["schedule"]) == ("fooocus", "dpmpp_2m_sde", "karras")
    assert found.recipe["loras"] == [{"name": "offset", "hash": "4852686128", "scale": 0.1, "text_scale": 0.1}]
    assert found.ignored == {"Sharpness": "2", "ADM Guidance": "(1.5, 0.8, 0.3)"}


def test_ruined_fooocus() -> None:
    data = {
        **{"Prompt": "a boat", "Negative": "fog", "steps": 20, "cfg": 7.0, "width": 64, "height": 64, "seed": 12},
        **{"sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "karras", "base_model_name": "m.safetensors"},
        **{"loras": [["4852686128", "ink.safetensors - 0.5"]], "software": "RuinedFooocus"},
    }
    found = read(parameters=data)
    assert found.source == "fooocus"
    assert {key: found.recipe[key] for key in BOAT} == BOAT
    assert found.recipe["loras"][0]["name"] == "ink"
    assert found.recipe["loras"][0]["scale"] == 0.5


EASY = {
    "prompt": "a boat",
    "negative_prompt": "fog",
    "seed": "12",
    "num_inference_steps": "20",
    "guidance_scale": "7",
    "sampler_name": "euler_a",
    "width": "64",
    "height": "64",
    "use_stable_diffusion_model": "sd-v1-4",
    "use_lora_model": "['ink', 'gold']",
    "lora_alpha": "[0.5, 1]",
    "tiling": "none",
    "use_upscale": "None",
    "upscale_amount": "4",
    "use_face_correction": "GFPGANv1.4",
    "clip_skip": "True",
}
EASY_RECIPE = BOAT | {
    "width": 64,
    "height": 64,
    "model": "sd-v1-4",
    "sampler": "euler_ancestral",
    "clip_skip": 2,
    "loras": [
        {"name": "ink", "hash": "", "scale": 0.5, "text_scale": 0.5},
        {"name": "gold", "hash": "", "scale": 1.0, "text_scale": 1.0},
    ],
}


def test_easy_diffusion_has_one_chunk_a_field() -> None:
    found = read(**EASY)
    assert (found.source, found.recipe) == ("easydiffusion", EASY_RECIPE)
    assert found.ignored == {"use_face_correction": "GFPGANv1.4"}
    assert read(parameters=EASY).recipe == EASY_RECIPE  # a JPEG's comment is JSON
    labels = {"Prompt": "a boat", "Negative Prompt": "fog", "Seed": "12", "Steps": "20", "Guidance Scale": "7"}
    found = read(**labels, **{"Sampler": "euler_a", "Stable Diffusion model": "m"})
    assert found.recipe == BOAT | {"model": "m", "sampler": "euler_ancestral"}


def test_draw_things() -> None:
    data = {
        **{"c": "a boat", "uc": "fog", "model": "sd_v1.5_f16.ckpt", "sampler": "DPM++ 2M Karras", "scale": 7},
        **{"seed": 12, "seed_mode": "Scale Alike", "size": "64x96", "steps": 20, "strength": 1},
        **{"lora": [{"model": "ink_f16.ckpt", "weight": 0.6}], "v2": {"hiresFix": True, "sharpness": 0, "clipSkip": 2}},
    }
    found = read(XMP=data)
    assert found.source == "drawthings"
    assert found.recipe == BOAT | {
        "model": "sd_v1.5_f16.ckpt",
        "width": 64,
        "height": 96,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "clip_skip": 2,
        "loras": [{"name": "ink_f16", "hash": "", "scale": 0.6, "text_scale": 0.6}],
    }
    assert found.ignored == {"seed_mode": "Scale Alike", "hiresFix": True}


def test_draw_things_in_words() -> None:
    line = (
        "Steps: 20, Sampler: DPM++ 2M Karras, Guidance Scale: 7.0, Seed: 12, Size: 64x96, Model: sd_v1.5_f16.ckpt, "
        "Strength: 0.5, Seed Mode: {}, LoRA Model: ink_f16.ckpt, LoRA Weight: 0.6, LoRA Model: gold.ckpt, LoRA Weight: "
        "1.0, LoRA Model: , LoRA Weight: 1.0, Upscaler: x4.ckpt"
    )
    for key in ("XMP", "Description", "parameters"):
        found = read(**{key: "a boat\n-fog\n" + line.format("NVIDIA GPU Compatible")})
        assert found.source == "drawthings"
        assert found.recipe == BOAT | {
            "model": "sd_v1.5_f16.ckpt",
            "width": 64,
            "height": 96,
            "sampler": "dpmpp_2m",
            "schedule": "karras",
            "strength": 0.5,
            "noise": "nv",
            "loras": [
                {"name": "ink_f16", "hash": "", "scale": 0.6, "text_scale": 0.6},
                {"name": "gold", "hash": "", "scale": 1.0, "text_scale": 1.0},
            ],
        }
        assert found.ignored == {"Upscaler": "x4.ckpt"}
    found = read(XMP="a boat,\n-1 on the sail\n" + line.format("Scale Alike").replace("2M Karras", "2M Trailing"))
    assert (found.recipe["prompt"], found.recipe["schedule"]) == ("a boat,", "trailing")
    assert found.ignored["seed_mode"] == "Scale Alike"


NOVELAI = {
    **{
        "prompt": "a boat",
        "steps": 20,
        "height": 96,
        "width": 64,
        "scale": 7.0,
        "uncond_scale": 1.0,
        "cfg_rescale": 0.2,
    },
    **{"seed": 12, "n_samples": 1, "noise_schedule": "karras", "sampler": "k_euler_ancestral", "uc": "fog", "sm": True},
    **{"strength": 0.7, "noise": 0.2, "request_type": "PromptGenerateRequest", "signed_hash": "x"},
}
NOVELAI_RECIPE = BOAT | {
    "guidance_rescale": 0.2,
    "width": 64,
    "height": 96,
    "model": "Stable Diffusion 81274D13",
    "sampler": "euler_ancestral",
    "schedule": "karras",
}


def test_novelai() -> None:
    outside = {"Software": "NovelAI", "Source": "Stable Diffusion 81274D13", "Description": "a boat", "Title": "AI"}
    found = read(Comment=NOVELAI, **outside)
    assert (found.source, found.recipe, found.ignored) == ("novelai", NOVELAI_RECIPE, {"sm": True})
    hidden = read(stealth=outside | {"Comment": json.dumps(NOVELAI)})
    assert (hidden.source, hidden.recipe) == ("novelai", NOVELAI_RECIPE)
    weighted = read(Comment=NOVELAI | {"prompt": "{a boat} [fog]", "request_type": "Img2ImgRequest"})
    assert (weighted.recipe["prompt_style"], weighted.recipe["strength"]) == ("plain", 0.7)
    assert weighted.ignored.keys() == {"sm", "noise", "weights of the prompt"}


def test_invokeai_before_its_third_version_and_what_it_asks_beyond() -> None:
    alpha = {"positive_conditioning": "a boat", "negative_conditioning": "fog", "steps": 20, "cfg_scale": 7, "seed": 12}
    assert read(invokeai=alpha | {"scheduler": "unipc", "model": "m"}).recipe == BOAT | {
        "sampler": "uni_pc",
        "model": "m",
    }
    new = {"positive_prompt": "a boat", "negative_prompt": "fog", "steps": 20, "cfg_scale": 7, "seed": 12}
    found = read(
        invokeai_metadata=new | {"seamless_x": True, "positive_style_prompt": "ink", "scheduler": "dpmpp_3m_k"}
    )
    assert found.recipe == BOAT | {"sampler": "dpmpp_3m", "schedule": "karras"}
    assert found.ignored == {"seamless_x": True, "positive_style_prompt": "ink"}


# Infotext, and what is none ------------------------------------------------------------------------------------------


def test_what_an_infotext_asks_and_is_not_followed() -> None:
    text = (
        "a boat\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 12, Size: 64x64, RNG: NV, "
        "Variation seed: 3, Variation seed strength: 0.2, Tiling: True, Denoising strength: 0.5, Hires upscale: 2, "
        "Hires upscaler: Latent (bicubic), Hires steps: 0, Eta: 0.0, Version: v1.10.1\nTemplate: {boat|ship}"
    )
    found = read(parameters=text)
    assert found.source == "a1111"
    assert (found.recipe["variation_seed"], found.recipe["variation_strength"]) == (3, 0.2)
    assert found.recipe["eta"] == 0
    assert found.ignored == {
        "Tiling": "True",
        "Hires upscale": "2",
        "Hires upscaler": "Latent (bicubic)",
    }
    plain = "a boat\nSteps: 20, Sampler: Euler a, Seed: 12, Size: 64x64, "
    assert read(parameters=plain + "Version: v1.10.1").ignored == {}
    assert read(parameters=plain + "RNG: std_default, Version: v1.10.1").ignored == {"RNG": "std_default"}
    assert read(parameters=plain + "RNG: CPU, Version: v1.10.1").ignored == {}
    assert read(parameters=plain + "Model: m").ignored == {}


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"Comment": "Created with GIMP"},
        {"UserComment": "Screenshot"},
        {"Description": "OLYMPUS DIGITAL CAMERA"},
        {"Description": "Make: Canon, Model: EOS, Size: 3x4"},
        {"Comment": '{"a": 1}'},
        {"Title": "a boat", "Author": "me", "Software": "x"},
        {"parameters": '{"prompt": "a boat", "unheard of": 1}'},
        {"parameters": '{"sui_image_params": {"prompt": "a b'},
        {"parameters": '["a boat"]'},
        {"parameters": "5"},
        {"parameters": ""},
        {"parameters": " \n"},
        {"prompt": "a boat"},
        {"prompt": "{}"},
        {"prompt": '{"1": {}}', "workflow": "[]"},
        {"XMP": "a day at the sea"},
    ],
)
def test_what_is_no_recipe(texts: dict[str, str]) -> None:
    assert recognise(texts) is None


def test_a_prompt_alone_where_the_key_says_so() -> None:
    assert read(parameters="a boat").recipe == {"prompt": "a boat", "negative_prompt": ""}
    assert read(parameters="[a|b] {boat|ship}").recipe["prompt"] == "[a|b] {boat|ship}"
    assert read(parameters="a boat", prompt=comfy()).source == "comfyui"


KEYS = [
    *(
        "class_type",
        "inputs",
        "positive",
        "negative",
        "latent_image",
        "guider",
        "text",
        "model",
        "seed",
        "conditioning",
    ),
    *(
        "string_a",
        "find",
        "replace",
        "select",
        "cond1",
        "text_g",
        "lora_name",
        "lora_1",
        "pipe",
        "sampler_name",
        "steps",
    ),
    *("prompt", "nodes", "links", "id", "type", "name", "link", "widgets_values", "definitions", "subgraphs", "mode"),
    *(
        "sui_image_params",
        "prompt",
        "loras",
        "loraweights",
        "seed",
        "cfgscale",
        "width",
        "height",
        "sampler",
        "c",
        "uc",
    ),
    *("base_model", "resolution", "lora_combined_1", "num_inference_steps", "sampler_name", "use_lora_model", "scale"),
    *(
        "positive_prompt",
        "scheduler",
        "image",
        "model",
        "v2",
        "lora",
        "size",
        "Comment",
        "v4_prompt",
        "caption",
        "1",
        "2",
    ),
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["1", "2", "KSampler", "StringConcatenate", "ConditioningZeroOut", "SaveImage", "Reroute", "(1, 2)"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(st.sampled_from(["1", "2", 1]), st.sampled_from([0, 1])).map(list)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=7)
    ),
    max_leaves=40,
)
nodes = st.builds(
    lambda kind, inputs: {"class_type": kind, "inputs": inputs},
    st.sampled_from(
        [
            *("KSampler", "SamplerCustomAdvanced", "CLIPTextEncode", "StringConcatenate", "ConditioningZeroOut"),
            *(
                "Efficient Loader",
                "ConditioningCombine",
                "DualCFGGuider",
                "SaveImage",
                "X",
                "ImpactSwitch",
                "StringReplace",
            ),
        ]
    ),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=8),
)


@given(
    value=json_values | st.dictionaries(st.sampled_from(["1", "2"]), nodes),
    key=st.sampled_from(["prompt", "workflow", "parameters", "Comment", "invokeai", "sd-metadata", "stealth", "XMP"]),
)
@settings(max_examples=500, deadline=None)
def test_any_json_is_inert(value: Any, key: str) -> None:
    found = recognise({key: json.dumps(value)})
    assert found is None or json.dumps([found.recipe, found.ignored, found.warnings])


@given(
    st.dictionaries(st.sampled_from([*KEYS, "Prompt", "Steps", "Sampler", "Dream"]), st.text(max_size=30), max_size=8)
)
@settings(max_examples=200, deadline=None)
def test_any_texts_are_inert(texts: dict[str, str]) -> None:
    recognise(texts)
