"""Near misses: scenes that differ from a given one in one thing.

In: a scene. Out: others that it could be taken for. They are only told, never drawn: a text tower has to tell them
apart (Yuksekgonul et al. 2022, https://arxiv.org/abs/2210.01936).
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from minisd.world.chance import pick
from minisd.world.scenes import Object, Scene, recipe
from minisd.world.vocabulary import Vocabulary
from minisd.world.words import COLOURS, INVERSE, PLACES, SHAPES, TINTS


def near_misses(words: Vocabulary, scene: Scene, rng: random.Random) -> list[Scene]:
    """Scenes with another noun, colour, pattern, number, relation or place, or with two objects that swapped one; in
    random order. None of them is held out or reserved, so that no word of theirs is learnt here."""
    found = {recipe(miss): miss for miss in _changed(words, scene, rng)}
    found.pop(recipe(scene), None)
    kinds = len(scene.groups)  # a cat beside a dog does not become two dogs
    misses = [miss for miss in found.values() if len(miss.groups) == kinds and words.shows(miss)]
    rng.shuffle(misses)
    return misses


def _changed(words: Vocabulary, scene: Scene, rng: random.Random) -> Iterator[Scene]:
    groups = scene.groups
    chosen = pick(rng, groups)[1]
    for other in (_renamed, _recoloured, _repatterned):
        yield _with(scene, {chosen: other(words, chosen, rng)})
    if scene.relation:
        yield replace(scene, relation=INVERSE[scene.relation])
    if scene.place:
        yield replace(scene, place=pick(rng, [place for place in PLACES if place != scene.place]))
    if not scene.relation and not scene.place:
        if len(scene.objects) < 4:
            yield _small(replace(scene, objects=(*scene.objects, chosen)))
        if len(scene.objects) > len(groups):
            spare = next(item for number, item in groups if number > 1)
            yield replace(scene, objects=tuple(item for item in scene.objects if item is not spare))
    if len(groups) > 1:
        one, other = rng.sample([item for _, item in groups], 2)
        for name in ("noun", "colour", "size"):
            yield _with(scene, {one: _taking(words, one, other, name), other: _taking(words, other, one, name)})


def _with(scene: Scene, changes: dict[Object, Object]) -> Scene:
    """The scene with every object like one of `changes` put as told there."""
    told = {(item.look, item.size): new for item, new in changes.items()}
    return replace(scene, objects=tuple(told.get((item.look, item.size), item) for item in scene.objects))


def _small(scene: Scene) -> Scene:
    """The scene with small objects only, where there are more than two."""
    small = tuple(replace(item, size="small") for item in scene.objects)
    return replace(scene, objects=small) if len(small) > 2 else scene


def _taking(words: Vocabulary, item: Object, other: Object, name: str) -> Object:
    """An object with another's noun, colour or size; a hue that there is not is found out later."""
    if name == "size":
        return replace(item, size=other.size)
    noun, colour = (other.noun, item.colour) if name == "noun" else (item.noun, other.colour)
    return _put(words, item, noun, colour)


def _put(words: Vocabulary, item: Object, noun: str, colour: str | None) -> Object:
    """An object with another noun and colour, as it is where that is its own colour."""
    new = words.item(noun, colour)
    pattern = item.pattern if item.pattern in words.patterns_of.get(noun, ()) else "plain"
    return replace(item, noun=noun, colour=new.colour, own=new.own, pattern=pattern)


def _renamed(words: Vocabulary, item: Object, rng: random.Random) -> Object:
    """Another noun of the same sort in the same hue; an emoji as it is becomes another as it is."""
    nouns = SHAPES if item.noun in SHAPES else tuple(words.nouns)
    return _put(words, item, pick(rng, [noun for noun in nouns if noun != item.noun] or nouns), item.look[1])


def _recoloured(words: Vocabulary, item: Object, rng: random.Random) -> Object:
    names = tuple(COLOURS) if item.noun in SHAPES else TINTS
    return _put(words, item, item.noun, pick(rng, [name for name in names if name != item.colour]))


def _repatterned(words: Vocabulary, item: Object, rng: random.Random) -> Object:
    patterns = [name for name in ("plain", *words.patterns_of.get(item.noun, ())) if name != item.pattern]
    return replace(item, pattern=pick(rng, patterns)) if patterns else item
