"""How well a reader sees: what it says of pictures whose truth is known, object by object.

In: readings and the scenes that were drawn. Out: how many objects were found, and told right word by word.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minisd.world.oracle import Reading
from minisd.world.scenes import Object, Scene

NEAR = 0.04  # of the width: how far off the centre of a found object may be
STRETCH = 0.15  # of an extent: how far off it may be
FACTORS = ("found", "noun", "colour", "pattern", "extent", "all")


@dataclass(frozen=True)
class Accuracy:
    """What of `objects` was right, by factor; what was seen besides; pictures without fault; confusions."""

    objects: int
    right: dict[str, int]
    extra: int
    pictures: int
    exact: int
    confused: list[tuple[str, str, int]]  # (drawn, read, how often), the most frequent first

    def line(self) -> str:
        """In a line of percentages."""
        shares = ", ".join(f"{name} {100 * n / self.objects:.2f}" for name, n in self.right.items())
        faults = f"{self.extra} objects too many, {100 * self.exact / self.pictures:.1f} % of the pictures exact"
        return f"of {self.objects} unseen objects % right: {shares}; {faults}"


def accuracy(readings: Sequence[Reading], scenes: Sequence[Scene]) -> Accuracy:
    """Compare each reading with what was drawn."""
    right, confused, extra, exact = Counter(dict.fromkeys(FACTORS, 0)), Counter(), 0, 0
    for reading, scene in zip(readings, scenes, strict=True):
        verdicts = []
        for item in scene.objects:
            seen = nearest(reading.objects, item)
            verdicts.append(compared(seen, item))
            if seen and seen.name != item.name:
                confused[item.name, seen.name] += 1
        for verdict in verdicts:
            right.update(verdict)
        spare = len(reading.objects) - sum(verdict["found"] for verdict in verdicts)
        extra += spare
        exact += spare == 0 and all(verdict["all"] for verdict in verdicts) and reading.background == scene.background
    objects = sum(len(scene.objects) for scene in scenes)
    pairs = [(*pair, n) for pair, n in confused.most_common()]
    return Accuracy(objects, dict(right), extra, len(scenes), exact, pairs)


def nearest(seen: Sequence[Object], item: Object) -> Object | None:
    """What was seen where an object is."""
    best = min(seen, key=lambda s: math.hypot(s.x - item.x, s.y - item.y), default=None)
    return best if best and math.hypot(best.x - item.x, best.y - item.y) < NEAR else None


def compared(seen: Object | None, item: Object) -> dict[str, bool]:
    """Which words about an object are right."""
    if seen is None:
        return dict.fromkeys(FACTORS, False)
    verdict = {
        "found": True,
        "noun": seen.noun == item.noun,
        "colour": seen.colour == item.colour,
        "pattern": seen.pattern == item.pattern,
        "extent": abs(seen.extent / item.extent - 1) < STRETCH,
    }
    return verdict | {"all": all(verdict.values())}
