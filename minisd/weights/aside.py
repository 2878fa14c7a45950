"""What files hold beside the networks: where it stands in each layout, and what has no place in the other.

In: tensors under the names of one layout, as `Parts.aside` has them. Out: the same under the names of another.
position_ids, the averaged (EMA) copy, the text encoder's scale and projection, SD 2.x's last block, markers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import Config
from .diffusers import TOWERS
from .keys import rename
from .ldm import is_openclip, layout_of

MARKERS = ("v_pred", "ztsnr")  # empty tensors: what the UNet predicts, and that the noise table ends without signal


def translate(aside: Mapping[str, Tensor], kind: str, to: str, config: Config) -> tuple[dict[str, Tensor], list[str]]:
    """Carry over what has a place.

    Args:
        aside: {name in a file} or {folder/name} by `kind`.
        kind, to: "file" or "diffusers".

    Returns:
        {name in the new layout: tensor}, and the names that are left out. From a layout into itself nothing is; the
        markers of a file never count, for whoever writes one sets them by the config.
    """
    names = {name: new_name(name, kind, to, config) for name in aside if name not in MARKERS}
    kept = {new: turned(aside[name], name, new) for name, new in names.items() if new}
    return kept, [name for name, new in names.items() if not new]


def new_name(name: str, kind: str, to: str, config: Config) -> str:
    """A name in the other layout; "" where it has no place there."""
    if kind == to:
        return name.replace("/embeddings.", "/text_model.embeddings.") if to == "diffusers" else name
    for prefix, folder in zip(layout_of(config).text, TOWERS[: len(config.text)], strict=True):
        if kind == "file" and name == f"{prefix}{POSITIONS}":
            return f"{folder}/text_model.{POSITIONS}"
        if kind == "diffusers" and name.startswith(f"{folder}/"):
            own = name.removeprefix(f"{folder}/").removeprefix("text_model.")
            found = {"text_projection.weight": "text_projection", "logit_scale": "logit_scale"}
            word = found.get(own, "") if is_openclip(prefix) else own if own == POSITIONS else ""
            return f"{prefix}{word}" if word else ""
    return ""


def turned(tensor: Tensor, old: str, new: str) -> Tensor:
    """OpenCLIP's projection is stored the other way round."""
    return tensor.T if old.endswith("text_projection.weight") and new.endswith("text_projection") else tensor


def last_block(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """One block of zeros after the last of `layers`, which changes nothing that goes through it.

    SD 2.x's files have 24 blocks and use 23; folders store 23. Programs that read the files count on the 24th.
    """
    old, new = f"text.0.blocks.{layers - 1}.", f"text.0.blocks.{layers}."
    return {rename(name, {old: new}): torch.zeros_like(t) for name, t in tensors.items() if name.startswith(old)}


POSITIONS = "embeddings.position_ids"
