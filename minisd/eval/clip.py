"""Both towers of our own CLIP, kept to score pictures by.

In: a run folder whose clip stage is done. Out: clip.safetensors (fp16) and tokenizer/ in a folder; and the way back.
The score is 2.5 max(cos, 0) of a picture and its prompt: Hessel et al. 2021, https://arxiv.org/abs/2104.08718. This CLIP
has seen the world alone, so the figures say nothing beside those of OpenAI's.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import TextConfig, check
from ..files import atomic
from ..nn.clip import CLIPText
from ..text.tokenizer import Tokenizer
from ..train.checkpoint import trained
from ..train.clip import ImageTower
from ..train.recipe import ClipRecipe

CLIP = "clip.safetensors"
WEIGHT = 2.5


@dataclass(frozen=True)
class Clip:
    """A text tower and an image tower with one space."""

    text: CLIPText
    image: ImageTower
    tokenizer: Tokenizer
    size: int

    @torch.no_grad()
    def pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (b, 3, H, W) in [-1, 1] of any size -> unit vectors (b, p)."""
        pictures = pictures.to(self.image.projection.weight.device)
        if pictures.shape[-1] != self.size or pictures.shape[-2] != self.size:
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.normalize(self.image(pictures), dim=-1)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> unit vectors (b, p)."""
        ids = self.tokenizer(list(texts)).to(self.image.projection.weight.device)
        return F.normalize(self.text(ids, pooled=True)[1], dim=-1)


def clip_scores(texts: Tensor, pictures: Tensor) -> Tensor:
    """The score (b,) of each pair of unit vectors (b, p): 0 to 2.5."""
    return WEIGHT * (texts * pictures).sum(-1).clamp(min=0)


def write_clip(run: Path, config: TextConfig, recipe: ClipRecipe, size: int, folder: Path) -> None:
    """Keep the towers of a run folder's clip stage; nothing where it has no image tower (a model trained on from its
    weights alone).

    Raises:
        OSError: they cannot be written.
    """
    tensors = {k: v for part in ("text.", "image.") for k, v in with_part(run, part)}
    if not any(name.startswith("image.") for name in tensors):
        return
    tower = {"width": recipe.width, "layers": recipe.layers, "heads": recipe.heads, "size": size}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    metadata = {"text": json.dumps(asdict(config)), "image": json.dumps(tower)}
    with atomic(folder / CLIP) as temporary:
        save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def with_part(run: Path, part: str) -> list[tuple[str, Tensor]]:
    """The averaged weights of one tower, under its own name."""
    return [(part + name, tensor) for name, tensor in trained(run / CLIP, part)]


def load_clip(folder: Path, device: torch.device | str) -> Clip | None:
    """The towers of a folder in fp32, or None where there are none.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / CLIP
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
        check("text" in told and "image" in told, f"{path} holds no towers to score by: minisd train export writes it")
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    config, tower = TextConfig(**json.loads(told["text"])), json.loads(told["image"])
    text, image = CLIPText(config), ImageTower(**tower, projection=config.projection)
    for name, module in (("text.", text), ("image.", image)):
        module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
        module.to(device).eval().requires_grad_(False)
    return Clip(text, image, Tokenizer(folder / "tokenizer", config), tower["size"])
