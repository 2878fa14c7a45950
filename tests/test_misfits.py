"""Forty checkpoints that do not fit: each is explained in at most six lines, with what it was taken for and why."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import TRUE
from test_detect import FILES, UNET, fake, file_of, told, without
from torch import Tensor

from minisd.weights.detect import fit
from minisd.weights.ldm import file_keys, split_fused

File = dict[str, Tensor]
VAE = "first_stage_model."
SD1_TEXT = "cond_stage_model.transformer.text_model."
SD2_TEXT = "cond_stage_model.model."
XL_TEXT = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
KV = "transformer_blocks.0.attn2.to_k.weight"


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def reshaped(family: str, part: str, *shape: int) -> File:
    """The first tensor with this part in its name gets another shape."""
    name = next(name for name in FILES[family] if part in name)
    return FILES[family] | {name: empty(*shape)}


def renamed(family: str, old: str, new: str) -> File:
    return {name.replace(old, new): tensor for name, tensor in FILES[family].items()}


def joined(unet: str, rest: str) -> File:
    """The UNet of one family with everything else of another."""
    own = {name: t for name, t in FILES[unet].items() if name.startswith(UNET)}
    return own | {name: t for name, t in FILES[rest].items() if not name.startswith(UNET)}


def retyped(family: str, part: str, dtype: torch.dtype) -> File:
    return {name: t.to(dtype) if part in name else t for name, t in FILES[family].items()}


def alone(*names: str) -> File:
    return {name: empty(4, 4) for name in names}


def wide_inpainting() -> File:
    return FILES["sd15"] | {f"{UNET}input_blocks.0.0.weight": empty(320, 9, 3, 3), f"{UNET}extra.weight": empty(1)}


def deeper() -> File:
    config = TRUE["sdxl"].unet
    return file_of("sdxl", depth=(0, 2, 10), mid_depth=10) | {
        f"{UNET}middle_block.1.transformer_blocks.11.attn1.to_q.weight": empty(config.channels[-1], config.channels[-1])
    }


CASES: dict[str, tuple[Callable[[], File], str]] = {
    # what is not there
    "sd15 without its VAE": (lambda: without("sd15", VAE), "without its VAE"),
    "sd21 without its VAE": (lambda: without("sd21", VAE), "without its VAE"),
    "sdxl without its VAE": (lambda: without("sdxl", VAE), "without its VAE"),
    "sd15 without the VAE's decoder": (lambda: without("sd15", f"{VAE}decoder."), "only a part of it"),
    "sd15 without the VAE's encoder": (lambda: without("sd15", f"{VAE}encoder."), "only a part of it"),
    "sdxl without post_quant_conv": (lambda: without("sdxl", f"{VAE}post_quant_conv."), "only a part of it"),
    "sd15 without its text encoder": (lambda: without("sd15", "cond_stage_model."), "UNet alone"),
    "sd21 without its text encoder": (lambda: without("sd21", "cond_stage_model."), "UNet alone"),
    "sdxl without both text encoders": (lambda: without("sdxl", "conditioner."), "UNet alone"),
    "sd15 without one text block": (lambda: without("sd15", f"{SD1_TEXT}encoder.layers.4."), "whole text encoder"),
    "sdxl without one text block": (
        lambda: without("sdxl", f"{XL_TEXT[1]}transformer.resblocks.30."),
        "whole text encoder",
    ),
    "sd21 without position embeddings": (
        lambda: without("sd21", f"{SD2_TEXT}positional_embedding"),
        "whole text encoder",
    ),
    "sd15 without the time embedding": (lambda: without("sd15", f"{UNET}time_embed."), "incomplete"),
    "sd15 without its middle": (lambda: without("sd15", f"{UNET}middle_block."), "incomplete"),
    "sd21 without an output block": (lambda: without("sd21", f"{UNET}output_blocks.7."), "incomplete"),
    "sdxl without the size embedding": (lambda: without("sdxl", f"{UNET}label_emb.0.2."), "incomplete"),
    "sd15 cut short": (lambda: dict(list(FILES["sd15"].items())[:400]), "UNet alone"),
    "sdxl cut short": (lambda: dict(list(FILES["sdxl"].items())[:1500]), "UNet alone"),
    # what is too much, or of another kind
    "sd15 with a block of its own": (lambda: FILES["sd15"] | {f"{UNET}adapter.0.weight": empty(4)}, "variant"),
    "sdxl with a block of its own": (lambda: FILES["sdxl"] | {f"{UNET}adapter.0.weight": empty(4)}, "variant"),
    "sd15 with a VAE block too many": (lambda: FILES["sd15"] | {f"{VAE}decoder.extra.bias": empty(4)}, "variant"),
    "an inpainting UNet with more": (wide_inpainting, "variant"),
    "sdxl with a deeper middle": (deeper, "incomplete"),
    "names of another tool": (lambda: renamed("sd15", "in_layers.2", "in_layer.conv"), "changed"),
    "a VAE renamed": (lambda: renamed("sd15", f"{VAE}decoder.mid", f"{VAE}decoder.middle"), "changed"),
    # shapes of something else
    "sd15 with a key of SD 2.x": (lambda: reshaped("sd15", "output_blocks.5.1." + KV, 1280, 1024), "SD 2.x"),
    "sd15 with a key of SDXL": (lambda: reshaped("sd15", "output_blocks.5.1." + KV, 1280, 2048), "SDXL"),
    "sd21 with a key of SD 1.x": (lambda: reshaped("sd21", "output_blocks.5.1." + KV, 1280, 768), "SD 1.x"),
    "sdxl with a key of SD 1.x": (lambda: reshaped("sdxl", "output_blocks.1.1." + KV, 1280, 768), "SD 1.x"),
    "a merge with one odd convolution": (lambda: reshaped("sd15", "middle_block.0.in_layers.2.weight", 9, 9), "merged"),
    "a merge with another VAE": (lambda: reshaped("sdxl", f"{VAE}decoder.conv_out.weight", 3, 64, 3, 3), "merged"),
    "SD 2.x UNet, SD 1.x text": (lambda: joined("sd21", "sd15"), "joins parts of two models"),
    "SD 1.x UNet, SD 2.x text": (lambda: joined("sd15", "sd21"), "joins parts of two models"),
    "SDXL UNet, SD 1.x text": (lambda: joined("sdxl", "sd15"), "joins parts of two models"),
    "quantised UNet": (lambda: retyped("sd15", f"{UNET}middle", torch.int8), "quantised"),
    "quantised VAE": (lambda: retyped("sdxl", f"{VAE}decoder.mid", torch.uint8), "quantised"),
    # another thing altogether
    "a LoRA": (lambda: alone("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"), "--lora"),
    "a textual inversion": (lambda: alone("emb_params"), "--embedding"),
    "a ControlNet": (lambda: alone("control_model.input_hint_block.0.weight"), "ControlNet"),
    "the SDXL refiner": (lambda: alone("conditioner.embedders.0.model.ln_final.weight"), "refiner"),
}


def test_there_are_forty() -> None:
    assert len(CASES) == 40


@pytest.mark.parametrize("case", CASES)
def test_a_misfit_is_explained_in_six_lines(case: str) -> None:
    make, why = CASES[case]
    file = make()
    with pytest.raises(ValueError) as error:
        found = told(file)
        used = split_fused({name: tensor for name, tensor in file.items() if name not in found.aside})
        like = fake(replace(found.config, name="x", defaults=TRUE["sd15"].defaults))
        fit("file", found.family, used, file_keys(found.config, found.layout), like)
    lines = str(error.value).splitlines()
    assert 1 <= len(lines) <= 6
    assert lines[0].startswith("file ")
    assert why in lines[-1]
    assert len(lines) == 1 or (" does not fit: taken for SD" in lines[0] and "likely cause: " in lines[-1])
