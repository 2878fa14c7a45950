"""Scenes told in words.

In: a `Scene`. Out: lower-case ASCII sentences such as "a large red circle to the left of a small blue square
on a white background". A sentence is a core (the objects and their relation, told from either side) in a
frame (the background and some filler), so that one small vocabulary gives many phrasings.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisd.world.draw import render
from minisd.world.scenes import Object, Scene, sample_scene, told_otherwise

if TYPE_CHECKING:
    from PIL.Image import Image

# Where the second object is, seen from the first, when the first RELATION the second.
_SEEN_FROM_FIRST = {
    "to the left of": "to its right",
    "to the right of": "to its left",
    "above": "below it",
    "below": "above it",
}
_FRAMES = (  # the first one is the canonical phrasing
    "{core} on a {background} background",
    "{core}, on a {background} background",
    "on a {background} background, {core}",
    "a picture of {core} on a {background} background",
    "there is {core}, on a {background} background",
    "{background} background: {core}",
    "{core}, {background} background",
)
_BARE_FRAMES = ("{core}", "a picture of {core}", "there is {core}")


@dataclass(frozen=True)
class Sample:
    """One training example: an RGB picture, one caption of it and the truth."""

    image: "Image"
    caption: str
    scene: Scene


def captions(scene: Scene) -> list[str]:
    """All phrasings that name every factor; the first is the canonical one."""
    cores = _cores(scene, sized=True)
    return [frame.format(core=core, background=scene.background) for core in cores for frame in _FRAMES]


def caption(scene: Scene, rng: random.Random, drop: float = 0.25) -> str:
    """One phrasing at random. With probability `drop` it is silent on the background, the sizes or both;
    of the full ones half are canonical."""
    if rng.random() >= drop:
        phrasings = captions(scene)
        return phrasings[0] if rng.random() < 0.5 else rng.choice(phrasings[1:])
    placed, sized = rng.choice(((True, False), (False, True), (False, False)))
    frame = rng.choice(_FRAMES if placed else _BARE_FRAMES)
    return frame.format(core=rng.choice(_cores(scene, sized)), background=scene.background)


def corpus(count: int = 4000) -> Iterator[str]:
    """Captions of training scenes, always the same ones, to train a tokenizer on."""
    rng = random.Random("corpus")
    for _ in range(count):
        yield caption(sample_scene(rng), rng)


def sample(seed: int, index: int, split: str = "train", size: int = 64) -> Sample:
    """Example `index` of an endless data set: a pure function of its arguments. `size` is in pixels."""
    rng = random.Random(f"{seed}/{split}/{index}")
    scene = sample_scene(rng, split)
    return Sample(render(scene, size), caption(scene, rng), scene)


def _cores(scene: Scene, sized: bool) -> list[str]:
    if scene.relation is None:
        return [_noun(scene.objects[0], sized)]
    cores = []
    for told in (scene, told_otherwise(scene)):
        first, second = (_noun(item, sized) for item in told.objects)
        cores.append(f"{first} {told.relation} {second}")
        cores.append(f"{first} with {second} {_SEEN_FROM_FIRST[told.relation]}")
    return cores


def _noun(item: Object, sized: bool) -> str:
    words = f"{item.size} {item.colour} {item.shape}" if sized else f"{item.colour} {item.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
