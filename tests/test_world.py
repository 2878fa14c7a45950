"""The world's truth: its words, its splits, where things lie, what a near miss is."""

import colorsys
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from toy_font import TOYS

from minisd.train.recipe import Recipe
from minisd.world.colour import lab
from minisd.world.emoji import EMOJI, FIRST, GROUPS, NAMES, group, noun
from minisd.world.layout import GAP, MARGIN, SLANT, related
from minisd.world.mark import holds, lies
from minisd.world.recipe import WorldRecipe
from minisd.world.scenes import HELD_OUT, SPLITS, Object, Scene, held_out, recipe, reserved, told_otherwise
from minisd.world.vocabulary import GROUND_KINDS, KINDS
from minisd.world.words import (
    COLOURS,
    GROUNDS,
    INVERSE,
    JITTER,
    PATTERNS,
    PLACES,
    PLAIN,
    RELATIONS,
    SHAPES,
    SIZES,
    article,
    ground_parts,
    plural,
)
from minisd.world.world import World

CIRCLE = Object("circle", "red", "large", 0.3, 0.45, 0.42)
SQUARE = Object("square", "blue", "small", 0.75, 0.5, 0.27)
SCENE = Scene((CIRCLE, SQUARE), "white", "to the left of")
HUES = {  # degrees
    "red": (350, 10),
    "orange": (20, 40),
    "yellow": (45, 65),
    "green": (100, 150),
    "blue": (215, 245),
    "purple": (265, 290),
    "pink": (315, 345),
}
TINY = 1e-9


@pytest.fixture(scope="module")
def train(toy_world: World) -> list[Scene]:
    return toy_world.scenes(range(4000))


def pairs_of(scene: Scene) -> set[tuple[str, str | None]]:
    return {item.look[:2] for item in scene.objects}


# Words.


@pytest.mark.parametrize("name", HUES)
def test_a_colour_is_clear_and_has_the_hue_of_its_name(name: str) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[name]))
    low, high = HUES[name]
    assert (360 * hue - low) % 360 <= (high - low) % 360
    assert saturation >= 0.6 and value >= 0.45


def test_the_palette_is_told_apart_on_plain_grounds() -> None:
    assert set(COLOURS) == {*HUES, "black"} and max(COLOURS["black"]) <= 20
    points = lab(np.array(list(COLOURS.values())))
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) > 28  # blue and purple
    for rgb in COLOURS.values():
        for ground in PLAIN.values():
            assert np.linalg.norm(np.subtract(rgb, ground)) > 95


def test_the_emoji_are_many_and_their_nouns_are_words() -> None:
    letters = "".join(GROUPS.values())
    assert len(letters) == len(set(letters)) == len(EMOJI) >= 320 + 100  # no noun twice; look-alikes may go
    others = {*SHAPES, *PATTERNS, *COLOURS, *SIZES, *" ".join([*PLAIN, *RELATIONS, *PLACES]).split()}
    for name in EMOJI:
        assert name.isascii() and name == name.lower() and name.replace(" ", "").replace("-", "").isalpha(), name
        assert name not in others and len(name.split()) <= 4
        assert not {"left", "right", "above", "below", "large", "small"} & set(name.split())
    assert all(key != name for key, name in NAMES.items()), "an override that changes nothing"
    assert set(NAMES.values()) <= set(EMOJI), "an override that nothing uses"
    assert (noun("🦊"), noun("🌹"), noun("☀"), noun("🚗"), noun("🎂")) == ("fox", "rose", "sun", "car", "cake")


def test_what_shows_several_is_not_named_as_one() -> None:
    """Else "two cherries" would be four."""
    several = {"🍒": "pair of cherries", "🫐": "bunch of blueberries", "🥞": "stack of pancakes", "🍂": "fallen leaves"}
    several |= {"🎭": "pair of theater masks", "🧱": "brick wall", "🫒": "olive branch", "🍇": "bunch of grapes"}
    assert all(noun(letter).endswith(name) for letter, name in several.items())


def test_the_first_emoji_are_of_every_group() -> None:
    assert len(FIRST) == len(set(FIRST)) == 64 and list(EMOJI.values())[:64] == list(FIRST)
    for count, groups in ((48, set(GROUPS) - {"body"}), (64, set(GROUPS) - {"body"})):
        assert {group(letter) for letter in FIRST[:count]} == groups
    assert Counter(group(letter) for letter in FIRST).most_common(1)[0][1] < 64 / 3


def test_plurals_and_articles() -> None:
    more = {"fox": "foxes", "cherry": "cherries", "key": "keys", "mouse": "mice", "bus": "buses", "potato": "potatoes"}
    more |= {"piano": "pianos", "maple leaf": "maple leaves", "tropical fish": "tropical fish", "t-rex": "t-rexes"}
    more |= {"bowl of soup": "bowls of soup", "glass of milk": "glasses of milk", "cross": "crosses", "yo-yo": "yo-yos"}
    assert {one: plural(one) for one in more} == more
    assert len({plural(name) for name in (*EMOJI, *SHAPES)}) == len(EMOJI) + len(SHAPES)
    for words in ("an orange", "a unicorn", "an hourglass", "a ufo", "a heart", "an outlined red star", "an ice cube"):
        assert article(words.partition(" ")[2]) == words


def test_grounds_are_named_with_their_colours() -> None:
    assert ground_parts("dark blue") == ("plain", ("dark blue",))
    assert ground_parts("striped white/red") == ("striped", ("white", "red"))
    assert ground_parts("night sky") == ("night sky", ())
    for kind, grounds in GROUNDS.items():
        assert {ground_parts(ground)[0] for ground in grounds} == {kind}
    assert set(GROUNDS) == set(GROUND_KINDS) and sum(GROUND_KINDS.values()) == pytest.approx(1)


# Splits.


def test_held_out_pairs_are_one_per_shape_and_colour() -> None:
    assert len(HELD_OUT) == 8 and {s for s, _ in HELD_OUT} == set(SHAPES) and {c for _, c in HELD_OUT} == set(COLOURS)


def test_about_a_twelfth_of_the_emojis_hues_is_held_out_and_every_colour_is_seen() -> None:
    hues = [Object(name, colour, "small", 0.5, 0.5, 0.27) for name in EMOJI for colour in HUES]
    out = [item for item in hues if held_out(item)]
    assert len(out) / len(hues) == pytest.approx(21 / 256, abs=0.015)
    assert max(Counter(item.noun for item in out).values()) <= 4  # of seven
    assert not any(held_out(replace(item, own=True)) for item in out)


def test_training_never_shows_what_is_put_aside(train: list[Scene]) -> None:
    assert not any(held_out(item) for scene in train for item in scene.objects)
    assert not any(reserved(recipe(scene)) for scene in train)
    shapes = {pair for scene in train for pair in pairs_of(scene) if pair[0] in SHAPES}
    assert shapes == {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT


def test_the_other_splits_show_only_that(toy_world: World) -> None:
    for scene in toy_world.scenes(range(200), "test"):
        assert reserved(recipe(scene)) and not any(held_out(item) for item in scene.objects)
    shown = toy_world.scenes(range(600), "held_out")
    assert all(any(held_out(item) for item in scene.objects) for scene in shown)
    pairs = {item.look[:2] for scene in shown for item in scene.objects if held_out(item)}
    assert pairs >= HELD_OUT and any(name in TOYS for name, _ in pairs)


def test_about_a_tenth_of_the_recipes_is_reserved_and_always_the_same() -> None:
    share = np.mean([reserved(f"recipe {k}") for k in range(5000)])
    assert share == pytest.approx(26 / 256, abs=0.02)  # five standard deviations
    assert [k for k in range(40) if reserved(f"recipe {k}")] == [8, 16, 28]  # in every process


def test_a_recipe_names_all_factors_and_does_not_depend_on_the_telling(train: list[Scene]) -> None:
    for scene in train[:800]:
        assert recipe(told_otherwise(scene)) == recipe(scene)
        assert told_otherwise(told_otherwise(scene)) == scene
        if not scene.relation:
            assert recipe(replace(scene, objects=scene.objects[::-1])) == recipe(scene)
    moved = replace(SCENE, objects=(replace(CIRCLE, x=0.31), SQUARE), grain=7)
    assert recipe(moved) == recipe(SCENE)
    things = (("noun", "star"), ("colour", "pink"), ("size", "large"), ("pattern", "striped"))
    others = [replace(SCENE, background="cream"), replace(SCENE, relation="above"), replace(SCENE, relation=None)]
    others += [replace(SCENE, objects=(CIRCLE, replace(SQUARE, **{key: word}))) for key, word in things]
    alone = Scene((CIRCLE,), "white")
    others += [alone, replace(alone, place="at the top"), replace(alone, place="on the left")]
    others += [replace(alone, objects=number * (CIRCLE,)) for number in (2, 3)]
    assert len({recipe(scene) for scene in [SCENE, *others]}) == len(others) + 1
    balloon = Object("balloon", None, "small", 0.5, 0.5, 0.27, own=True)
    assert recipe(Scene((balloon,), "sea")) == recipe(Scene((replace(balloon, colour="red"),), "sea"))  # one look


# Scenes.


def test_training_has_every_word_in_its_share(train: list[Scene]) -> None:
    things = [item for scene in train for _, item in scene.groups]
    emoji = [item for item in things if item.noun not in SHAPES]
    assert len(emoji) / len(things) == pytest.approx(0.5, abs=0.04)
    assert np.mean([item.own for item in emoji]) == pytest.approx(0.5, abs=0.08)
    kinds = Counter(scene.kind for scene in train)
    assert {kind: n / len(train) for kind, n in kinds.items()} == pytest.approx(KINDS, abs=0.03)
    grounds = Counter(ground_parts(scene.background)[0] for scene in train)
    assert {kind: n / len(train) for kind, n in grounds.items()} == pytest.approx(GROUND_KINDS, abs=0.03)
    for got, words, least in (
        ([item.noun for item in things if item.noun in SHAPES], SHAPES, 0.75),
        ([item.colour for item in things if item.noun in SHAPES], COLOURS, 0.6),  # black is lost on a night sky
        ([item.noun for item in emoji], set(TOYS) - {"penguin"}, 0.3),  # a noun of many hues is seen more often
        ([item.colour for item in emoji if not item.own], HUES, 0.4),
        ([scene.background for scene in train if scene.background in PLAIN], PLAIN, 0.8),
        ([scene.relation for scene in train if scene.relation], RELATIONS, 0.8),
        ([scene.place for scene in train if scene.place], PLACES, 0.7),
        ([len(scene.objects) for scene in train if scene.kind == "list"], (2, 3, 4), 0.6),
        ([len(scene.objects) for scene in train if scene.kind == "count"], (2, 3, 4), 0.8),
    ):
        counts = Counter(got)
        assert set(counts) == set(words)
        assert min(counts.values()) > least * len(got) / len(words), counts
    shapes = Counter(item.pattern for item in things if item.noun in SHAPES)
    assert set(shapes) == set(PATTERNS) and shapes["plain"] / sum(shapes.values()) == pytest.approx(0.56, abs=0.04)
    assert {item.pattern for item in emoji} == {"plain"}
    assert all(item.pattern == "plain" for item in things if item.noun == "ring")


@pytest.mark.parametrize("split", SPLITS)
def test_objects_keep_their_size_margin_and_gap(toy_world: World, split: str) -> None:
    for scene in toy_world.scenes(range(800 if split != "test" else 150), split):
        for item in scene.objects:
            assert abs(item.extent - SIZES[item.size]) <= JITTER[item.size] + TINY
            assert item.size == "small" or len(scene.objects) <= 2
            for centre in (item.x, item.y):
                assert MARGIN + item.extent / 2 - TINY <= centre <= 1 - MARGIN - item.extent / 2 + TINY
        for one, other in combinations(scene.objects, 2):
            between = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.extent + other.extent) / 2
            assert between >= GAP - TINY


def test_relations_are_plain_to_see(train: list[Scene]) -> None:
    for scene in (scene for scene in train if scene.relation):
        first, second = scene.objects
        if scene.relation in ("to the right of", "below"):
            first, second = second, first
        steps = second.x - first.x, second.y - first.y
        along, across = steps if "to the" in scene.relation else steps[::-1]
        assert along - (first.extent + second.extent) / 2 >= GAP - TINY
        assert along >= SLANT * abs(across) - TINY
        assert holds(scene.relation, *scene.objects) and not holds(INVERSE[scene.relation], *scene.objects)
    largest = SIZES["large"] + JITTER["large"]
    for relation in RELATIONS:  # the two largest still fit
        centres = related(random.Random(0), [largest, largest], relation)
        assert all(
            u - largest / 2 >= MARGIN - TINY and u + largest / 2 <= 1 - MARGIN + TINY for c in centres for u in c
        )


def test_places_are_where_their_words_say(train: list[Scene]) -> None:
    sides = {"left": (0, 0.36), "right": (0.64, 1), "top": (0, 0.36), "bottom": (0.64, 1)}
    for scene in (scene for scene in train if scene.place):
        (item,) = scene.objects
        across = next((sides[word] for word in ("left", "right") if word in scene.place), (0.43, 0.57))
        down = next((sides[word] for word in ("top", "bottom") if word in scene.place), (0.43, 0.57))
        assert across[0] <= item.x <= across[1] and down[0] <= item.y <= down[1], (scene.place, item)
        assert [place for place in PLACES if lies(place, item)] == [scene.place]


def test_things_of_a_scene_are_told_apart_by_words(train: list[Scene]) -> None:
    for scene in train:
        for (_, one), (_, other) in combinations(scene.groups, 2):
            assert one.noun != other.noun or (one.colour != other.colour and not one.own and not other.own)
    assert max(len(scene.groups) for scene in train if scene.kind == "count") == 2


def test_one_kind_can_be_asked_for(toy_world: World) -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for split in SPLITS:
            assert {toy_world.vocabulary.sample(rng, split, kind).kind for _ in range(20)} == {kind}
    with pytest.raises(ValueError, match=r"unknown split 'valid': choose one of \('train'"):
        toy_world.vocabulary.sample(rng, "valid")
    with pytest.raises(ValueError, match=r"unknown kind 'pairs': choose one of \('single'"):
        toy_world.vocabulary.sample(rng, kind="pairs")


def test_a_scene_refuses_nonsense() -> None:
    for objects, words in (
        ((CIRCLE,), {"relation": "above"}),
        ((CIRCLE, SQUARE), {"relation": "near"}),
        ((CIRCLE, SQUARE), {"place": "at the top"}),
        ((CIRCLE,), {"place": "outside"}),
        ((), {}),
        (5 * (CIRCLE,), {}),
    ):
        with pytest.raises(ValueError, match=f"{len(objects)} objects"):
            Scene(objects, "white", **words)


# The world as examples.


def test_examples_are_pure_functions_of_their_arguments(toy_font: Path) -> None:
    here, again, other = (
        World(WorldRecipe(emoji=3, grounds=("plain", "sea"), font=str(toy_font), seed=seed)) for seed in (4, 4, 5)
    )
    larger = World(here.recipe, 96)
    assert larger.pictures([3]).shape == (1, 3, 96, 96)
    for split in SPLITS:
        scenes = here.scenes([5, 6, 7], split)
        assert scenes == again.scenes([5, 6, 7], split) == larger.scenes([5, 6, 7], split)
        assert here.scene(6, split) == scenes[1]
        assert here.captions([5, 6, 7], 9, split) == again.captions([5, 6, 7], 9, split)
        assert here.captions([6], 9, split) == here.captions([5, 6, 7], 9, split)[1:2]
        assert (here.pictures([5, 6, 7], split)[1:2] == again.pictures([6], split)).all()
    assert len({scene for world in (here, other) for s in SPLITS for scene in world.scenes(range(30), s)}) == 180
    assert len({tuple(here.captions(range(40), step)) for step in range(10)}) == 10


def test_another_process_sees_the_same_world() -> None:
    """Strings are hashed with another salt there."""
    code = """
from minisd.world.world import World, WorldRecipe
world = World(WorldRecipe(emoji=0, seed=3))
print([world.captions(range(20), 2), world.scenes(range(20), "held_out")])
"""
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    world = World(WorldRecipe(emoji=0, seed=3))
    assert there == f"{[world.captions(range(20), 2), world.scenes(range(20), 'held_out')]}\n"


def test_a_recipe_chooses_what_there_is() -> None:
    world = World(WorldRecipe(emoji=0, patterns=("plain", "striped"), grounds=("plain", "sea")))
    scenes = world.scenes(range(400))
    assert {scene.background for scene in scenes} == {*PLAIN, "sea"}
    assert {item.pattern for scene in scenes for item in scene.objects} == {"plain", "striped"}
    assert {item.noun for scene in scenes for item in scene.objects} == set(SHAPES)
    for words in (
        {"patterns": ("plain", "furry")},
        {"patterns": ("striped",)},
        {"grounds": ("lava",)},
        {"shapes": 0.0},
    ):
        with pytest.raises(ValueError, match=f"world.{next(iter(words))}"):
            WorldRecipe(**words)
    folder = Path(__file__).parent.parent / "configs/train"
    emoji = {name: Recipe.load(folder / f"{name}.toml").world.emoji for name in ("shapes", "cpu", "gpu")}
    assert emoji == {"shapes": 0, "cpu": 64, "gpu": None}


# Near misses.


def factors(scene: Scene) -> dict[str, object]:
    """What a near miss may differ in."""
    looks = [item.look for _, item in scene.groups]
    return {
        "nouns": sorted(look[0] for look in looks),
        "hues": sorted(str(look[1]) for look in looks),
        "colours": sorted(str(item.colour) for _, item in scene.groups),
        "patterns": sorted(look[2] for look in looks),
        "sizes": sorted(item.size for _, item in scene.groups),
        "numbers": sorted(number for number, _ in scene.groups),
        "relation": scene.relation,
        "place": scene.place,
    }


def test_near_misses_differ_in_one_thing_and_show_nothing_put_aside(toy_world: World, train: list[Scene]) -> None:
    rng, seen = random.Random(0), Counter()
    for scene in train[:350]:
        misses = toy_world.near_misses(scene, rng)
        assert len({recipe(miss) for miss in misses} - {recipe(scene)}) == len(misses)
        for miss in misses:
            assert miss.background == scene.background
            assert not reserved(recipe(miss)) and not any(held_out(item) for item in miss.objects)
            assert all(item.look in toy_world.painter.sprites for item in miss.objects)
            here, there = factors(scene), factors(miss)
            changed = {name for name in here if here[name] != there[name]}
            if here["colours"] == there["colours"] or here["hues"] == there["hues"]:
                changed -= {"colours", "hues"}  # an orange cat has a hue, an orange fox is a fox as it is
            # Where a pattern does not go with a noun it is left out; a third thing makes all of them small.
            assert len(changed - {"patterns", "colours"}) <= 1 or changed <= {"numbers", "sizes"}, (scene, miss)
            seen.update(changed or {"swapped"})
    assert set(seen) == {*factors(SCENE), "swapped"} and min(seen.values()) > 10, seen
