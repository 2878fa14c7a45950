"""The names of the original single files: CompVis' LDM for UNet and VAE, transformers' or OpenCLIP's for the text.

In: a config. Out: a table {minisd name: their name}, generated from the config and one to one, as in `keys.py`.
`file_keys` is the table of a whole file: `unet.`, `vae.` and `text.0.` on our side, `Layout`'s prefixes on theirs.

OpenCLIP keeps q, k and v of an attention in one tensor and its projection transposed. `split_fused` takes such
tensors apart under names of our own making (attn.q.weight ...), which the table speaks; `join_fused` undoes it.
Rombach et al. 2022, https://github.com/CompVis/stable-diffusion; https://github.com/mlfoundations/open_clip
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config, TextConfig, UNetConfig, VAEConfig
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE
from .keys import Rules, Table, table, text_keys, to_theirs


@dataclass(frozen=True)
class Layout:
    """Where the names of each network start in a single file. A text prefix ending in `.model.` is OpenCLIP's."""

    text: tuple[str, ...]
    unet: str = "model.diffusion_model."
    vae: str = "first_stage_model."


def layout_of(config: Config) -> Layout:
    """The layout a model of this config was published in."""
    return LAYOUTS[family_of(config)]


def family_of(config: Config) -> str:
    """sdxl: two towers; sd2: one of OpenCLIP's, which have the exact GELU; sd1: one of OpenAI's."""
    if len(config.text) > 1:
        return "sdxl"
    return "sd2" if config.text[0].activation == "gelu" else "sd1"


def file_keys(config: Config, layout: Layout) -> Table:
    """minisd name -> name in a single file, after `split_fused`."""
    parts = {"unet.": (layout.unet, unet_keys(config.unet)), "vae.": (layout.vae, vae_keys(config.vae))}
    for i, (tower, prefix) in enumerate(zip(config.text, layout.text, strict=True)):
        names = openclip_keys(tower) if is_openclip(prefix) else text_keys(tower, prefix="")
        parts[f"text.{i}."] = (prefix, names)
    return {ours + name: theirs + other for ours, (theirs, names) in parts.items() for name, other in names.items()}


def is_openclip(prefix: str) -> bool:
    """Whether the names after this prefix are OpenCLIP's own."""
    return prefix.endswith(".model.")


def to_file(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """minisd's whole state dict -> the tensors of an original single file.

    Raises:
        ValueError: the tensors do not fit the config.
    """
    names, convs = file_keys(config, layout_of(config)), conv_names(config)
    found = to_theirs(tensors, names)
    return join_fused({k: t[..., None, None] if k in convs and t.ndim == 2 else t for k, t in found.items()})


def conv_names(config: Config) -> set[str]:
    """Their names of the linear maps that a single file stores as 1x1 convolutions.

    The VAE's attention always; the UNet's projections in SD 1.x only.
    """
    parts = ["vae."] + ["unet."] * (family_of(config) == "sd1")
    found = set()
    for ours, theirs in file_keys(config, layout_of(config)).items():
        projection = ".attention.attention." in ours or (".blocks." not in ours and ".proj_" in ours)
        if ours.startswith(tuple(parts)) and projection and ours.endswith(".weight"):
            found.add(theirs)
    return found


def unet_keys(config: UNetConfig) -> Table:
    """minisd name -> name after `model.diffusion_model.`."""
    return table(UNet, config, {**UNET_RULES, **level_rules(config), **block_rules(config)})


def vae_keys(config: VAEConfig) -> Table:
    """minisd name -> name after `first_stage_model.`. `up` is numbered by level there too."""
    ways = {f"{way}.{i}.resample.": f"{way}.{i}.{way}sample." for i in range(len(config.channels)) for way in WAYS}
    return table(VAE, config, {**VAE_RULES, **ways})


def openclip_keys(config: TextConfig) -> Table:
    """minisd name -> name in OpenCLIP's text tower, q, k and v apart (see `split_fused`)."""
    return table(CLIPText, config, OPENCLIP_RULES)


def level_rules(config: UNetConfig) -> Rules:
    """LDM counts blocks through all levels, in running order; a downsample is a block, an upsample part of one."""
    rules, n, last = {}, config.blocks_per_level, len(config.channels) - 1
    for level, depth in enumerate(config.depth):
        down, up = 1 + level * (n + 1), (last - level) * (n + 1)
        for i in range(n + 1):
            for way, block in (("down", f"input_blocks.{down + i}."), ("up", f"output_blocks.{up + i}.")):
                rules[f"{way}.{level}.resnets.{i}."] = f"{block}0."
                rules[f"{way}.{level}.transformers.{i}."] = f"{block}1."
        rules[f"down.{level}.downsample.conv."] = f"input_blocks.{down + n}.0.op."
        rules[f"up.{level}.upsample."] = f"output_blocks.{up + n}.{2 if depth else 1}."
    rules["mid.resnets.1."] = f"middle_block.{2 if config.mid_depth else 1}."
    return rules


def block_rules(config: UNetConfig) -> Rules:
    """The LayerNorms of a transformer block keep their names; `norm1.` of a ResBlock does not."""
    blocks = range(max(*config.depth, config.mid_depth))
    return {f"blocks.{i}.norm{j}.": f"transformer_blocks.{i}.norm{j}." for i in blocks for j in (1, 2, 3)}


def split_fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take OpenCLIP's q, k, v apart and turn its projection; everything else stays. No tensor is copied.

    diffusers' own converter writes the projection as a linear layer's, which is turned already.
    """
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition("attn.in_proj_")
        if name.endswith("model.text_projection.weight"):
            found[name.removesuffix(".weight")] = tensor
        elif stem and kind in ("weight", "bias"):
            found.update({f"{stem}attn.{x}.{kind}": part for x, part in zip("qkv", tensor.chunk(3), strict=True)})
        else:
            found[name] = tensor.T if turned(name, tensor) else tensor
    return found


def join_fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from `split_fused`."""
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition("attn.q.")
        if stem and kind in ("weight", "bias"):
            found[f"{stem}attn.in_proj_{kind}"] = torch.cat([tensors[f"{stem}attn.{x}.{kind}"] for x in "qkv"])
        elif not stem and "attn.k." not in name and "attn.v." not in name:
            found[name] = tensor.T.contiguous() if turned(name, tensor) else tensor
    return found


def turned(name: str, tensor: Tensor) -> bool:
    """OpenCLIP's projection is (width, projection); that of a linear layer is (projection, width)."""
    return name.endswith("model.text_projection") and tensor.ndim == 2


WAYS = ("down", "up")
LAYOUTS = {
    "sd1": Layout(("cond_stage_model.transformer.text_model.",)),
    "sd2": Layout(("cond_stage_model.model.",)),
    "sdxl": Layout(("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")),
}
UNET_RULES = {
    "time.linear1.": "time_embed.0.",
    "time.linear2.": "time_embed.2.",
    "vector.linear1.": "label_emb.0.0.",
    "vector.linear2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid.resnets.0.": "middle_block.0.",
    "mid.transformers.0.": "middle_block.1.",
    "norm1.": "in_layers.0.",  # from here on: of a ResBlock
    "conv1.": "in_layers.2.",
    "time.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "shortcut.": "skip_connection.",
    "blocks.": "transformer_blocks.",
    "self_attention.": "attn1.",
    "cross_attention.": "attn2.",
    "to_out.": "to_out.0.",
    "ff.proj_in.": "ff.net.0.proj.",
    "ff.proj_out.": "ff.net.2.",
}
VAE_RULES = {
    "mid.resnets.0.": "mid.block_1.",
    "mid.resnets.1.": "mid.block_2.",
    "resnets.": "block.",
    "shortcut.": "nin_shortcut.",
    "attention.norm.": "attn_1.norm.",
    "attention.attention.to_q.": "attn_1.q.",
    "attention.attention.to_k.": "attn_1.k.",
    "attention.attention.to_v.": "attn_1.v.",
    "attention.attention.to_out.": "attn_1.proj_out.",
    "quant.": "quant_conv.",
    "post_quant.": "post_quant_conv.",
}
OPENCLIP_RULES = {
    "token_embedding.": "token_embedding.",
    "position_embedding.weight": "positional_embedding",
    "blocks.": "transformer.resblocks.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attention.to_q.": "attn.q.",
    "attention.to_k.": "attn.k.",
    "attention.to_v.": "attn.v.",
    "attention.to_out.": "attn.out_proj.",
    "fc1.": "mlp.c_fc.",
    "fc2.": "mlp.c_proj.",
    "final_norm.": "ln_final.",
    "projection.weight": "text_projection",
}
