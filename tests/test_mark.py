"""Marks: what a prompt says is strict, what it leaves unsaid is free; planted mistakes are found in real pictures."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_world import tiny_world

from minisd.image import to_pil
from minisd.world.mark import WORDS, Thing, Told, mark, told
from minisd.world.oracle import UNCLEAR, Reading, read
from minisd.world.recipe import WorldRecipe
from minisd.world.scenes import INVERSE, SPLITS, Object, Scene
from minisd.world.words import PLACES
from minisd.world.world import World

SHAPES = World(WorldRecipe(emoji=0, patterns=("plain",), grounds=("plain",)))
CIRCLE = Object("circle", "red", "large", 0.28, 0.45, 0.42)
SQUARE = Object("square", "blue", "small", 0.75, 0.5, 0.27)
SCENE = Scene((CIRCLE, SQUARE), "white", "to the left of")
BALLOON = Object("balloon", "red", "small", 0.5, 0.5, 0.27, "plain", True)  # as it is
GIFT = Object("gift", None, "small", 0.2, 0.2, 0.27, "plain", True)  # as it is, and no colour's name fits


def wrong(reading: Reading, truth: Told) -> list[str]:
    verdict = mark(reading, truth)
    assert verdict["all"] == all(verdict[word] for word in WORDS)
    return [word for word in WORDS if not verdict[word]]


def seen(*objects: Object, ground: str = "white") -> Reading:
    return Reading(ground, objects)


@pytest.mark.parametrize("split", SPLITS)
def test_what_a_scene_tells_of_itself_is_right_and_of_another_it_is_not(split: str, toy_font: Path) -> None:
    """Any choice of words is true of the scene that they were taken from; all of them are true of its like alone."""
    scenes = tiny_world(toy_font).scenes(range(150), split)
    for scene, other in itertools.pairwise(scenes):
        for words in (WORDS, (), ("colour",), ("relation", "size")):
            assert wrong(seen(*scene.objects[::-1], ground=scene.background), told(scene, words)) == []
        if mark(seen(*other.objects, ground=other.background), told(scene))["all"]:
            things = [sorted((*map(str, item.look), item.size) for item in s.objects) for s in (scene, other)]
            assert things[0] == things[1] and other.background == scene.background


PLANTED = {  # a fault -> what of SCENE is drawn otherwise, and the words that must be wrong
    "colour": ((replace(CIRCLE, colour="orange"), SQUARE), ["colour"]),
    "noun": ((CIRCLE, replace(SQUARE, noun="diamond")), ["noun"]),
    "size": ((CIRCLE, replace(SQUARE, size="large", extent=0.4)), ["size"]),
    "swapped places": ((replace(CIRCLE, x=0.72), replace(SQUARE, x=0.25)), ["relation"]),
    "swapped colours": ((replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")), ["colour"]),
    "one more": ((CIRCLE, SQUARE, Object("star", "green", "small", 0.3, 0.83, 0.27)), ["count"]),
    "one less": ((CIRCLE,), ["count", "noun", "colour", "pattern", "size", "relation"]),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_mistake_is_found_in_a_real_picture(fault: str) -> None:
    objects, words = PLANTED[fault]
    pictures = SHAPES.draw([SCENE, replace(SCENE, objects=objects, relation=None)])
    right, planted = (read(image) for image in to_pil(pictures))
    truth = told(SCENE)
    assert wrong(right, truth) == []
    assert wrong(planted, truth) == words


@pytest.mark.parametrize("relation", INVERSE)
def test_a_relation_is_read_from_real_pictures(relation: str) -> None:
    scenes = [scene for scene in SHAPES.scenes(range(300), "test") if scene.relation == relation]
    things = [told(scene, ("relation", "colour")) for scene in scenes]
    readings = [read(image) for image in to_pil(SHAPES.draw(scenes))]
    assert len(scenes) > 10 and not any(wrong(*pair) for pair in zip(readings, things, strict=True))
    for reading, truth in zip(readings, things, strict=True):
        assert wrong(reading, replace(truth, relation=INVERSE[relation])) == ["relation"]


def test_what_is_unsaid_is_free_and_what_is_said_is_not() -> None:
    fox = Object("fox", "blue", "large", 0.7, 0.3, 0.42)
    assert wrong(seen(fox, ground=UNCLEAR), Told((Thing("fox"),))) == []
    for thing in (Thing("fox", colour="orange"), Thing("fox", size="small"), Thing("fox", pattern="striped")):
        (word,) = wrong(seen(fox), Told((thing,)))
        assert getattr(thing, word) is not None
    assert wrong(seen(fox), Told((Thing("fox"),), ground="sea")) == ["ground"]


def test_three_means_three() -> None:
    stars = [Object("star", "red" if x < 0.5 else "blue", "small", x, 0.2, 0.27) for x in (0.2, 0.4, 0.6, 0.8)]
    three = Told((Thing("star"),) * 3)
    assert wrong(seen(*stars[:3]), three) == []
    assert wrong(seen(*stars[:2]), three) == ["count", "noun", "colour", "pattern", "size"]
    assert wrong(seen(*stars), three) == ["count"]
    assert wrong(seen(*stars[:2], replace(stars[2], noun="heart")), three) == ["noun"]
    assert wrong(seen(*stars[:2], replace(stars[2], noun=UNCLEAR)), three) == ["noun"]


def test_something_that_cannot_be_told_spoils_a_picture() -> None:
    assert wrong(seen(BALLOON, replace(GIFT, noun=UNCLEAR)), Told((Thing("balloon"),))) == ["count"]


def test_an_emoji_as_it_is_is_right_by_the_colour_that_names_it() -> None:
    assert wrong(seen(BALLOON), Told((Thing("balloon", "red"),))) == []
    assert wrong(seen(BALLOON), Told((Thing("balloon", "blue"),))) == ["colour"]
    gift = told(Scene((GIFT,), "white"))
    assert wrong(seen(GIFT), gift) == []
    assert wrong(seen(replace(GIFT, colour="red", own=False)), gift) == ["colour"]


def test_the_kindest_pairing_counts_and_a_relation_never_makes_it_kinder() -> None:
    """The fox lies right of the banana: who swaps their names to save the relation is not believed."""
    fox, banana = Object("fox", "blue", "small", 0.8, 0.5, 0.27), Object("banana", "red", "small", 0.2, 0.5, 0.27)
    asked = Told((Thing("fox"), Thing("banana")), "to the left of")
    assert wrong(seen(banana, fox), asked) == wrong(seen(fox, banana), asked) == ["relation"]
    assert wrong(seen(fox, banana), replace(asked, relation="to the right of")) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_where_the_world_puts_it(place: str, toy_font: Path) -> None:
    scenes = [scene for scene in tiny_world(toy_font).scenes(range(600)) if scene.place]
    for scene in scenes:
        marks = wrong(seen(*scene.objects), replace(told(scene, ()), place=place))
        assert marks == ([] if scene.place == place else ["place"])


def test_a_crowd_is_looked_at_in_no_time() -> None:
    crowd = [replace(BALLOON, x=k / 60) for k in range(60)]
    assert wrong(seen(*crowd), Told((Thing("balloon"),) * 4)) == ["count"]
