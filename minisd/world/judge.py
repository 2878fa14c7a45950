"""A judge that reads a picture back into words by a trained network: what the oracle's rules cannot, emoji above all.

In: pictures (b, 3, H, W) in [-1, 1]. Out: for each a `Reading`, as the oracle gives it.
Every cell of a coarse map says whether the centre of an object lies in it, where in it, how large the object is, and
what it is: objects as points, Zhou et al. 2019, https://arxiv.org/abs/1904.07850. What resembles nothing is called
"unclear": the network has a class of its own for that, and an answer that it is not sure of counts as that too.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.config import check
from minisd.files import atomic
from minisd.world.oracle import LARGE, UNCLEAR, Reading
from minisd.world.scenes import Object
from minisd.world.words import COLOURS, PATTERNS, SHAPES

JUDGE = "judge.safetensors"  # in a folder of its own
NATURAL = "natural"  # the hue of an emoji as it is
HUES = (*COLOURS, NATURAL)
EXTENT = 0.34  # of the width: what an extent is told relative to
SEEN = 0.5  # of certainty that there is an object
SURE = 0.6  # of certainty of a word: below it is unclear
RIM = 4  # rows of the map that the ground is read from: a gradient runs from top to bottom
GROUPS = 8


@dataclass(frozen=True)
class Words:
    """What a judge can say, and the size of the network that says it."""

    nouns: tuple[str, ...]  # emoji; shapes it knows besides
    own: dict[str, str]  # the colour words of emoji as they are
    grounds: tuple[str, ...]  # by name
    size: int  # pixels
    widths: tuple[int, ...]  # channels at 1/2, 1/4, 1/8 ... of the size; the last but one is read
    feature: int  # channels that the answers are read from

    @property
    def known(self) -> tuple[tuple[str, ...], ...]:
        """What is said of an object: nouns, hues, patterns."""
        return (*SHAPES, *self.nouns), HUES, PATTERNS


class Answers(NamedTuple):
    """What the network says, before it is put in words. Words are logits, the last one is "unclear"."""

    heat: Tensor  # (b, h, w) logits: the centre of an object lies here
    place: Tensor  # (b, 3, h, w): x and y from the middle of the cell, in cells; log of the extent
    noun: Tensor  # (b, things + 1, h, w)
    hue: Tensor  # (b, hues + 1, h, w)
    pattern: Tensor  # (b, patterns + 1, h, w)
    ground: Tensor  # (b, grounds + 1)
    features: Tensor  # (b, f): what pictures are compared by


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Judge(nn.Module):
    """Maps of half the size each, two blocks on each; the smallest one is laid over the one before, and read."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self.words = words
        widths, feature = words.widths, words.feature
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), Block(width), Block(width))
            for before, width in pairwise((3, *widths))
        )
        self.up = nn.Sequential(nn.Conv2d(widths[-1], 4 * widths[-2], 1), nn.PixelShuffle(2))
        self.join = nn.Sequential(
            nn.GroupNorm(GROUPS, 2 * widths[-2]),
            nn.SiLU(),
            nn.Conv2d(2 * widths[-2], feature, 3, padding=1),
            nn.GroupNorm(GROUPS, feature),
            nn.SiLU(),
        )
        self.counts = (1, 3, *(len(known) + 1 for known in words.known))
        self.answers = nn.Conv2d(feature, sum(self.counts), 1)
        self.ground = nn.Linear(RIM * widths[-1], len(words.grounds) + 1)
        with torch.no_grad():
            self.answers.bias[0] = -3.0  # most cells hold no centre

    @property
    def cells(self) -> int:
        """The side of the map that the answers lie on."""
        return self.words.size // 2 ** (len(self.words.widths) - 1)

    def forward(self, pictures: Tensor) -> Answers:
        """Pictures (b, 3, size, size) in [-1, 1] -> answers."""
        maps = [pictures]
        for level in self.levels:
            maps.append(level(maps[-1]))
        x = self.join(torch.cat([maps[-2], self.up(maps[-1])], dim=1))
        heat, *rest = self.answers(x).float().split(self.counts, dim=1)
        rows = F.adaptive_avg_pool2d(maps[-1], (RIM, 1))
        ground = self.ground(rearrange(rows, "b c h w -> b (c h w)"))
        return Answers(heat.squeeze(1), *rest, ground.float(), x.float().mean(dim=(2, 3)))

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 64) -> list[Reading]:
        """Reads pictures (b, 3, H, W) of any one size, in [-1, 1]."""
        parts = (self(self.fitted(part)) for part in pictures.split(batch))
        return [reading for answers in parts for reading in in_words(answers, self.words)]

    @torch.no_grad()
    def features(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """What pictures (b, 3, H, W) are compared by, (b, f)."""
        return torch.cat([self(self.fitted(part)).features for part in pictures.split(batch)])

    def fitted(self, pictures: Tensor) -> Tensor:
        """Pictures of the size, on the device and of the dtype that the network works on."""
        weight = self.answers.weight
        return squared(pictures.to(weight.device, weight.dtype).clamp(-1, 1), self.words.size)


def squared(pictures: Tensor, size: int) -> Tensor:
    """Pictures (b, 3, H, W) in [-1, 1] of any size, made to fit a square of so many pixels."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures.float(), (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def in_words(answers: Answers, words: Words) -> list[Reading]:
    """One reading for each picture; the clearest objects come first."""
    heat = answers.heat.sigmoid()
    peaks = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat > SEEN)
    side = heat.shape[-1]
    # Neighbours of a centre know what it is as well as the cell itself: they answer together.
    noun, hue, pattern = (
        F.avg_pool2d(logits.softmax(1), 3, stride=1, padding=1, count_include_pad=False)
        for logits in (answers.noun, answers.hue, answers.pattern)
    )
    grounds = answers.ground.softmax(-1)
    readings = []
    for k in range(len(heat)):
        rows, columns = peaks[k].nonzero(as_tuple=True)
        order = heat[k, rows, columns].argsort(descending=True)
        objects = []
        for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            dx, dy, size = answers.place[k, :, i, j].tolist()
            said = [name(p[k, :, i, j], known) for p, known in zip((noun, hue, pattern), words.known, strict=True)]
            extent = EXTENT * math.exp(size)
            objects.append(thing(words, *said, (j + 0.5 + dx) / side, (i + 0.5 + dy) / side, extent))
        readings.append(Reading(name(grounds[k], words.grounds), tuple(objects)))
    return readings


def thing(words: Words, noun: str, hue: str, pattern: str, x: float, y: float, extent: float) -> Object:
    """An object as a scene has it: an emoji as it is has the colour word that it deserves."""
    own = hue == NATURAL or (hue != UNCLEAR and words.own.get(noun) == hue)
    colour = words.own.get(noun) if own else hue
    return Object(noun, colour, "large" if extent > LARGE else "small", x, y, extent, pattern, own)


def name(certainty: Tensor, known: Sequence[str]) -> str:
    """The word of the greatest certainty (k + 1,), "unclear" being the last, or that where none is sure."""
    best = int(certainty.argmax())
    return known[best] if best < len(known) and certainty[best] >= SURE else UNCLEAR


def save(path: Path, judge: Judge, told: dict[str, Any], real: Tensor) -> None:
    """Write a judge in fp16, with plain data about it and the features (n, f) of real pictures.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {f"judge.{name}": tensor for name, tensor in judge.state_dict().items()} | {"real": real}
    # One key: of several the order in the file would be another each time.
    metadata = {"judge": json.dumps({"words": asdict(judge.words), "told": told})}
    with atomic(path) as temporary:
        save_file({name: tensor.half().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load(path: Path, device: torch.device | str = "cpu") -> tuple[Judge, dict[str, Any], Tensor]:
    """A judge in fp32, ready to read; what stands beside it; the features of real pictures.

    Raises:
        ValueError: the file is not one of a judge.
        OSError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        check("judge" in metadata, f"{path} is no judge: make one with minisd train judge")
        tensors = {key.removeprefix("judge."): file.get_tensor(key).float() for key in file.keys()}
    data = json.loads(metadata["judge"])
    judge = Judge(Words(**{key: tuple(v) if isinstance(v, list) else v for key, v in data["words"].items()}))
    real = tensors.pop("real")
    judge.load_state_dict(tensors)
    return judge.to(device).eval().requires_grad_(False), data["told"], real
