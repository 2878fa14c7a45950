"""The CLIP stage: a text tower and an image tower learn to find each other's match in a batch.

In: pictures and captions of the world. Out: the text tower that conditions the UNet (the image tower only teaches).
Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL.Image import Image
from torch import Tensor, nn

from ..config import TextConfig
from ..nn.clip import Block, CLIPText
from ..text.tokenizer import Tokenizer
from ..world.scenes import Scene, recipe
from .data import batch_indices, captions, pictures, scenes
from .recipe import ClipRecipe


class ImageTower(nn.Module):
    """Three strided convolutions, a few transformer blocks over the 8x8 map, a mean, a projection."""

    def __init__(self, width: int, layers: int, heads: int, projection: int, size: int) -> None:
        super().__init__()
        widths = (3, width // 4, width // 2, width)
        self.stem = nn.Sequential()
        for before, after in pairwise(widths):
            self.stem.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.stem.append(nn.GELU())
        block = TextConfig(width=width, heads=heads, hidden=4 * width, activation="gelu")
        self.position = nn.Parameter(0.02 * torch.randn((size // 8) ** 2, width))
        self.blocks = nn.Sequential(*(Block(block, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, projection, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (b, 3, H, W) in [-1, 1] -> (b, p)."""
        x = rearrange(self.stem(x), "b c h w -> b (h w) c") + self.position
        return self.projection(self.norm(self.blocks(x)).mean(dim=1))


class ClipStage:
    """Contrastive training on an endless stream of scenes."""

    name = "clip"

    def __init__(self, recipe: ClipRecipe, config: TextConfig, tokenizer: Tokenizer, size: int) -> None:
        self.recipe, self.size, self.tokenizer = recipe, size, tokenizer
        torch.manual_seed(recipe.seed)
        text = initialise(CLIPText(config))
        image = ImageTower(recipe.width, recipe.layers, recipe.heads, config.projection, size)
        self.module = nn.ModuleDict({"text": text, "image": image})
        self.module.register_parameter("log_scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))

    def groups(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "scale": 1.0}]

    def loss(self, step: int, part: slice) -> tuple[Tensor, dict[str, float]]:
        if part != slice(0, self.recipe.batch):  # the others' pictures are what a caption is told apart from
            raise ValueError("the clip stage needs its whole batch in one process: start it without torchrun")
        logits, same = self.match(batch_indices(step, self.recipe.batch), "train", step)
        target = same / same.sum(dim=1, keepdim=True)  # scenes told alike are matches of each other
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return loss, {"accuracy": hit.item()}

    def match(self, indices: range, split: str, step: int) -> tuple[Tensor, Tensor]:
        """Scaled similarities of every caption with every picture, and where the truth is the same."""
        seed, device = self.recipe.seed, next(self.module.parameters()).device
        batch = scenes(seed, indices, split)
        ids = self.tokenizer(captions(batch, seed, step)).to(device)
        images = pictures(seed, indices, self.size, split).to(device)
        _, text = self.module["text"](ids, pooled=True)
        image = self.module["image"](images)
        scale = self.module.log_scale.clamp(max=math.log(100)).exp()
        logits = scale * F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
        return logits, told_alike(batch).to(device)

    def grid(self) -> Image:
        """Caption (rows) against picture (columns) of 64 unseen scenes: a bright diagonal is what one hopes for."""
        logits, same = self.match(range(64), "test", 0)
        accuracy = same.gather(1, logits.argmax(1, keepdim=True)).mean().item()
        print(f"clip: unseen scenes found by their caption among 64: {accuracy:.3f}")
        gray = (255 * logits.softmax(dim=1)).clamp(0, 255).byte().cpu().numpy()
        from PIL import Image as Pictures

        return Pictures.fromarray(gray).resize((512, 512), Pictures.Resampling.NEAREST)


def told_alike(batch: list[Scene]) -> Tensor:
    """1 where two scenes have the same factors (b, b)."""
    recipes = [recipe(scene) for scene in batch]
    return torch.tensor([[float(a == b) for b in recipes] for a in recipes])


def initialise(text: CLIPText) -> CLIPText:
    """CLIP's own scales: 0.02 for tokens, 0.01 for positions, residual outputs smaller with depth."""
    width, layers = text.config.width, text.config.layers
    nn.init.normal_(text.token_embedding.weight, std=0.02)
    nn.init.normal_(text.position_embedding.weight, std=0.01)
    for block in text.blocks:
        for linear in (block.attention.to_out, block.fc2):
            nn.init.normal_(linear.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    return text
