"""The CLIP stage: a text tower and an image tower learn to find each other's match in a batch.

In: pictures and captions of the world. Out: the text tower that conditions the UNet (the image tower only teaches).
Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

import math
import random
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL.Image import Image
from torch import Tensor, nn

from ..config import TextConfig
from ..nn.clip import Block, CLIPText
from ..text.tokenizer import Tokenizer
from ..world.scenes import HELD_OUT, INVERSE, SHAPES, Scene, recipe, reserved
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
        logits, same = self.match(batch_indices(step, self.recipe.batch), "train", step, self.recipe.lies)
        b = self.recipe.batch
        # A picture finds its caption among all, lies included; a caption finds its picture.
        find_caption = F.cross_entropy(logits.T, (same / same.sum(dim=0)).T)
        find_picture = F.cross_entropy(logits[:b], same[:b] / same[:b].sum(dim=1, keepdim=True))
        hit = same.T.gather(1, logits.T.argmax(1, keepdim=True)).mean()
        return (find_caption + find_picture) / 2, {"accuracy": hit.item()}

    def match(self, indices: range, split: str, step: int, lies: int) -> tuple[Tensor, Tensor]:
        """Scaled similarities of every caption (rows) with every picture (columns), and where the truth is the same.

        After the pictures' own captions come up to `lies` near misses of each. Without them a tower learns a bag of
        words: in a batch of random scenes colours and shapes are enough to find a match, and left and right, above
        and below become one (Yuksekgonul et al. 2022, https://arxiv.org/abs/2210.01936).
        """
        seed, device = self.recipe.seed, next(self.module.parameters()).device
        batch = scenes(seed, indices, split)
        rng = random.Random(f"lies/{seed}/{split}/{step}")
        told = batch + [lie for scene in batch for lie in near_misses(scene, rng)[:lies]]
        ids = self.tokenizer(captions(told, seed, step)).to(device)
        images = pictures(seed, indices, self.size, split).to(device)
        _, text = self.module["text"](ids, pooled=True)
        image = self.module["image"](images)
        scale = self.module.log_scale.clamp(max=math.log(100)).exp()
        logits = scale * F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
        return logits, told_alike(told, batch).to(device)

    def grid(self) -> Image:
        """Caption (rows) against picture (columns) of 64 unseen scenes: a bright diagonal is what one hopes for."""
        logits, same = self.match(range(64), "test", 0, lies=0)
        accuracy = same.gather(1, logits.argmax(1, keepdim=True)).mean().item()
        hard, true = self.match(range(64), "test", 0, lies=3)
        told_apart = true.T.gather(1, hard.T.argmax(1, keepdim=True)).mean().item()
        print(f"clip: 64 unseen scenes found by their caption {accuracy:.3f}, captions told from lies {told_apart:.3f}")
        gray = (255 * logits.softmax(dim=1)).clamp(0, 255).byte().cpu().numpy()
        from PIL import Image as Pictures

        return Pictures.fromarray(gray).resize((512, 512), Pictures.Resampling.NEAREST)


def told_alike(told: list[Scene], shown: list[Scene]) -> Tensor:
    """1 where what is told has the same factors as what is shown (told, shown)."""
    recipes = [recipe(scene) for scene in shown]
    return torch.tensor([[float(recipe(a) == b) for b in recipes] for a in told])


def near_misses(scene: Scene, rng: random.Random) -> list[Scene]:
    """Scenes that differ in one thing, in random order: the relation, one object's shape, whose colour or shape is
    whose. None of them is held out or reserved, so that no word of theirs is learnt here."""
    first, *rest = scene.objects
    others = [s for s in SHAPES if s != first.shape]
    found = [replace(scene, objects=(replace(first, shape=rng.choice(others)), *rest))]
    if rest:
        second = rest[0]
        found.append(replace(scene, relation=INVERSE[scene.relation]))
        for name in ("colour", "shape", "size"):
            swapped = (replace(first, **{name: getattr(second, name)}), replace(second, **{name: getattr(first, name)}))
            found.append(replace(scene, objects=swapped))
    rng.shuffle(found)
    allowed = [s for s in found if recipe(s) != recipe(scene) and not reserved(recipe(s))]
    return [s for s in allowed if not any((o.shape, o.colour) in HELD_OUT for o in s.objects)]


def initialise(text: CLIPText) -> CLIPText:
    """Residual outputs smaller with depth, as in CLIP. Tokens start far larger than CLIP's 0.02: over a few thousand
    steps tokens that small stay drowned in what the blocks add, and left and right come out as one vector."""
    width, layers = text.config.width, text.config.layers
    nn.init.normal_(text.token_embedding.weight, std=0.5)
    nn.init.normal_(text.position_embedding.weight, std=0.25)
    for block in text.blocks:
        for linear in (block.attention.to_out, block.fc2):
            nn.init.normal_(linear.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    return text
