"""The judge's stage: a network learns to find and name what the world draws, apart from the model that it will mark.

In: a world. Out: a `Judge`.
Generated pictures are softer than drawn ones, a little bent and of slightly other colours, so the judge learns on such
pictures. It learns too what is nothing: things pieced together from two others, and things blurred beyond telling, are
"unclear". The loss: objects as points, Zhou et al. 2019, https://arxiv.org/abs/1904.07850
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from PIL.Image import Image
from torch import Tensor

from ..image import grid, to_pil
from ..nn.vae import VAE
from ..world.accuracy import accuracy
from ..world.draw import Layout
from ..world.judge import EXTENT, JUDGE, NATURAL, Answers, Judge, Words, save
from ..world.known import known
from ..world.scenes import Scene
from ..world.world import World
from .data import batch_indices
from .loop import generator
from .recipe import JudgeRecipe
from .wear import nothing, worn

HELD_OUT = 4  # one picture in so many has a pair of noun and colour that the model is never shown
MUDDLED = 0.12  # of the objects are pieced together from two
MEASURED = 4096  # unseen pictures that a trained judge is measured on
LOT = 64  # of them at a time
PATCHES = (5, 11)  # across a picture, of which a muddle takes each from the one or the other
LOST = 0.04  # of the pictures are blurred beyond telling
EMPTY = 0.04  # of the pictures show nothing but patches
SMALLEST = 0.68  # of what the world would have it, a thing may be
NEAR = 1.6  # cells around a centre that learn what the object is
SPREAD = 0.7  # cells: how far around a centre a cell is excused for seeing it


class Truth(NamedTuple):
    """What is where in some pictures: four slots each. Words are numbers, and the number behind the last: "unclear"."""

    there: Tensor  # (b, 4) bool
    box: Tensor  # (b, 4, 3): centre and extent, of the width
    words: Tensor  # (b, 4, 3): noun, hue, pattern
    ground: Tensor  # (b,)

    def of(self, part: slice) -> "Truth":
        """The truth about some of the pictures."""
        return Truth(*(x[part] for x in self))


class JudgeStage:
    """Finding and naming on an endless stream of scenes."""

    name = "judge"

    def __init__(self, recipe: JudgeRecipe, world: World, vae: VAE | None = None) -> None:
        """With a `vae` an eighth of the pictures go through it, there and back."""
        self.recipe, self.world, self.vae = recipe, world, vae
        torch.manual_seed(recipe.seed)
        self.words = words_of(world, recipe)
        self.module = Judge(self.words)
        known = [{word: i for i, word in enumerate(words)} for words in self.words.known]
        looks = [(noun, hue or NATURAL, pattern) for noun, hue, pattern in world.sprites.looks]
        self.said = torch.tensor([[k[word] for k, word in zip(known, look, strict=True)] for look in looks])  # (s, 3)
        self.unclear = torch.tensor([len(words) for words in self.words.known])
        self.ground = {ground: i for i, ground in enumerate(self.words.grounds)}

    def groups(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "scale": 1.0}]

    def prepare(self, step: int, part: slice) -> tuple[Tensor, Truth]:
        """Pictures (b, 3, H, W) as a model might draw them, and the truth about them."""
        draw, indices = generator(self.recipe.seed, step), batch_indices(step, self.recipe.batch)
        # A judge knows the pairs too that the model is never shown: they have to be told when they are drawn.
        scenes = [self.world.scene(i, "train" if i % HELD_OUT else "held_out") for i in indices]
        plan = resized(self.world.painter.layout(scenes), draw)
        second, patches = self.muddle(plan, draw)
        pictures = torch.lerp(self.world.painter(plan), self.world.painter(second), patches.to(self.world.device))
        chance = torch.rand(len(scenes), generator=draw)
        lost, empty = chance < LOST, chance > 1 - EMPTY
        pictures[empty] = nothing(int(empty.sum()), self.world.size, draw).to(pictures.device)
        pictures = worn(pictures, lost, draw)[part]
        if self.vae is not None:
            pictures = self.through_vae(pictures)
        return pictures, self.truth(scenes, plan, second, lost, empty).of(part)

    def muddle(self, plan: Layout, draw: torch.Generator) -> tuple[Layout, Tensor]:
        """The same scenes with some things drawn otherwise, every other one of them only in another hue or pattern; and
        the patches (b, 1, H, W) of the pictures that are to be taken from there."""
        there, size = plan.sprite >= 0, (self.world.size, self.world.size)
        chosen = (torch.rand(there.shape, generator=draw) < MUDDLED) & there
        alike = torch.rand(there.shape, generator=draw) < 0.5
        u = torch.rand(there.shape, generator=draw)
        nouns = self.said[:, 0].contiguous()
        first = torch.searchsorted(nouns, nouns)  # sprites of one noun lie together
        count = torch.searchsorted(nouns, nouns, right=True) - first
        sprite = plan.sprite.clamp(min=0)
        other = torch.where(alike, first[sprite] + (u * count[sprite]).long(), (u * len(nouns)).long())
        side = PATCHES[int(torch.randint(len(PATCHES), (), generator=draw))]
        patches = (torch.rand(len(there), 1, side, side, generator=draw) < 0.5).float()
        second = Layout(plan.ground, torch.where(chosen, other, plan.sprite), plan.size, plan.box)
        return second, F.interpolate(patches, size)

    def truth(self, scenes: Sequence[Scene], plan: Layout, second: Layout, lost: Tensor, empty: Tensor) -> Truth:
        """What can be told: nothing in which two drawings differ, of what is lost its hue alone, and where it is empty
        that nothing is there."""
        said, other = (self.said[p.sprite.clamp(min=0)] for p in (plan, second))
        said = torch.where(said == other, said, self.unclear)
        said[lost] = torch.where(torch.tensor([True, False, True]), self.unclear, said[lost])
        ground = torch.tensor([self.ground[scene.background] for scene in scenes])
        ground[empty] = len(self.ground)
        return Truth((plan.sprite >= 0) & ~empty[:, None], plan.box, said, ground)

    def through_vae(self, pictures: Tensor) -> Tensor:
        """The first eighth of some pictures as the VAE hands it back."""
        n = -(-len(pictures) // 8)
        with torch.no_grad():
            back = self.vae.decode(self.vae.encode(pictures[:n])[0]).float().clamp(-1, 1)
        return torch.cat([back, pictures[n:]])

    def loss(self, pictures: Tensor, truth: Truth) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.module.answers.weight.device
        parts = losses(self.module(pictures.to(device)), Truth(*(x.to(device) for x in truth)))
        return sum(parts.values()), {name: part.detach() for name, part in parts.items()}

    def grid(self) -> Image:
        """Unseen pictures above, the centres that are seen in them below; prints how much is told right."""
        scenes = unseen(self.world, 256)
        pictures = self.world.draw(scenes)
        print(f"judge: {accuracy(self.module.read(pictures), scenes).line()}")
        shown = self.module.fitted(pictures[:32])
        heat = repeat(self.module(shown).heat.sigmoid() * 2 - 1, "b h w -> b c h w", c=3)
        rows = torch.stack([shown, F.interpolate(heat, shown.shape[-2:])])
        return grid(to_pil(rearrange(rows, "k (r b) c h w -> (r k b) c h w", b=16)), columns=16)


def resized(plan: Layout, draw: torch.Generator) -> Layout:
    """The same scenes with every other thing smaller than the world has it: a model's come in between."""
    chosen, u = torch.rand(2, *plan.sprite.shape, generator=draw)
    scale = torch.where(chosen < 0.5, SMALLEST + (1 - SMALLEST) * u, 1.0)
    return replace(plan, box=plan.box * torch.stack([torch.ones_like(scale), torch.ones_like(scale), scale], -1))


def unseen(world: World, count: int) -> list[Scene]:
    """Scenes that no judge and no model of this world has learnt from: by turns of the test split and held-out ones."""
    return [world.scene(2**32 + i, ("test", "held_out")[i % 2]) for i in range(count)]


def words_of(world: World, recipe: JudgeRecipe) -> Words:
    """What a judge of a world has to know."""
    nouns, own = tuple(world.sprites.nouns), dict(world.sprites.own)
    return Words(nouns, own, world.grounds, world.size, recipe.widths, recipe.feature)


def write_judge(stage: JudgeStage, weights: Mapping[str, Tensor], folder: Path, count: int = MEASURED) -> None:
    """Measure a trained judge on pictures it never saw, and write it with that measure, and with its features of those
    of the test split, which a model's can be compared with; prints what was measured.

    Args:
        weights: the averaged ones, in which it is written; it is measured as it is written, in fp16.

    Raises:
        OSError: it cannot be written.
    """
    stage.module.load_state_dict({name: tensor.half().float() for name, tensor in weights.items()})
    judge, world = stage.module.eval(), stage.world
    readings, features, scenes = [], [], unseen(world, count)
    for i in range(0, count, LOT):
        pictures = world.draw(scenes[i : i + LOT])
        readings += judge.read(pictures)
        features.append(judge.features(pictures[::2]))
    seen = accuracy(readings, scenes)
    told = {"world": known(world), "recipe": asdict(world.recipe), "accuracy": asdict(seen)}
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / JUDGE, judge, told, torch.cat(features))
    print(f"judge: {seen.line()}")
    for drawn, read, count in seen.confused[:12]:
        print(f"judge: {drawn} was read as {read} {count} times")


def losses(answers: Answers, truth: Truth) -> dict[str, Tensor]:
    """Where objects are, and what they are: the mean over all cells near a centre."""
    side = answers.heat.shape[-1]
    axis = torch.arange(side, device=truth.box.device) + 0.5
    dx, dy = (
        truth.box[..., 0, None] * side - axis,
        truth.box[..., 1, None] * side - axis,
    )  # (b, 4, side): way to the centre
    dx, dy = repeat(dx, "b k w -> b k h w", h=side), repeat(dy, "b k h -> b k h w", w=side)
    there = truth.there[..., None, None]
    near = there & (dx.abs() < NEAR) & (dy.abs() < NEAR)  # (b, 4, h, w)
    n, k, i, j = near.nonzero(as_tuple=True)
    size = (truth.box[..., 2] / EXTENT).log()[n, k]
    place = torch.stack([dx[n, k, i, j], dy[n, k, i, j], size], dim=-1)
    told = truth.words[n, k].unbind(-1)
    said = {"noun": answers.noun, "hue": answers.hue, "pattern": answers.pattern}
    words = {name: F.cross_entropy(a[n, :, i, j], w) for (name, a), w in zip(said.items(), told, strict=True)}
    return {
        "heat": heat_loss(answers.heat, there, dx, dy),
        "place": 2 * F.smooth_l1_loss(answers.place[n, :, i, j], place, beta=0.1),
        **words,
        "ground": 0.5 * F.cross_entropy(answers.ground, truth.ground),
    }


def heat_loss(heat: Tensor, there: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """The paper's focal loss (1): a cell is the centre's, or it is none, but excused where it lies near to one."""
    centre = (there & (dx.abs() <= 0.5) & (dy.abs() <= 0.5)).any(1)
    excuse = reduce(there * (-(dx**2 + dy**2) / (2 * SPREAD**2)).exp(), "b k h w -> b h w", "max")
    p, log_p, log_not = heat.sigmoid(), F.logsigmoid(heat), F.logsigmoid(-heat)
    hit = (centre * (1 - p) ** 2 * log_p).sum()
    miss = (~centre * (1 - excuse) ** 4 * p**2 * log_not).sum()
    return -(hit + miss) / centre.sum().clamp(min=1)
