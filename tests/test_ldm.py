"""The original layouts: bijections at the published sizes, held against diffusers' own converters."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from oracles import TINY, TRUE, text_oracle, unet_oracle, vae_oracle
from torch import Tensor

from minisd.config import Config
from minisd.weights.folder import modules
from minisd.weights.keys import text_keys, to_ours, to_theirs, unet_keys, vae_keys
from minisd.weights.ldm import file_keys, join_fused, layout_of, split_fused, to_file

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@cache
def fake(config: Config) -> dict[str, Tensor]:
    """minisd's state dict on the meta device: names and shapes of the true sizes, no numbers."""
    with torch.device("meta"):
        return modules(config).state_dict()


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def under(prefix: str, names: object) -> int:
    return sum(name.startswith(prefix) for name in names)


@pytest.mark.parametrize("family, tensors", [("sd15", 686), ("sd21", 686), ("sdxl", 1680)])
def test_a_file_has_the_published_number_of_tensors(family: str, tensors: int) -> None:
    config = TRUE[family]
    file = to_file(fake(config), config)
    assert under(UNET, file) == tensors
    assert under(VAE, file) == 248
    names = file_keys(config, layout_of(config))
    assert names.keys() == fake(config).keys() and len(set(names.values())) == len(names)


@pytest.mark.parametrize("config", [*TRUE.values(), *TINY.values()], ids=lambda config: config.name)
def test_the_way_there_and_back_is_the_same_bit_for_bit(config: Config) -> None:
    tiny = config in TINY.values()
    torch.manual_seed(0)
    ours = modules(config).state_dict() if tiny else fake(config)
    file = to_file(ours, config)
    back = to_ours(split_fused(file), file_keys(config, layout_of(config)), ours)
    assert shapes(back) == shapes(ours)
    again = to_file(back, config)
    assert shapes(again) == shapes(file)
    if tiny:
        assert all(torch.equal(back[name], ours[name]) for name in ours)
        assert all(torch.equal(again[name], file[name]) for name in file)


@pytest.mark.parametrize("family", TRUE)
def test_diffusers_reads_a_file_of_ours_as_its_own_model(family: str) -> None:
    """Every name, and every shape: 1x1 convolutions where the layout has them."""
    config = TRUE[family]
    file = to_file(fake(config), config)
    with torch.device("meta"):
        unet, vae = unet_oracle(config.unet, linear=family != "sd15"), vae_oracle(config.vae)
    assert shapes(converters.convert_ldm_unet_checkpoint(dict(file), dict(unet.config))) == shapes(unet.state_dict())
    assert shapes(converters.convert_ldm_vae_checkpoint(dict(file), dict(vae.config))) == shapes(vae.state_dict())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_finds_the_same_numbers_in_a_file_of_ours(family: str) -> None:
    """Tiny models with numbers: the right tensor behind every name, q, k and v in order, the projection turned."""
    config = TINY[family]
    torch.manual_seed(0)
    ours = modules(config).state_dict()
    file = to_file(ours, config)
    unet, vae = unet_oracle(config.unet, linear=family != "sd1"), vae_oracle(config.vae)
    wanted = to_theirs(part(ours, "unet."), unet_keys(config.unet), unet.state_dict())
    assert_equal(converters.convert_ldm_unet_checkpoint(dict(file), dict(unet.config)), wanted)
    wanted = to_theirs(part(ours, "vae."), vae_keys(config.vae), vae.state_dict())
    assert_equal(converters.convert_ldm_vae_checkpoint(dict(file), dict(vae.config)), wanted)
    for i, (tower, prefix) in enumerate(zip(config.text, layout_of(config).text, strict=True)):
        wanted = to_theirs(part(ours, f"text.{i}."), text_keys(tower))
        if prefix.endswith(".model."):
            assert_equal(openclip(tower, file, prefix), wanted)
        else:
            assert_equal({f"text_model.{name}": t for name, t in part(file, prefix).items()}, wanted)


def openclip(tower: object, file: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """diffusers' converter. It takes the width from the projection, so a square one stands in where ours is not."""
    model, file = text_oracle(tower), dict(file)
    turned = file.pop(f"{prefix}text_projection", None)
    found = converters.convert_open_clip_checkpoint(model, file, prefix)
    if turned is not None:
        found["text_projection.weight"] = turned.T
    return found


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert shapes(found) == shapes(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_openclip_keeps_q_k_and_v_in_one_tensor_and_its_projection_turned() -> None:
    fused = {
        "x.model.a.attn.in_proj_weight": torch.arange(12.0).reshape(6, 2),
        "x.model.text_projection": torch.ones(2, 3),
    }
    apart = split_fused(fused)
    assert torch.equal(apart["x.model.a.attn.k.weight"], torch.tensor([[4.0, 5], [6, 7]]))
    assert apart["x.model.text_projection"].shape == (3, 2)
    back = join_fused(apart)
    assert back.keys() == fused.keys() and all(torch.equal(back[name], fused[name]) for name in fused)


def test_names_that_are_known_from_published_files() -> None:
    sd15, sdxl = (file_keys(TRUE[f], layout_of(TRUE[f])) for f in ("sd15", "sdxl"))
    assert sd15["unet.up.0.resnets.2.conv1.weight"] == f"{UNET}output_blocks.11.0.in_layers.2.weight"
    assert sd15["unet.up.3.upsample.conv.weight"] == f"{UNET}output_blocks.2.1.conv.weight"
    assert sd15["unet.up.2.upsample.conv.bias"] == f"{UNET}output_blocks.5.2.conv.bias"
    assert sd15["vae.decoder.up.3.resample.conv.weight"] == f"{VAE}decoder.up.3.upsample.conv.weight"
    first = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert sd15["text.0.blocks.0.attention.to_q.weight"] == first
    assert sdxl["unet.vector.linear1.weight"] == f"{UNET}label_emb.0.0.weight"
    assert sdxl["text.1.position_embedding.weight"] == "conditioner.embedders.1.model.positional_embedding"


def test_a_model_without_attention_in_the_middle_has_its_second_resblock_there() -> None:
    config = replace(TINY["sd1"], unet=replace(TINY["sd1"].unet, depth=(1, 0, 0), mid_depth=0))
    assert f"{UNET}middle_block.1.in_layers.0.weight" in to_file(fake(config), config)
