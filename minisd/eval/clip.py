"""Both towers of our own CLIP, kept to score pictures by.

In: a folder with clip.safetensors and tokenizer/, as `minisd train export` writes them into RUN/judge. Out: a `Clip`.
The score is 2.5 max(cos, 0) of a picture and its prompt: Hessel et al. 2021, https://arxiv.org/abs/2104.08718. This
CLIP has seen the world alone, so the figures say nothing beside those of OpenAI's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ..config import TextConfig, check
from ..nn.clip import CLIPText
from ..text.tokenizer import Tokenizer
from ..train.clip import ImageTower
from ..world.judge import squared

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
        pictures = squared(pictures.to(self.image.projection.weight.device), self.size)
        return F.normalize(self.image(pictures), dim=-1)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> unit vectors (b, p)."""
        ids = self.tokenizer(list(texts)).to(self.image.projection.weight.device)
        return F.normalize(self.text(ids, pooled=True)[1], dim=-1)


def clip_scores(texts: Tensor, pictures: Tensor) -> Tensor:
    """The score (b,) of each pair of unit vectors (b, p): 0 to 2.5."""
    return WEIGHT * (texts * pictures).sum(-1).clamp(min=0)


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
