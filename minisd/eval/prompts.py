"""What is asked for: GenEval's six categories on the words of the world, and pairs that no training showed.

In: a world's `Vocabulary`. Out: questions, each a prompt, what it tells, and a scene that it is true of.
Every scene is one of the world's split for tests (for the held-out categories: of its own split), and a prompt tells a
part of it. Ghosh et al. 2023, https://arxiv.org/abs/2310.11513

    single_object      a picture of a fox
    two_objects        a picture of a fox and a banana
    counting           a picture of three stars
    colors             a picture of a blue fox
    position           a picture of a fox above a banana
    color_attribution  a picture of a purple fox and a green banana
    held_out           a picture of a pink fox, where no training picture has one
    held_out_two       a picture of a pink fox and a green banana
"""

import random
from collections import Counter
from dataclasses import dataclass

from ..world.captions import captions
from ..world.chance import pick
from ..world.mark import Thing, Told, told
from ..world.scenes import Scene
from ..world.vocabulary import Vocabulary
from ..world.words import NUMBERS, article, plural

GENEVAL = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
HELD_OUT = ("held_out", "held_out_two")
PATIENCE = 50  # scenes in a row that give no new prompt
FRAMES = ("a picture of {things}", "there {are} {things}", "{things}")
LEVELS = ((FRAMES[:1], ()), (FRAMES, ()), (FRAMES, ("size",)))  # where plain prompts run out: other frames, and sizes


@dataclass(frozen=True)
class Category:
    """Which scenes its prompts tell a part of, and which words beside the nouns and their number."""

    kind: str
    objects: int | None = None  # None: as many as there are
    words: tuple[str, ...] = ()
    split: str = "test"


@dataclass(frozen=True)
class Question:
    """A prompt, what it tells, and a scene that it is true of."""

    prompt: str
    told: Told
    scene: Scene


def questions(words: Vocabulary, name: str, count: int, seed: int = 0) -> list[Question]:
    """Distinct prompts of a category, always the same ones; fewer where the world has no more."""
    rng, category, found = random.Random(f"{name}/{seed}"), CATEGORIES[name], {}
    for frames, more in LEVELS:
        barren = 0
        while len(found) < count and barren < PATIENCE:
            scene = words.sample(rng, category.split, category.kind)
            barren += 1
            if fits(scene, category):
                question = asked(scene, (*category.words, *more), pick(rng, frames))
                if question.prompt not in found:
                    found[question.prompt], barren = question, 0
    return list(found.values())


def fits(scene: Scene, category: Category) -> bool:
    """Whether a category's prompt can be made of a scene: every colour that is told is one that the thing has not by
    itself, and of several things each has its own noun; what counts is alike."""
    objects = scene.objects
    if category.kind == "count":
        return len(scene.groups) == 1
    ours = category.objects == len(objects) == len({item.noun for item in objects})
    return ours and ("colour" not in category.words or all(item.look[1] for item in objects))


def asked(scene: Scene, words: tuple[str, ...], frame: str) -> Question:
    """A scene told in so many words."""
    truth = told(scene, words)
    groups = Counter(truth.things)  # in the order of the first
    things = [phrase(thing, number) for thing, number in groups.items()]
    are = "are" if groups[truth.things[0]] > 1 else "is"
    return Question(frame.format(things=f" {truth.relation or 'and'} ".join(things), are=are), truth, scene)


def phrase(thing: Thing, number: int) -> str:
    """So many of a thing in words."""
    said = " ".join(filter(None, (thing.size, thing.pattern, thing.colour)))
    noun = f"{said} {thing.noun if number == 1 else plural(thing.noun)}".strip()
    return article(noun) if number == 1 else f"{NUMBERS[number]} {noun}"


def described(
    words: Vocabulary, count: int, seed: int = 0, split: str = "test", kind: str | None = None
) -> list[Question]:
    """Distinct prompts that tell all of a scene, in any full phrasing."""
    rng, found = random.Random(f"described/{split}/{kind}/{seed}"), {}
    while len(found) < count:
        scene = words.sample(rng, split, kind)
        prompt = pick(rng, captions(scene))
        found.setdefault(prompt, Question(prompt, told(scene), scene))
    return list(found.values())


CATEGORIES = {
    "single_object": Category("single", 1),
    "two_objects": Category("list", 2),
    "counting": Category("count"),
    "colors": Category("single", 1, ("colour",)),
    "position": Category("relation", 2, ("relation",)),
    "color_attribution": Category("list", 2, ("colour",)),
    "held_out": Category("single", 1, ("colour",), "held_out"),
    "held_out_two": Category("list", 2, ("colour",), "held_out"),
}
