"""Configs: JSON in and out, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from fuzz import HANG, fuzz

from minisd.config import Config, TextConfig, UNetConfig
from minisd.settings import resolve

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("name", ["mini", "mini128", "shapes", "sd15", "sd21", "sdxl"])
def test_presets_round_trip(name: str) -> None:
    config = Config.load(CONFIGS / f"{name}.json")
    assert config.name == name.removesuffix("128")  # one model, at two sizes
    assert Config.from_json(config.to_json()) == config
    assert Config.from_dict(config.to_dict()) == config


def edited(**changes: object) -> str:
    """mini's JSON with dotted fields replaced."""
    data = json.loads((CONFIGS / "shapes.json").read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        part = data
        for key in path:
            part = part[int(key) if key.isdigit() else key]
        part[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": 1}, "unknown fields ['colour']"),
        ({"unet__channles": [64]}, "channles"),
        ({"unet__channels": [10**9, 1, 1]}, "must be in 0..8192"),
        ({"unet__channels": [64, 128]}, "must have 2 entries"),
        ({"unet__channels": [64, 128, 161]}, "not a multiple of groups"),
        ({"unet__heads": [2, 4, 7]}, "not a multiple of heads"),
        ({"unet__blocks_per_level": 0}, "must not be 0"),
        ({"unet__blocks_per_level": 10**6}, "must be in 0..64"),
        ({"unet__context_dim": 127}, "does not fit the UNet's context_dim"),
        ({"unet__context_dim": "128"}, "must be int"),
        ({"unet__context_dim": True}, "must be int"),
        ({"vae__scale_factor": float("nan")}, "not a sensible number"),
        ({"vae__latent_channels": 8}, "differ from the VAE's latent_channels"),
        ({"noise__prediction": "flow"}, "unknown prediction 'flow': choose from eps, v, x0"),
        ({"noise__beta_end": 1.5}, "betas"),
        ({"defaults__sampler": "magic"}, "unknown sampler 'magic': choose from ddim"),
        ({"defaults__sampler": "dpmp_2m"}, "did you mean dpmpp_2m?"),
        ({"text__0__heads": 3}, "not a multiple of heads"),
        ({"text__0__eos_id": 634}, "outside the vocabulary"),
        ({"text": []}, "must have 1 to 64 entries"),
        ({"text": {}}, "must be a list"),
        ({"unet": 3}, "must be an object"),
        ({"name": None}, "must be str"),
    ],
)
def test_absurd_configs_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Config.from_json(edited(**changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "1e999", '{"name": "x"}' + " " * 1_000_001])
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Config.from_json(text)


def test_clip_skip_contract() -> None:
    """DESIGN's table: SD 1.x 1..12 from 1; SD 2.x as stored 2..24 from 2; SDXL's pair 1..12 from 2."""
    sd15, sd21, sdxl = (Config.load(CONFIGS / f"{name}.json") for name in ("sd15", "sd21", "sdxl"))
    assert [c.default_clip_skip for c in (sd15, sd21, sdxl)] == [1, 2, 2]
    for config, low, high in ((sd15, 1, 12), (sd21, 2, 24), (sdxl, 1, 12)):
        assert config.check_clip_skip(low) == low
        assert config.check_clip_skip(high) == high
        for bad in (low - 1, high + 1, 1.0, True, "2"):
            with pytest.raises(ValueError, match="clip_skip"):
                config.check_clip_skip(bad)
    assert TextConfig(layers=23, width=1024, heads=16).depth == 24
    assert TextConfig(layers=23).depth == 23


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps 0"),
        ({"steps": 1001}, "1..1000"),
        ({"steps": 2.0}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"cfg_scale": float("nan")}, "cfg_scale nan"),
        ({"cfg_scale": -1}, "cfg_scale -1"),
        ({"sampler": "eulr"}, "unknown sampler 'eulr'"),
        ({"schedule": ""}, "unknown schedule ''"),
        ({"eta": 0.5, "sampler": "dpmpp_2m"}, "eta means nothing to the sampler dpmpp_2m"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta 1.5"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed 18446744073709551616"),
        ({"seed": 2**64 - 1, "num_images": 2}, "goes beyond"),
        ({"width": 66}, "the nearest are 64 and 68"),
        ({"height": 0}, "height 0"),
        ({"width": 64.0}, "whole number"),
        ({"num_images": 0}, "num_images 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"clip_skip": 5}, "clip_skip 5"),
        ({"long_prompt": "shout"}, "unknown long_prompt"),
        ({"emphasis": "bold"}, "unknown emphasis"),
        ({"guidance_rescale": 2}, "guidance_rescale 2"),
        ({"guidance_interval": (0.5, 0.5)}, "low must be below high"),
        ({"guidance_interval": 0.5}, "must be two numbers"),
        ({"dynamic_threshold": 0.0}, "dynamic_threshold 0 would leave nothing"),
        ({"dynamic_threshold": 99.5}, "dynamic_threshold 99.5"),
        ({"strength": -0.1}, "strength -0.1"),
    ],
)
def test_settings_refuse_and_name_the_value(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(Config.load(CONFIGS / "shapes.json"), **options)
    assert said in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"unknown options .*stepz"):
        resolve(Config.load(CONFIGS / "shapes.json"), stepz=3)


def test_none_means_the_models_own() -> None:
    config = Config.load(CONFIGS / "shapes.json")
    own = resolve(config, seed=0)
    assert own == resolve(
        config, seed=0, **{f.name: getattr(own, f.name) for f in dataclasses.fields(own) if f.name != "seed"}
    )
    assert (own.steps, own.sampler, own.width) == (
        config.defaults.steps,
        config.defaults.sampler,
        config.defaults.width,
    )


def test_unet_config_names_the_level() -> None:
    with pytest.raises(ValueError, match="depth"):
        UNetConfig(depth=(1, 1))


def test_a_unet_has_its_own_channels_or_those_of_inpainting() -> None:
    assert Config.from_json(edited(unet__in_channels=9)).unet.in_channels == 9
    with pytest.raises(ValueError, match="5 input channels is not known: 4, or 9 for inpainting"):
        Config.from_json(edited(unet__in_channels=5))


def test_200_damaged_configs() -> None:
    report = fuzz("json", 200, seed=3)
    assert set(report["tally"]) == {"loaded", "refused"}, report["tally"]
    assert report["slowest"] < HANG and report["grown_mb"] < 300, report
