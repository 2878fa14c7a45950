"""The CLIP stage: a text tower and an image tower learn to find each other's match in a batch.

In: pictures with captions. Out: the text tower that conditions the UNet. The image tower only teaches,
and so does a sketcher that has to lay out the picture from the text's context by cross-attention, as the UNet will.
Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

import math
import random
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TextConfig
from ..image import grid, to_pil
from ..nn.attention import Attention
from ..nn.blocks import TransformerBlock
from ..nn.clip import Block, CLIPText
from ..text.tokenizer import Tokenizer
from ..world.scenes import recipe as truth
from ..world.words import INVERSE
from ..world.world import World
from . import processes
from .data import Examples, batch_indices
from .loop import fast_core
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


class Sketcher(nn.Module):
    """What is where, from the text alone: 4x4 learned places ask the context, two blocks, 4x4 pixels a place.

    Pictures and texts can be matched by their words alone; a tower that only matches never works out which of two
    objects is on the left. A sketch needs it, and without pictures to look at it is cheap to learn.
    """

    def __init__(self, config: TextConfig, blocks: int = 2) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(16, config.width))
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads, config.width) for _ in range(blocks))
        self.norm = nn.LayerNorm(config.width)
        self.pixels = nn.Linear(config.width, 3 * 4 * 4)

    def forward(self, context: Tensor) -> Tensor:
        """Context (b, l, e) -> the picture it tells, (b, 3, 16, 16)."""
        x = repeat(self.places, "n e -> b n e", b=len(context))
        for block in self.blocks:
            x = block(x, block.cross_attention.key_value(context))
        return rearrange(self.pixels(self.norm(x)), "b (h w) (c p q) -> b c (h p) (w q)", h=4, p=4, q=4)


class ClipStage:
    """Contrastive training on an endless stream of scenes."""

    name = "clip"

    def __init__(self, recipe: ClipRecipe, config: TextConfig, tokenizer: Tokenizer, examples: Examples) -> None:
        self.recipe, self.examples, self.tokenizer = recipe, examples, tokenizer
        torch.manual_seed(recipe.seed)
        text = initialise(CLIPText(config))
        image = ImageTower(recipe.width, recipe.layers, recipe.heads, config.projection, examples.size)
        self.module = nn.ModuleDict({"text": text, "image": image, "sketcher": Sketcher(config)})
        for module in self.module.modules():
            if isinstance(module, Attention):
                module.core = fast_core()
        self.module.register_parameter("log_scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))

    def groups(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "scale": 1.0}]

    def prepare(self, step: int, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of this process: pictures (b, 3, H, W) and ids (b + lies, l) of what is told of them. Of all: what is told
        (rows) alike of what is shown (columns); None while the sketcher learns alone."""
        recipe, indices = self.recipe, batch_indices(step, self.recipe.batch)
        images = self.examples.pictures(indices[part]).to(self.module.log_scale.device)
        if step < recipe.sketch_steps:
            return images, self.tokenizer(self.examples.captions(indices[part], step)), None
        texts, truths = self.told(indices, step, recipe.lies)
        ids = self.tokenizer(texts[part] + processes.share(texts[recipe.batch :]))
        return images, ids, told_alike(truths, truths[: recipe.batch])

    def loss(self, images: Tensor, ids: Tensor, same: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        context, text = self.module["text"](ids.to(images.device), pooled=True)
        n, b = len(images), self.recipe.batch
        sketch = self.sketch_loss(context[:n], images)
        if same is None:
            return sketch, {"sketch": sketch.detach()}
        # Others' pictures and captions are what a match is told apart from: every process sees those of all.
        shown = processes.gather(self.module["image"](images))
        told = torch.cat([processes.gather(text[:n]), processes.gather(text[n:])])[: len(same)]
        logits, same = self.similar(told, shown), same.to(images.device)
        # A picture finds its caption among all, lies included; a caption finds its picture.
        find_caption = F.cross_entropy(logits.T, (same / same.sum(dim=0)).T)
        find_picture = F.cross_entropy(logits[:b], same[:b] / same[:b].sum(dim=1, keepdim=True))
        hit = same.T.gather(1, logits.T.argmax(1, keepdim=True)).mean()
        loss = (find_caption + find_picture) / 2 + self.recipe.sketch * sketch
        return loss, {"accuracy": hit, "sketch": sketch.detach()}

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Context (b, l, e) and pooled vector (b, p) of some captions."""
        return self.module["text"](self.tokenizer(texts).to(self.module.log_scale.device), pooled=True)

    def sketch_loss(self, context: Tensor, images: Tensor) -> Tensor:
        """Mean squared error of the picture told by a context (b, l, e), at 16x16."""
        return F.mse_loss(self.module["sketcher"](context).float(), F.adaptive_avg_pool2d(images, 16))

    def told(self, indices: range, step: int, lies: int, split: str = "train") -> tuple[list[str], list[str]]:
        """Captions of some examples and, for each, a text that is the same where they tell of the same thing.

        Where the examples are a world's, up to `lies` near misses of each follow: in a batch of random scenes colours
        and nouns are enough to find a match (Yuksekgonul et al. 2022, https://arxiv.org/abs/2210.01936).
        """
        world = self.examples
        texts = world.captions(indices, step, split)
        if not isinstance(world, World):
            return texts, texts
        rng = random.Random(f"lies/{self.recipe.seed}/{step}")
        scenes = world.scenes(indices, split)
        made = [(i, lie) for i, s in zip(indices, scenes, strict=True) for lie in world.near_misses(s, rng)[:lies]]
        texts += [world.caption(lie, i, step) for i, lie in made]
        return texts, [truth(scene) for scene in (*scenes, *(lie for _, lie in made))]

    def similar(self, told: Tensor, shown: Tensor) -> Tensor:
        """Scaled similarities of pooled texts (rows) and pictures (columns)."""
        scale = self.module.log_scale.clamp(max=math.log(100)).exp()
        return scale * F.normalize(told.float(), dim=-1) @ F.normalize(shown.float(), dim=-1).T

    def grid(self) -> Image:
        """Pictures of 32 unseen examples (above) and what the sketcher makes of their captions (below)."""
        unseen = range(256)
        images = self.examples.pictures(unseen, "test").to(self.module.log_scale.device)
        texts, truths = self.told(unseen, 0, lies=0, split="test")
        context, text = self.encode(texts)
        logits, same = self.similar(text, self.module["image"](images)), told_alike(truths, truths).to(images.device)
        accuracy = same.gather(1, logits.argmax(1, keepdim=True)).mean().item()
        tqdm.write(f"clip: 256 unseen pictures found by their caption {accuracy:.3f}{self.relations(images)}")
        sketches = F.interpolate(self.module["sketcher"](context[:32]).float(), size=self.examples.size)
        return grid(to_pil(torch.cat([images[:16], sketches[:16], images[16:32], sketches[16:]])), columns=16)

    def relations(self, images: Tensor) -> str:
        """How much worse the sketches of a world's unseen pairs are with the relation turned round, in words."""
        if not isinstance(self.examples, World):
            return ""
        scenes = self.examples.scenes(range(len(images)), "test")
        pairs = [i for i, scene in enumerate(scenes) if scene.relation]
        turned = [replace(scenes[i], relation=INVERSE[scenes[i].relation]) for i in pairs]
        errors = []
        for told in ([scenes[i] for i in pairs], turned):
            context, _ = self.encode([self.examples.caption(scene, i, 0) for i, scene in zip(pairs, told, strict=True)])
            errors.append(self.sketch_loss(context, images[pairs]).item())
        return f"; sketches of pairs {errors[0]:.4f} off, with the relation turned round {errors[1]:.4f}"


def told_alike(told: list[str], shown: list[str]) -> Tensor:
    """1 where what is told is what is shown (told, shown)."""
    numbers: dict[str, int] = {}
    rows, columns = (torch.tensor([numbers.setdefault(text, len(numbers)) for text in some]) for some in (told, shown))
    return (rows[:, None] == columns).float()


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
