"""Textual inversion: new words for the text encoder, learned as vectors.

In: a file of n vectors (n, e), or of n for each tower (SDXL). Out: the model, whose token embedding has n rows more;
a trigger word in a prompt becomes their n ids. Nothing else of the model changes, and its config stays as it was.
Gal et al. 2022, https://arxiv.org/abs/2208.01618
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import Config, check
from ..model import Model
from .detect import known_as
from .keys import first
from .tensors import read_header, read_tensors

log = logging.getLogger("minisd")


def add_embedding(model: Model, path: str | Path, trigger: str | None = None) -> str:
    """Add a textual inversion embedding to a model and log its trigger word.

    Args:
        path: .safetensors, .pt or .bin, as AUTOMATIC1111 or diffusers writes them.
        trigger: the word that calls it, upper or lower case alike; None: the name inside the file, else the file's.

    Returns:
        The trigger word.

    Raises:
        ValueError: the file is none or damaged, it is for another family, or the trigger word is taken.
    """
    path = Path(path)
    name, towers = read(path, model.config)
    trigger = (trigger or name or path.stem).strip()
    check(0 < len(trigger) <= MAX_TRIGGER and trigger.isprintable(), f"{path}: {trigger[:60]!r} is no trigger word")
    for tokenizer in model.tokenizers:
        tokenizer.check_trigger(trigger)
    for tower, tokenizer, vectors in zip(model.text, model.tokenizers, towers, strict=True):
        table = tower.token_embedding.weight.detach()
        ids = range(len(table), len(table) + len(vectors))
        longer = torch.cat([table, vectors.to(table.device, table.dtype)])
        tower.token_embedding = nn.Embedding.from_pretrained(longer)
        tokenizer.add_trigger(trigger, ids)
    count = f"{len(towers[0])} vector{'s' * (len(towers[0]) > 1)}"
    log.info("%s: %s, called by the word %s", path, count, trigger)
    known = model.origin.get("embeddings")
    model.origin["embeddings"] = f"{known}, {trigger}" if known else trigger  # goes into the recipe of every picture
    return trigger


def read(path: Path, config: Config) -> tuple[str, list[Tensor]]:
    """The name inside a file ("": none) and the vectors (n, e) of each tower.

    Raises:
        ValueError: as `add_embedding`.
    """
    name, found = layout(path, read_tensors(path), read_header(path).metadata)
    vectors = [t[None] if t.ndim == 1 else t for t in found]
    ok = all(t.ndim == 2 and 0 not in t.shape and t.is_floating_point() for t in vectors)
    check(ok, f"{path} does not hold vectors but {' and '.join(str(tuple(t.shape)) for t in found)}")
    check(all(torch.isfinite(t.float()).all() for t in vectors), f"{path} is damaged: it holds NaN or infinity")
    theirs, ours = [t.shape[1] for t in vectors], [tower.width for tower in config.text]
    wide = [" and ".join(map(str, widths)) for widths in (theirs, ours)]
    towers = "text encoder is" if len(ours) == 1 else "text encoders are"
    check(
        theirs == ours,
        f"{path}: this embedding is for {family(theirs)} ({wide[0]}), the model's {towers} {wide[1]} wide",
    )
    check(
        len({len(t) for t in vectors}) == 1,
        f"{path} holds {len(vectors[0])} vectors for one tower, {len(vectors[-1])} for the other",
    )
    room = config.text[0].max_length - 2
    check(len(vectors[0]) <= room, f"{path} holds {len(vectors[0])} vectors, a prompt has room for {room}")
    return name, vectors


def layout(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, list[Tensor]]:
    """The name and the vectors, wherever the file keeps them."""
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("string_to_token.")}
    if found.keys() == set(SDXL):
        return metadata.get("name", ""), [found[name] for name in SDXL]
    kind = "is not a textual inversion embedding" if len(found) > 1 else "holds no vectors"
    check(len(found) == 1, f"{path} {kind}: it holds {first(list(tensors))}")
    name, tensor = next(iter(found.items()))
    if name == "emb_params" or name.startswith("string_to_param."):
        name = metadata.get("name", "")
    return name, [tensor]


def family(widths: list[int]) -> str:
    """What an embedding of these widths was made for."""
    if len(widths) > 1:
        return "SDXL"
    return (known_as(widths[0]) if widths[0] < 1280 else "").strip(" ()") or "another model"


MAX_TRIGGER = 100  # letters
SDXL = ("clip_l", "clip_g")  # in the order of the towers
