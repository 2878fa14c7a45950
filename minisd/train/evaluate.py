"""How well does a model draw what it is told? Prompts it never saw, read back by the world's oracle.

In: a model and a number of prompts. Out: for each category how many pictures are right, with 95 % intervals, beside
the same table for real renders of the same scenes: the ceiling that the oracle's own eyesight allows.
Wilson 1927 (the interval), https://doi.org/10.1080/01621459.1927.10502953
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from ..model import Model
from ..pipeline import generate
from ..world.captions import captions
from ..world.draw import render
from ..world.oracle import judge, read
from ..world.scenes import Scene, sample_scene

# name -> (split of the world, number of objects)
CATEGORIES = {
    "one object": ("test", 1),
    "two objects": ("test", 2),
    "held-out pair": ("held_out", 1),
    "held-out pair of two": ("held_out", 2),
}
FACTORS = ("count", "shape", "colour", "size", "relation", "background", "all")


@dataclass(frozen=True)
class Score:
    """Right answers in one category, by factor."""

    category: str
    count: int
    right: dict[str, int]

    def line(self) -> str:
        """One row of the table."""
        low, high = wilson(self.right["all"], self.count)
        parts = " ".join(f"{100 * self.right[f] / self.count:10.1f}" for f in FACTORS)
        return f"{self.category:<22}{self.count:>6} {parts}   [{100 * low:.1f}, {100 * high:.1f}]"


def prompts(category: str, count: int, seed: int) -> list[tuple[str, Scene]]:
    """Distinct prompts of a category that name every factor, in any full phrasing, each with its scene."""
    split, objects = CATEGORIES[category]
    rng, found = random.Random(f"evaluate/{seed}/{category}"), {}
    while len(found) < count:
        scene = sample_scene(rng, split, objects)
        found.setdefault(rng.choice(captions(scene)), scene)
    return list(found.items())


def score(category: str, pairs: list[tuple[str, Scene]], pictures: list[Image]) -> Score:
    """Read every picture and compare it with its scene."""
    verdicts = [judge(read(image), scene) for image, (_, scene) in zip(pictures, pairs, strict=True)]
    return Score(category, len(pairs), {f: sum(v[f] for v in verdicts) for f in FACTORS})


def evaluate(model: Model, count: int, seed: int, **options: Any) -> Iterator[tuple[Score, Score, list[Image]]]:
    """For each category: the model's score, the real renders' score, the pictures."""
    for category in CATEGORIES:
        pairs = prompts(category, count, seed)
        drawn = generate(model, [prompt for prompt, _ in pairs], seed=seed, progress=True, **options)
        real = [render(scene, model.config.defaults.width) for _, scene in pairs]
        yield score(category, pairs, drawn), score(category, pairs, real), drawn


def table(scores: list[Score]) -> str:
    """Scores as text, in percent; the interval is that of `all`."""
    head = " ".join(f"{name:>10}" for name in FACTORS)
    return "\n".join([f"{'category':<22}{'n':>6} {head}   95 % of all", *(s.line() for s in scores)])


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion; it stays inside 0..1 and is honest near both ends."""
    p = right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (p * (1 - p) / count + z * z / (4 * count**2)) ** 0.5 / (1 + z * z / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)
