"""The CLIP stage: a text tower and an image tower learn to find each other's match in a batch.

In: pictures and captions. Out: the text tower that conditions the UNet. The image tower only teaches,
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

from ..config import TextConfig
from ..image import grid, to_pil
from ..nn.attention import Attention
from ..nn.blocks import TransformerBlock
from ..nn.clip import Block, CLIPText
from ..text.tokenizer import Tokenizer
from ..world.captions import captions as phrasings
from ..world.scenes import HELD_OUT, INVERSE, SHAPES, Scene, recipe, reserved
from .data import Examples, World, batch_indices, captions
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
    """Contrastive training on an endless stream of examples."""

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

    def loss(self, step: int, part: slice) -> tuple[Tensor, dict[str, float]]:
        if part != slice(0, self.recipe.batch):  # the others' pictures are what a caption is told apart from
            raise ValueError("the clip stage needs its whole batch in one process: start it without torchrun")
        indices, b = batch_indices(step, self.recipe.batch), self.recipe.batch
        images = self.examples.pictures(indices).to(self.module.log_scale.device)
        if step < self.recipe.sketch_steps:
            context, _ = self.encode(self.examples.captions(indices, step))
            loss = self.sketch_loss(context, images)
            return loss, {"sketch": loss.item()}
        logits, same, context = self.match(images, *self.told(indices, step))
        # A picture finds its caption among all, lies included; a caption finds its picture.
        find_caption = F.cross_entropy(logits.T, (same / same.sum(dim=0)).T)
        find_picture = F.cross_entropy(logits[:b], same[:b] / same[:b].sum(dim=1, keepdim=True))
        sketch = self.sketch_loss(context[:b], images)
        hit = same.T.gather(1, logits.T.argmax(1, keepdim=True)).mean()
        loss = (find_caption + find_picture) / 2 + self.recipe.sketch * sketch
        return loss, {"accuracy": hit.item(), "sketch": sketch.item()}

    def told(self, indices: range, step: int, split: str = "train") -> tuple[list[str], Tensor]:
        """A caption of each picture, and where (told, b) a caption (rows) tells what a picture (columns) shows.

        Of the world's pictures come up to `lies` near misses of each after them: in a batch of random scenes colours
        and shapes are enough to find a match (Yuksekgonul et al. 2022, https://arxiv.org/abs/2210.01936). Of others
        no more is known than that equal captions tell the same.
        """
        if not isinstance(self.examples, World):
            texts = self.examples.captions(indices, step, split)
            return texts, torch.tensor([[float(a == b) for b in texts] for a in texts])
        batch = self.examples.scenes(indices, split)
        if split == "test":
            return self.examples.captions(indices, step, split), told_alike(batch, batch)
        rng = random.Random(f"lies/{self.recipe.seed}/{step}")
        told = batch + [lie for scene in batch for lie in near_misses(scene, rng)[: self.recipe.lies]]
        return captions(told, self.recipe.seed, step), told_alike(told, batch)

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Contexts (b, l, e) and pooled vectors (b, p) of captions."""
        return self.module["text"](self.tokenizer(texts).to(self.module.log_scale.device), pooled=True)

    def sketch_loss(self, context: Tensor, images: Tensor) -> Tensor:
        """Mean squared error of the picture told by a context (b, l, e), at 16x16."""
        return F.mse_loss(self.module["sketcher"](context).float(), F.adaptive_avg_pool2d(images, 16))

    def match(self, images: Tensor, texts: list[str], same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled similarities of every caption (rows) with every picture (columns), `same` beside them, and the
        captions' contexts."""
        context, text = self.encode(texts)
        image = self.module["image"](images)
        scale = self.module.log_scale.clamp(max=math.log(100)).exp()
        logits = scale * F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
        return logits, same.to(images.device), context

    def grid(self) -> Image:
        """Pictures of 32 unseen examples (above) and what the sketcher makes of their captions (below)."""
        count = min(256, self.examples.distinct("test") or 256)
        images = self.examples.pictures(range(count), "test").to(self.module.log_scale.device)
        logits, same, context = self.match(images, *self.told(range(count), 0, "test"))
        accuracy = same.gather(1, logits.argmax(1, keepdim=True)).mean().item()
        print(f"clip: {count} unseen pictures found by their caption {accuracy:.3f}")
        if isinstance(self.examples, World):
            self.compare_relations(images, self.examples.scenes(range(count), "test"))
        shown = images[:32]
        sketches = F.interpolate(self.module["sketcher"](context[:32]).float(), size=self.examples.size)
        rows = [x for i in (0, 16) for x in (shown[i : i + 16], sketches[i : i + 16])]
        return grid(to_pil(torch.cat(rows)), columns=min(16, len(shown)))

    def compare_relations(self, images: Tensor, batch: list[Scene]) -> None:
        """Print how far sketches of two objects are off, told right and told with the relation turned round."""
        pairs = [i for i, scene in enumerate(batch) if scene.relation]
        turned = [replace(batch[i], relation=INVERSE[batch[i].relation]) for i in pairs]
        told = ([phrasings(scene)[0] for scene in some] for some in ([batch[i] for i in pairs], turned))
        contexts = [self.encode(texts)[0] for texts in told]
        right, other = (self.sketch_loss(c, images[pairs]).item() for c in contexts)
        print(f"clip: sketches of two objects {right:.4f} off, with the relation turned round {other:.4f}")


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
