"""What minisd calls a tensor, and what other people call it.

In: a config. Out: a table {minisd name: their name}, generated from the config and one to one, so that the
same table loads and exports. Their layouts: diffusers (UNet, VAE) and transformers (CLIP).
`to_ours` and `to_theirs` carry a state dict over: the same tensors under the other names, shapes checked.

The minisd names are read from the network itself, built on the meta device: none can be forgotten. A layout
is a dict of rules {start of a name: what it becomes}; `rename` walks through a name with them and never reads
its own output again, so the order of the rules does not matter (with a chained str.replace it does).
"""

from collections.abc import Collection, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from ..config import TextConfig, UNetConfig, VAEConfig
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE

Rules = Mapping[str, str]
Table = dict[str, str]


def unet_keys(config: UNetConfig, old: bool = False) -> Table:
    """minisd name -> name in a diffusers UNet2DConditionModel.

    `old`: the attentions' names by their processors, in LoRA files of before diffusers 0.22.
    """
    return table(UNet, config, {**UNET_RULES, **level_rules(config.channels), **(UNET_OLD_RULES if old else {})})


def vae_keys(config: VAEConfig, old: bool = False) -> Table:
    """minisd name -> name in a diffusers AutoencoderKL.

    `old`: the attention's names before diffusers 0.14, which many published VAE files still carry.
    """
    return table(VAE, config, {**VAE_RULES, **level_rules(config.channels), **(VAE_OLD_RULES if old else {})})


def text_keys(config: TextConfig, prefix: str = "text_model.", old: bool = False) -> Table:
    """minisd name -> name in a transformers CLIPTextModel or CLIPTextModelWithProjection.

    Published folders and ...WithProjection have the prefix; transformers 5 saves CLIPTextModel with none.
    The projection stands outside the prefix. `old`: the attentions' names in LoRA files of early 2023.
    """
    names = table(CLIPText, config, {**TEXT_RULES, **(TEXT_OLD_RULES if old else {})}).items()
    return {ours: theirs if ours.startswith("projection.") else prefix + theirs for ours, theirs in names}


def table(kind: type[nn.Module], config: object, rules: Rules) -> Table:
    """Every tensor name of the network kind(config), renamed by the rules."""
    return {name: rename(name, rules) for name in names(kind, config)}


@cache
def names(kind: type[nn.Module], config: object) -> tuple[str, ...]:
    """The tensor names of the network kind(config), which is built once."""
    with torch.device("meta"):
        return tuple(kind(config).state_dict())


def rename(name: str, rules: Rules) -> str:
    """Rewrite a dotted name from left to right: the longest rule that fits here, else the word as it is."""
    done = ""
    while name:
        word = name[: name.find(".") + 1] or name
        old = max((rule for rule in rules if name.startswith(rule)), key=len, default=word)
        done, name = done + rules.get(old, old), name[len(old) :]
    return done


def level_rules(channels: tuple[int, ...]) -> Rules:
    """minisd numbers `up` by level, like `down`; diffusers counts up blocks as they run, lowest first."""
    rules, last = {}, len(channels) - 1
    for level in range(last + 1):
        for way, index in (("down", level), ("up", last - level)):
            rules[f"{way}.{level}."] = f"{way}_blocks.{index}."
            for word in (f"{way}sample", "resample"):  # the UNet's and the VAE's
                rules[f"{way}.{level}.{word}."] = f"{way}_blocks.{index}.{way}samplers.0."
    return rules


def to_ours(tensors: Mapping[str, Tensor], table: Table, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names -> the same under minisd's, in the shapes of `like`.

    Args:
        tensors: the other layout's state dict; all of `table` and nothing else.
        table: minisd name -> their name.
        like: minisd's own state dict, on the meta device will do; only its shapes are read.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; one message, counts and first names.
    """
    return carry(tensors, {theirs: ours for ours, theirs in table.items()}, like)


def to_theirs(
    tensors: Mapping[str, Tensor], table: Table, like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tensors under minisd's names -> the same under theirs, in the shapes of `like`.

    Without `like` shapes stay as they are: linear projections, which diffusers reads where the folder's
    config says `use_linear_projection`.

    Raises:
        ValueError: as `to_ours`.
    """
    return carry(tensors, table, like)


def carry(tensors: Mapping[str, Tensor], names: Table, like: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Rename by `names` {old: new} and bring into the shapes of `like` {new: tensor}; strict."""
    shapes = {old: (tensors[old] if like is None else like[new]).shape for old, new in names.items() if old in tensors}
    told = [f"{len(found)} {kind} ({first(found)})" for kind, found in faults(tensors, names, shapes).items() if found]
    if told:
        raise ValueError("the tensors do not fit the model: " + "; ".join(told))
    return {names[old]: tensors[old].reshape(shape) for old, shape in shapes.items()}


def faults(tensors: Mapping[str, Tensor], names: Collection[str], shapes: Mapping[str, torch.Size]) -> dict[str, list]:
    """What keeps tensors from being all of `names`, and nothing else, in these shapes: kind of fault -> names."""
    return {
        "missing": [name for name in names if name not in tensors],
        "unexpected": [name for name in tensors if name not in names],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in shapes.items()
            if name in tensors and flat(tensors[name].shape) != flat(shape)
        ],
    }


def first(found: list[str]) -> str:
    """The first three, and a sign that there are more."""
    return ", ".join(found[:3] + ["..."] * (len(found) > 3))


def flat(shape: torch.Size) -> torch.Size:
    """A 1x1 convolution (c, d, 1, 1) is the linear map (c, d): SD 1.x stores its projections so."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


CONV_RULES = {  # in the UNet and in the VAE
    "mid.": "mid_block.",
    "shortcut.": "conv_shortcut.",
    "to_out.": "to_out.0.",
    "norm_out.": "conv_norm_out.",
}
UNET_RULES = {
    **CONV_RULES,
    "time.linear1.": "time_embedding.linear_1.",
    "time.linear2.": "time_embedding.linear_2.",
    "vector.linear1.": "add_embedding.linear_1.",
    "vector.linear2.": "add_embedding.linear_2.",
    "time.": "time_emb_proj.",  # of a ResBlock
    "transformers.": "attentions.",
    "blocks.": "transformer_blocks.",
    "self_attention.": "attn1.",
    "cross_attention.": "attn2.",
    "ff.proj_in.": "ff.net.0.proj.",
    "ff.proj_out.": "ff.net.2.",
}
UNET_OLD_RULES = {"self_attention.": "attn1.processor.", "cross_attention.": "attn2.processor.", "to_out.": "to_out."}
VAE_RULES = {
    **CONV_RULES,
    "attention.norm.": "attentions.0.group_norm.",
    "attention.attention.": "attentions.0.",
    "quant.": "quant_conv.",
    "post_quant.": "post_quant_conv.",
}
VAE_OLD_RULES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.": "proj_attn."}
TEXT_RULES = {
    "token_embedding.": "embeddings.token_embedding.",
    "position_embedding.": "embeddings.position_embedding.",
    "blocks.": "encoder.layers.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attention.to_q.": "self_attn.q_proj.",
    "attention.to_k.": "self_attn.k_proj.",
    "attention.to_v.": "self_attn.v_proj.",
    "attention.to_out.": "self_attn.out_proj.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
    "final_norm.": "final_layer_norm.",
    "projection.": "text_projection.",
}
TEXT_OLD_RULES = {f"attention.to_{x}.": f"self_attn.to_{x}." for x in ("q", "k", "v", "out")}
