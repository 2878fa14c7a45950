"""The oracle reads what was drawn, forgives what a decoder does, and is not fooled."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_world import CIRCLE, SCENE, SQUARE

from minisd.eval.evaluate import SHAPES
from minisd.image import to_pil
from minisd.world.mark import WORDS, mark, told
from minisd.world.oracle import UNCLEAR, Reading, label, nearest, read
from minisd.world.scenes import SPLITS, Scene
from minisd.world.shapes import mask
from minisd.world.vocabulary import KINDS
from minisd.world.words import COLOURS, PLACES, PLAIN
from minisd.world.world import World


@cache
def plain(size: int) -> World:
    """Plain shapes on plain grounds."""
    return World(SHAPES, size)


def render(scene: Scene, size: int = 64) -> Image.Image:
    return to_pil(plain(size).draw([scene]))[0]


def marked(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Every word of a scene."""
    return mark(reading, told(scene))


def drawn(count: int, kind: str | None = None) -> list[Scene]:
    rng = random.Random(0)
    return [plain(64).vocabulary.sample(rng, "train", kind) for _ in range(count)]


def test_every_colour_stands_out_from_every_ground_and_is_told_from_every_other() -> None:
    for name, rgb in COLOURS.items():
        assert nearest(rgb, COLOURS, limit=1e-6) == name
        for ground in PLAIN.values():
            assert np.linalg.norm(np.subtract(rgb, ground)) > 95


@pytest.mark.parametrize("size, count", [(64, 180), (128, 50), (48, 50)])
def test_the_oracle_reads_what_was_drawn(size: int, count: int) -> None:
    """Every kind of scene, three and four shapes among them."""
    wrong, seen = 0, set()
    for index in range(count):
        scene = plain(size).scene(11_000 + index, SPLITS[index % 3])
        reading = read(render(scene, size))
        wrong += not marked(reading, scene)["all"]
        seen.add((scene.kind, len(scene.objects)))
        for item in scene.objects:  # positions to a pixel
            assert min(np.hypot(item.x - seen.x, item.y - seen.y) for seen in reading.objects) < 1 / size
    assert wrong == 0
    assert {kind for kind, _ in seen} == set(KINDS) and {number for _, number in seen} == {1, 2, 3, 4}


def test_the_oracle_forgives_the_faults_of_a_decoder() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for index in range(45):
        scene = plain(64).scene(12_000 + index, SPLITS[index % 3])
        soft = np.asarray(render(scene).filter(ImageFilter.GaussianBlur(0.7)))
        poor = soft + rng.normal(0, 4, 3) + rng.normal(0, 6, soft.shape)
        verdict = marked(read(Image.fromarray(np.clip(poor, 0, 255).astype(np.uint8))), scene)
        del verdict["ground"], verdict["all"]  # cream and white are 43 apart: a cast may swap them
        wrong += not all(verdict.values())
    assert wrong <= 1


def test_the_oracle_is_not_fooled() -> None:
    swapped = Scene((replace(CIRCLE, x=0.7), replace(SQUARE, x=0.2)), "white", "to the right of")
    lies = {
        "colour": replace(SCENE, objects=(replace(CIRCLE, colour="orange"), SQUARE)),
        "noun": replace(SCENE, objects=(CIRCLE, replace(SQUARE, noun="diamond"))),
        "size": replace(SCENE, objects=(CIRCLE, replace(SQUARE, size="large", extent=0.4))),
        "relation": swapped,
        "ground": replace(SCENE, background="cream"),
    }
    assert marked(read(render(SCENE)), SCENE) == dict.fromkeys([*WORDS, "all"], True)
    for word, lie in lies.items():
        assert marked(read(render(lie)), lie)["all"]
        verdict = marked(read(render(lie)), SCENE)
        assert [key for key, right in verdict.items() if not right] == sorted([word, "all"], key=list(verdict).index)


def test_the_oracle_notices_every_repainting_erasure_and_addition() -> None:
    for index, scene in enumerate(drawn(24, "relation")):
        first, second = scene.objects
        colours = list(COLOURS)
        other = colours[(colours.index(first.colour) + 1 + index % 7) % 8]
        assert not marked(read(render(replace(scene, objects=(replace(first, colour=other), second)))), scene)["colour"]
        alone = marked(read(render(Scene((second,), scene.background))), scene)
        assert not (alone["count"] or alone["noun"] or alone["colour"] or alone["size"] or alone["relation"])
        extra = marked(read(render(scene)), Scene((first,), scene.background))
        assert [word for word, right in extra.items() if not right] == ["count", "all"]


def test_colours_bound_to_the_wrong_shapes_are_noticed() -> None:
    crossed = replace(SCENE, objects=(replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")))
    verdict = marked(read(render(crossed)), SCENE)
    assert not verdict["colour"] and verdict["noun"] and verdict["relation"]


def test_numbers_and_places_are_read() -> None:
    spots = [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)]
    shown = [replace(SQUARE, x=x, y=y) for x, y in spots]
    scenes = [Scene(tuple(shown[:number]), "gray") for number in (2, 3, 4)]
    for scene in scenes:
        verdicts = [marked(read(render(scene)), other) for other in scenes]
        assert [v["count"] for v in verdicts] == [v["all"] for v in verdicts] == [other == scene for other in scenes]
    for (x, y), place in zip(spots, ("top left", "top right", "bottom left", "bottom right"), strict=True):
        reading = read(render(Scene((replace(SQUARE, x=x, y=y),), "gray")))
        right = [name for name in PLACES if marked(reading, Scene((SQUARE,), "gray", place=name))["place"]]
        assert right == [f"in the {place} corner"]


def test_a_diagonal_is_judged_by_its_longer_way() -> None:
    steep = replace(SCENE, objects=(replace(CIRCLE, y=0.25), replace(SQUARE, x=0.45, y=0.8)))
    verdict = marked(read(render(steep)), SCENE)
    assert [word for word, right in verdict.items() if not right] == ["relation", "all"]
    assert marked(read(render(steep)), replace(steep, relation="above"))["all"]


@pytest.mark.parametrize("rgb", [(125, 95, 47), (130, 130, 130), (35, 120, 147), (200, 170, 160)])
def test_a_muddy_colour_is_unclear(rgb: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (64, 64), PLAIN["white"])
    coverage, corner = mask("circle", (20, 20, 46, 46))
    image.paste(rgb, corner, coverage)
    (seen,) = read(image).objects
    assert (seen.noun, seen.colour) == ("circle", UNCLEAR)


def test_two_colours_in_one_blob_and_a_scrap_are_unclear() -> None:
    pixels = np.asarray(render(Scene((CIRCLE,), "white"))).copy()
    half = pixels[:29]
    half[half[..., 1] < 100] = COLOURS["green"]
    assert read(Image.fromarray(pixels)).objects[0].colour == UNCLEAR
    scrap = np.full((64, 64, 3), 255, dtype=np.uint8)
    scrap[20:24, 10:50] = scrap[20:50, 10:14] = COLOURS["red"]  # an angle, which is none of the shapes
    assert read(Image.fromarray(scrap)).objects[0].noun == UNCLEAR


def test_noise_and_emptiness_match_nothing() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        noise = np.repeat(rng.uniform(0, 255, (64, 64, channels)), 3 // channels, -1).astype(np.uint8)
        reading = read(Image.fromarray(noise))
        assert all(UNCLEAR in (seen.noun, seen.colour) for seen in reading.objects)
        assert not any(marked(reading, scene)["all"] for scene in drawn(50))
    empty = read(Image.new("RGB", (64, 64), PLAIN["cream"]))
    assert (empty.background, empty.objects) == ("cream", ())
    assert read(Image.new("RGB", (64, 64), (0, 255, 0))).background == UNCLEAR
    with pytest.raises(ValueError, match="40 x 40"):
        read(Image.new("RGB", (40, 40)))


def test_labels_join_exactly_what_touches() -> None:
    rows = ["##.#.", "#..##", "###..", "....#", "#####"]
    marked = np.array([[cell == "#" for cell in row] for row in rows])
    want = [[1, 1, 0, 2, 0], [1, 0, 0, 2, 2], [1, 1, 1, 0, 0], [0, 0, 0, 0, 3], [3, 3, 3, 3, 3]]
    np.testing.assert_array_equal(label(marked), want)
