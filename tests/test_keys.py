"""The published sizes, and the key tables as bijections onto the other libraries' own names."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKL
from oracles import TINY, TRUE, oracle, text_oracle, twin, unet_oracle, vae_oracle
from safetensors.torch import save_file
from torch import nn

from minisd.config import Config, TextConfig, UNetConfig
from minisd.nn.clip import CLIPText
from minisd.nn.unet import UNet
from minisd.nn.vae import VAE
from minisd.weights.keys import rename, text_keys, to_ours, to_theirs, unet_keys, vae_keys

NORMS = (nn.GroupNorm, nn.LayerNorm)
NETWORKS = {  # what, its config, our class, their model, tensors and parameters as published
    "unet sd15": (TRUE["sd15"].unet, UNet, unet_oracle, 686, 859_520_964),
    "unet sd21": (TRUE["sd21"].unet, UNet, unet_oracle, 686, 865_910_724),
    "unet sdxl": (TRUE["sdxl"].unet, UNet, unet_oracle, 1680, 2_567_463_684),
    "vae": (TRUE["sd15"].vae, VAE, vae_oracle, 248, 83_653_863),
    "text clip-l": (TRUE["sd15"].text[0], CLIPText, text_oracle, 196, 123_060_480),
    "text openclip-h": (TRUE["sd21"].text[0], CLIPText, text_oracle, 372, 340_387_840),
    "text openclip-g": (TRUE["sdxl"].text[1], CLIPText, text_oracle, 517, 694_659_840),
}


def tables(config: object) -> list[dict[str, str]]:
    """Every table that the config has."""
    if isinstance(config, TextConfig):
        return [text_keys(config), text_keys(config, prefix="")]
    return [unet_keys(config) if isinstance(config, UNetConfig) else vae_keys(config)]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_tensors_are_the_published_ones(name: str) -> None:
    config, kind, _, tensors, parameters = NETWORKS[name]
    with torch.device("meta"):
        state = kind(config).state_dict()
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_is_a_bijection_onto_their_names_and_fits_every_shape(name: str) -> None:
    config, kind, build, *_ = NETWORKS[name]
    with torch.device("meta"):
        ours, theirs = kind(config).state_dict(), build(config).state_dict()
    fitting = [table for table in tables(config) if set(table.values()) == set(theirs)]
    assert len(fitting) == 1
    assert fitting[0].keys() == ours.keys()
    assert len(set(fitting[0].values())) == len(ours)
    assert to_ours(theirs, fitting[0], ours).keys() == ours.keys()  # raises where a shape differs


def test_sd1_keeps_its_projections_as_1x1_convolutions() -> None:
    config = TRUE["sd15"].unet
    with torch.device("meta"):
        ours, theirs = UNet(config).state_dict(), unet_oracle(config, linear=False).state_dict()
    assert to_ours(theirs, unet_keys(config), ours)["mid.transformers.0.proj_in.weight"].shape == (1280, 1280)
    back = to_theirs(ours, unet_keys(config), theirs)
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in theirs.items()}
    assert back["mid_block.attentions.0.proj_in.weight"].shape == (1280, 1280, 1, 1)


def networks(family: str) -> Iterator[tuple[object, nn.Module, dict[str, str]]]:
    """Config, oracle and table of each network of a tiny family."""
    model = oracle(family)
    config = model.config
    yield config.unet, model.unet, unet_keys(config.unet)
    yield config.vae, model.vae, vae_keys(config.vae)
    for tower, theirs in zip(config.text, model.text, strict=True):
        yield tower, theirs, text_keys(tower, prefix="text_model." if tower.projection else "")


@pytest.mark.parametrize("family", TINY)
def test_every_norm_has_the_eps_and_the_groups_of_its_counterpart(family: str) -> None:
    for config, theirs, table in networks(family):
        counterparts = dict(theirs.named_modules())
        norms = {n: m for n, m in twin(config, theirs).named_modules() if isinstance(m, NORMS)}
        assert len(norms) == sum(isinstance(m, NORMS) for m in counterparts.values()) > 0
        for name, norm in norms.items():
            other = counterparts[table[f"{name}.weight"].removesuffix(".weight")]
            assert norm.extra_repr() == other.extra_repr(), name  # groups or width, eps, affine


@pytest.mark.parametrize("family", TINY)
def test_there_and_back_is_the_same_bit_for_bit(family: str) -> None:
    for part, theirs, table in networks(family):
        state = theirs.state_dict()
        ours = twin(part, theirs).state_dict()
        back = to_theirs(ours, table, state)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)
        again = to_ours(back, table, ours)
        assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_export_without_shapes_is_what_diffusers_reads_as_linear_projections() -> None:
    config = TINY["sd1"].unet
    ours = twin(config, unet_oracle(config, linear=False)).state_dict()
    theirs = unet_oracle(config, linear=True, seed=1)
    theirs.load_state_dict(to_theirs(ours, unet_keys(config)))  # strict
    assert torch.equal(theirs.conv_out.weight, ours["conv_out.weight"])


def test_the_vae_names_of_old_files_are_the_ones_that_diffusers_converts(tmp_path) -> None:
    config = TINY["sd1"].vae
    theirs = vae_oracle(config)
    ours = twin(config, theirs).state_dict()
    theirs.save_config(tmp_path)
    old = to_theirs(ours, vae_keys(config, old=True))
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    read, info = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_missing_unexpected_and_misshaped_are_told_in_one_message() -> None:
    config = TINY["sd1"].vae
    table, like = vae_keys(config), VAE(config).state_dict()
    theirs = to_theirs(like, table)
    before = dict(theirs)
    for name in [name for name in theirs if name.startswith("encoder.down_blocks")][:5]:
        del theirs[name]
    theirs["position_ids"] = torch.zeros(1)
    theirs["quant_conv.weight"] = torch.zeros(8, 9, 1, 1)
    with pytest.raises(ValueError) as error:
        to_ours(theirs, table, like)
    place = "encoder.down_blocks.0.resnets.0"
    assert str(error.value) == (
        f"the tensors do not fit the model: 5 missing "
        f"({place}.norm1.weight, {place}.norm1.bias, {place}.conv1.weight, ...); "
        "1 unexpected (position_ids); "
        "1 of another shape (quant_conv.weight (8, 9, 1, 1) instead of (8, 8, 1, 1))"
    )
    assert to_ours(before, table, like).keys() == like.keys()


@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (4, 4, 1), (16,), (4, 4, 1, 4), (2, 8)])
def test_only_a_1x1_convolution_passes_for_a_linear_map(shape: tuple[int, ...]) -> None:
    like = {"a": torch.zeros(4, 4)}
    assert to_ours({"b": torch.ones(4, 4, 1, 1)}, {"a": "b"}, like)["a"].shape == (4, 4)
    with pytest.raises(ValueError, match="1 of another shape"):
        to_ours({"b": torch.ones(shape)}, {"a": "b"}, like)


def test_rename_takes_whole_words_the_longest_rule_and_never_its_own_output() -> None:
    rules = {"to_q.": "q.", "q.": "to_q.", "time.": "t.", "time.linear1.": "embed."}
    assert rename("to_q.weight", rules) == "q.weight"
    assert rename("auto_q.weight", rules) == "auto_q.weight"
    assert rename("time.linear1.weight", rules) == "embed.weight"
    assert rename("block.time.bias", rules) == "block.t.bias"


def test_up_is_indexed_by_level_and_in_running_order_in_diffusers() -> None:
    table = unet_keys(Config("sd15").unet)
    assert table["up.0.resnets.2.conv1.weight"] == "up_blocks.3.resnets.2.conv1.weight"
    assert table["up.3.upsample.conv.weight"] == "up_blocks.0.upsamplers.0.conv.weight"
    assert table["down.1.transformers.0.proj_in.weight"] == "down_blocks.1.attentions.0.proj_in.weight"
