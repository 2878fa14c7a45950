"""What a file is, told from its names and shapes; what does not fit, told in six lines."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from oracles import TRUE
from torch import Tensor

from minisd.config import Config
from minisd.weights.detect import OTHER_KINDS, detect, fit, misfit
from minisd.weights.folder import modules
from minisd.weights.ldm import file_keys, layout_of, split_fused, to_file
from minisd.weights.single import guess_prediction, use_ema

UNET = "model.diffusion_model."


@cache
def fake(config: Config) -> dict[str, Tensor]:
    """minisd's state dict on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        return modules(config).state_dict()


def file_of(family: str, **unet: object) -> dict[str, Tensor]:
    """A published checkpoint as it lies in a single file, without its numbers."""
    config = TRUE[family]
    config = replace(config, unet=replace(config.unet, **unet))
    if family == "sd21":  # the file has the block that the model leaves out
        config = replace(config, text=(replace(config.text[0], layers=24),))
    return to_file(fake(config), config) | {name: torch.empty(1, device="meta") for name in STRAYS[family]}


def told(file: dict[str, Tensor], **options: object) -> object:
    return detect({name: tensor.shape for name, tensor in file.items()}, "file", **options)


STRAYS = {
    "sd15": (
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "alphas_cumprod",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
    ),
    "sd21": ("cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale"),
    "sdxl": (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    ),
}
FILES = {family: file_of(family) for family in TRUE}


@pytest.mark.parametrize("family", TRUE)
def test_a_published_file_gives_its_whole_config(family: str) -> None:
    found = told(FILES[family], prediction="v" if family == "sd21" else None)
    wanted: Config = TRUE[family]
    assert found.config.unet == wanted.unet
    assert found.config.vae == wanted.vae
    assert found.config.text == wanted.text
    assert found.config.noise == wanted.noise
    assert found.layout == layout_of(wanted)
    last = {name for name in FILES[family] if family == "sd21" and ".resblocks.23." in name}
    assert set(found.aside) == last | set(STRAYS[family])
    used = split_fused({name: t for name, t in FILES[family].items() if name not in found.aside})
    assert set(used) == set(file_keys(found.config, found.layout).values())


def test_nine_input_channels_are_an_inpainting_model() -> None:
    found = told(file_of("sd15", in_channels=9))
    assert found.config.unet.in_channels == 9
    assert found.family == "SD 1.x (context 768, eps, inpainting)"


@pytest.mark.parametrize("family", TRUE)
def test_a_word_before_every_name_and_other_known_prefixes_are_seen_through(family: str) -> None:
    file = {f"state_dict.{name}": tensor for name, tensor in FILES[family].items()}
    assert told(file).config == told(FILES[family]).config
    file = {name.replace("first_stage_model.", "vae."): tensor for name, tensor in FILES[family].items()}
    assert told(file).layout.vae == "vae."
    assert told(file).config == told(FILES[family]).config


def test_merges_that_lost_the_text_model_prefix_are_read() -> None:
    file = {name.replace("transformer.text_model.", "transformer."): t for name, t in FILES["sd15"].items()}
    found = told(file)
    assert found.config == told(FILES["sd15"]).config
    assert set(file) - set(found.aside) == set(file_keys(found.config, found.layout).values())


@pytest.mark.parametrize(
    "family, markers, asked, kind, zero_snr",
    [
        ("sd15", (), None, "eps", False),
        ("sdxl", ("v_pred",), None, "v", False),
        ("sdxl", ("v_pred", "ztsnr"), None, "v", True),
        ("sdxl", ("v_pred",), "eps", "eps", False),
        ("sd21", (), "v", "v", False),
        ("sd21", (), "eps", "eps", False),
    ],
)
def test_prediction_is_asked_marked_or_usual(
    family: str, markers: tuple[str, ...], asked: str | None, kind: str, zero_snr: bool
) -> None:
    file = FILES[family] | {name: torch.empty(0, device="meta") for name in markers}
    found = told(file, prediction=asked)
    assert (found.config.noise.prediction, found.config.noise.zero_snr) == (kind, zero_snr)
    assert found.notes == ()


def test_markers_outrank_metadata_and_metadata_a_guess() -> None:
    file = FILES["sdxl"] | {"v_pred": torch.empty(0, device="meta"), "ztsnr": torch.empty(0, device="meta")}
    found = told(file, told="eps")
    assert found.config.noise.prediction == "v"
    assert found.config.defaults.schedule == "trailing"  # leading spacing never sees the level without signal
    assert told(FILES["sdxl"], told="v").config.noise.prediction == "v"
    assert told(FILES["sd21"], told="eps", guess="v").config.noise.prediction == "eps"
    assert told(file_of("sd21", in_channels=9), guess="v").config.noise.prediction == "eps"


def test_files_made_from_diffusers_folders_are_read() -> None:
    """SD 2.x with 23 blocks, SDXL with its projection as a linear layer's, position_ids under older names."""
    file = to_file(fake(TRUE["sd21"]), TRUE["sd21"])
    file["cond_stage_model.model.transformer.text_model.embeddings.position_ids"] = torch.empty(1, 77, device="meta")
    found = told(file, prediction="v")
    assert found.config.text == TRUE["sd21"].text
    assert found.aside == ("cond_stage_model.model.transformer.text_model.embeddings.position_ids",)

    name = "conditioner.embedders.1.model.text_projection"
    weight = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(split_fused({f"{name}.weight": weight})[name], weight)
    assert torch.equal(split_fused({name: weight})[name], weight.T)
    file = {k: v for k, v in FILES["sdxl"].items() if k != name} | {f"{name}.weight": FILES["sdxl"][name].T}
    assert told(file).config == told(FILES["sdxl"]).config


def test_sd2_without_a_word_is_guessed_and_the_guess_is_told() -> None:
    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    draw = torch.Generator().manual_seed(0)
    for spread, kind in ((0.2, "v"), (0.05, "eps")):
        assert guess_prediction({name: spread * torch.randn(320, generator=draw)}) == kind
        found = told(FILES["sd21"], guess=kind)
        assert found.config.noise.prediction == kind
        assert len(found.notes) == 1 and "guess" in found.notes[0]
    assert told(FILES["sd21"], guess="v").config.defaults.width == 768
    assert told(FILES["sd21"], guess="eps").config.defaults.width == 512


OTHERS = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "a LoRA",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": "a LoRA",
    "lora_unet_x.hada_w1_a": "a LoHa",
    "lora_unet_x.lokr_w1": "a LoKr",
    "lora_unet_x.dora_scale": "a DoRA",
    "emb_params": "a textual inversion",
    "clip_g": "a textual inversion",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "Flux",
    "control_model.input_hint_block.0.weight": "a ControlNet",
    "conditioner.embedders.0.model.logit_scale": "the SDXL refiner",
    "edm_mean": "another noise table",
    "down_blocks.0.resnets.0.conv1.weight": "a diffusers UNet alone",
    "encoder.down.0.block.0.conv1.weight": "a VAE alone",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a text encoder alone",
    "input_blocks.0.0.weight": "a UNet alone",
    "model.diffusion_model.label_emb.weight": "an upscaler",
    "model.diffusion_model.time_embed.cond_proj.weight": "an LCM UNet",
    "some.resnet50.conv1.weight": "not an SD 1.x, SD 2.x or SDXL checkpoint: it holds some.resnet50.conv1.weight",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_file_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ValueError) as error:
        detect({name: (4, 4)}, "file")
    assert OTHERS[name] in str(error.value) and "\n" not in str(error.value)


def test_published_files_are_no_other_kind_and_an_empty_one_is_told() -> None:
    assert len(OTHER_KINDS) >= 15
    with pytest.raises(ValueError, match="no tensors"):
        detect({}, "file")
    with pytest.raises(ValueError, match="a UNet alone"):
        told({name: t for name, t in FILES["sd15"].items() if name.startswith(UNET)})


def test_a_text_encoder_of_another_family_is_told_before_anything_is_built() -> None:
    unet = {name: t for name, t in FILES["sd21"].items() if name.startswith(UNET)}
    rest = {name: t for name, t in FILES["sd15"].items() if not name.startswith(UNET)}
    with pytest.raises(ValueError, match=r"its text encoder is 768 wide, its UNet wants 1024 \(SD 2.x\)"):
        told(unet | rest)


def why(file: dict[str, Tensor]) -> list[str]:
    """The lines on a file that does not fit its own config."""
    found = told(file)
    like = fake(found.config)
    used = split_fused({name: tensor for name, tensor in file.items() if name not in found.aside})
    with pytest.raises(ValueError) as error:
        fit("file.safetensors", found.family, used, file_keys(found.config, found.layout), like)
    return str(error.value).splitlines()


def without(family: str, *starts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in FILES[family].items() if not name.startswith(starts)}


@pytest.mark.parametrize("family", TRUE)
def test_what_is_missing_is_counted_named_and_explained(family: str) -> None:
    lines = why(without(family, "first_stage_model.decoder."))
    assert lines[0].startswith("file.safetensors does not fit: taken for SD")
    assert lines[1].startswith("  138 missing: first_stage_model.decoder.")
    assert lines[2] == "  likely cause: the file was saved without its VAE, or with only a part of it"
    assert why(without(family, "first_stage_model."))[2] == lines[2]
    assert why(without(family, f"{UNET}output_blocks.3."))[-1] == "  likely cause: the file is incomplete"
    assert "variant" in why(FILES[family] | {f"{UNET}middle_block.9.weight": torch.ones(1)})[-1]
    prefix = layout_of(TRUE[family]).text[0]
    assert (
        "whole text encoder"
        in why(without(family, f"{prefix}encoder.layers.3.", f"{prefix}transformer.resblocks.3."))[-1]
    )


@pytest.mark.parametrize("family", TRUE)
@pytest.mark.parametrize("lost", ["input_blocks.0.0.weight", "out.2.weight", "input_blocks.4.0.in_layers.2.weight"])
def test_a_file_that_lost_what_tells_its_shape_is_still_explained(family: str, lost: str) -> None:
    lines = why(without(family, UNET + lost))
    assert 2 < len(lines) <= 6 and lost in "".join(lines)


def test_shapes_of_another_family_are_traced_to_it() -> None:
    names = [f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight (320, 1024) instead of (320, 768)"]
    lines = misfit("x", "SD 1.x", {"missing": ["a"], "unexpected": ["b"], "of another shape": names}).splitlines()
    assert lines[-1] == "  likely cause: these tensors belong to another family (SD 2.x)"
    assert len(lines) == 5
    assert misfit("x", "SD 1.x", {"missing": []}) == ""


def test_whole_numbers_are_refused() -> None:
    name = f"{UNET}out.2.weight"
    lines = why(FILES["sd15"] | {name: torch.empty(4, 320, 3, 3, dtype=torch.int8, device="meta")})
    assert len(lines) == 1 and "quantised" in lines[0]


def test_the_averaged_unet_takes_the_place_of_the_other() -> None:
    file = dict(FILES["sd15"])
    found = told(file)
    with pytest.raises(ValueError, match="no averaged"):
        use_ema(file, found, "file")
    copies = {name: torch.full((1,), float(i)) for i, name in enumerate(name for name in file if name.startswith(UNET))}
    file |= {"model_ema." + name.removeprefix("model.").replace(".", ""): t for name, t in copies.items()}
    used = use_ema(file, found, "file")
    assert all(torch.equal(used[name], copies[name]) for name in copies)
    assert used["first_stage_model.quant_conv.weight"] is file["first_stage_model.quant_conv.weight"]
