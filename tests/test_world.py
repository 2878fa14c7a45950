"""The toy world: its palette, its splits, its words, its pictures, and the oracle that reads them back."""

import colorsys
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from minisd.world import scenes
from minisd.world.captions import caption, captions, corpus, sample
from minisd.world.draw import mask, render
from minisd.world.oracle import UNCLEAR, judge, label, nearest, read
from minisd.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    HELD_OUT,
    INVERSE,
    MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    SLANT,
    SPLITS,
    Object,
    Scene,
    recipe,
    reserved,
    sample_scene,
    told_otherwise,
)

CIRCLE = Object("circle", "red", "large", 0.3, 0.45, 0.4)
SQUARE = Object("square", "blue", "small", 0.75, 0.5, 0.2)
SCENE = Scene((CIRCLE, SQUARE), "white", "to the left of")
CAPTION = "a large red circle to the left of a small blue square on a white background"
HUES = {  # degrees
    "red": (350, 10),
    "orange": (20, 40),
    "yellow": (45, 65),
    "green": (100, 150),
    "blue": (215, 245),
    "purple": (265, 290),
    "pink": (315, 345),
}


def drawn(count: int, split: str = "train", seed: int = 0, n_objects: int | None = None) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, split, n_objects) for _ in range(count)]


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(item.shape, item.colour) for item in scene.objects}


# The palette.


@pytest.mark.parametrize("name", HUES)
def test_a_colour_is_clear_and_has_the_hue_of_its_name(name: str) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[name]))
    low, high = HUES[name]
    assert (360 * hue - low) % 360 <= (high - low) % 360
    assert saturation >= 0.6 and value >= 0.45


def test_every_colour_stands_out_from_every_background_and_is_told_from_every_other() -> None:
    assert set(COLOURS) == {*HUES, "black"} and max(COLOURS["black"]) <= 20
    for name, rgb in COLOURS.items():
        assert nearest(rgb, COLOURS, limit=1e-6) == name
        for ground in BACKGROUNDS.values():
            assert np.linalg.norm(np.subtract(rgb, ground)) > 95


# Scenes.


def test_held_out_pairs_are_one_per_shape_and_colour_and_never_in_training() -> None:
    assert len(HELD_OUT) == 8 and {s for s, _ in HELD_OUT} == set(SHAPES) and {c for _, c in HELD_OUT} == set(COLOURS)
    seen = Counter(pair for scene in drawn(5000) for pair in pairs_of(scene))
    assert set(seen) == {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT


def test_the_splits_keep_apart() -> None:
    assert not any(reserved(recipe(scene)) for scene in drawn(3000))
    for scene in drawn(500, "test"):
        assert reserved(recipe(scene)) and not pairs_of(scene) & HELD_OUT
    for number in (1, 2):
        for scene in drawn(300, "held_out", n_objects=number):
            assert len(scene.objects) == number and pairs_of(scene) & HELD_OUT


def test_about_a_tenth_of_the_recipes_is_reserved_and_always_the_same() -> None:
    share = np.mean([reserved(f"recipe {k}") for k in range(5000)])
    assert share == pytest.approx(26 / 256, abs=0.02)  # five standard deviations
    assert [k for k in range(40) if reserved(f"recipe {k}")] == [8, 16, 28]  # in every process


def test_a_recipe_names_all_factors_and_does_not_depend_on_the_telling() -> None:
    for scene in drawn(500, n_objects=2):
        assert recipe(told_otherwise(scene)) == recipe(scene)
        assert told_otherwise(told_otherwise(scene)) == scene
    moved = replace(SCENE, objects=(replace(CIRCLE, x=0.31), SQUARE))
    assert recipe(moved) == recipe(SCENE)
    others = [replace(SCENE, background="cream"), replace(SCENE, relation="above")]
    others += [replace(SCENE, objects=(CIRCLE, replace(SQUARE, **{key: word}))) for key, word in _OTHER_WORDS]
    assert len({recipe(scene) for scene in [SCENE, *others]}) == len(others) + 1


_OTHER_WORDS = (("shape", "star"), ("colour", "pink"), ("size", "large"))


def test_training_has_every_word_in_its_share() -> None:
    many = drawn(5000)
    assert np.mean([len(scene.objects) == 2 for scene in many]) == pytest.approx(0.6, abs=0.035)
    things = [item for scene in many for item in scene.objects]
    for got, words in (
        ([item.shape for item in things], SHAPES),
        ([item.colour for item in things], tuple(COLOURS)),
        ([item.size for item in things], tuple(SIZES)),
        ([scene.background for scene in many], tuple(BACKGROUNDS)),
        ([scene.relation for scene in many if scene.relation], RELATIONS),
    ):
        counts = Counter(got)
        assert set(counts) == set(words)
        assert min(counts.values()) > 0.8 * len(got) / len(words)


@pytest.mark.parametrize("split", SPLITS)
def test_objects_keep_their_margin_gap_slant_and_size(split: str) -> None:
    tiny = 1e-9
    for scene in drawn(1500, split, n_objects=2) + drawn(500, split, n_objects=1):
        for item in scene.objects:
            assert abs(item.extent - SIZES[item.size]) <= scenes.JITTER[item.size] + tiny
            for centre in (item.x, item.y):
                assert MARGIN + item.extent / 2 - tiny <= centre <= 1 - MARGIN - item.extent / 2 + tiny
        if scene.relation is None:
            continue
        first, second = scene.objects
        if scene.relation in ("to the right of", "below"):
            first, second = second, first
        steps = second.x - first.x, second.y - first.y
        along, across = steps if "to the" in scene.relation else steps[::-1]
        assert along - (first.extent + second.extent) / 2 >= GAP - tiny
        assert along >= SLANT * abs(across) - tiny
        assert len(pairs_of(scene)) == 2


def test_a_scene_survives_json_and_refuses_nonsense() -> None:
    for scene in (SCENE, Scene((CIRCLE,), "dark blue")):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    for objects, relation in (
        ((CIRCLE,), "above"),
        ((CIRCLE, SQUARE), None),
        ((CIRCLE, SQUARE), "near"),
        ((), None),
    ):
        with pytest.raises(ValueError, match="objects with relation"):
            Scene(objects, "white", relation)
    with pytest.raises(ValueError, match="valid"):
        sample_scene(random.Random(0), "valid")
    with pytest.raises(ValueError, match="3"):
        sample_scene(random.Random(0), n_objects=3)


# Words.


def test_the_canonical_sentence_is_exact() -> None:
    assert captions(SCENE)[0] == CAPTION
    star = Object("star", "orange", "small", 0.5, 0.5, 0.2)
    assert captions(Scene((star,), "dark blue"))[0] == "a small orange star on a dark blue background"
    told = captions(SCENE)
    assert "on a white background, a small blue square to the right of a large red circle" in told
    assert "there is a large red circle with a small blue square to its right, on a white background" in told
    assert "white background: a small blue square with a large red circle to its left" in told


def test_every_phrasing_names_every_factor_and_is_told_once() -> None:
    seen_from_first = dict(zip(RELATIONS, ("to its right", "to its left", "below it", "above it"), strict=False))
    for scene in drawn(200) + drawn(50, "held_out"):
        told = captions(scene)
        assert len(set(told)) == len(told) >= 7
        for text in told:
            assert text == text.lower() and text.isascii() and f"{scene.background} background" in text
            for item in scene.objects:
                assert text.count(f"a {item.size} {item.colour} {item.shape}") == 1
            if scene.relation is None:
                continue
            first, second = (f"{item.colour} {item.shape}" for item in scene.objects)
            turned = text.index(first) > text.index(second)
            relation = INVERSE[scene.relation] if turned else scene.relation
            assert relation in text or seen_from_first[relation] in text


def test_a_caption_drops_factors_as_often_as_asked() -> None:
    rng = random.Random(0)
    told = [caption(SCENE, rng) for _ in range(4000)]
    silent = {
        "both": np.mean([("background" in t, "large" in t) == (False, False) for t in told]),
        "size": np.mean([("background" in t, "large" in t) == (True, False) for t in told]),
        "background": np.mean([("background" in t, "large" in t) == (False, True) for t in told]),
    }
    assert silent == pytest.approx(dict.fromkeys(silent, 0.25 / 3), abs=0.025)
    assert told.count(CAPTION) / len(told) == pytest.approx(0.375, abs=0.035)
    assert all(caption(SCENE, rng, drop=0) in captions(SCENE) for _ in range(100))
    assert all("red circle" in t and "blue square" in t for t in told)
    orange = Scene((replace(CIRCLE, colour="orange"),), "white")
    dropped = {caption(orange, rng, drop=1) for _ in range(100)}
    assert "an orange circle" in dropped and not any("a orange" in t or "an large" in t for t in dropped)


def test_the_corpus_is_fixed_varied_and_of_one_small_vocabulary() -> None:
    texts = list(corpus())
    assert texts == list(corpus()) and len(set(texts)) > 2500
    words = {word for text in texts for word in text.replace(",", "").replace(":", "").split()}
    named = {*SHAPES, *COLOURS, *SIZES, *" ".join([*BACKGROUNDS, *RELATIONS]).split()}
    assert words - named == {"a", "an", "on", "background", "picture", "there", "is", "with", "its", "it"}


def test_a_sample_is_a_pure_function_of_its_arguments() -> None:
    for split in SPLITS:
        here, again = sample(3, 7, split, 48), sample(3, 7, split, 48)
        assert (here.caption, here.scene) == (again.caption, again.scene) and here.image.size == (48, 48)
        assert here.image.tobytes() == again.image.tobytes()
    assert sample(3, 7, size=128).scene == sample(3, 7).scene  # the size changes the picture alone
    assert len({sample(seed, index).scene for seed in range(20) for index in range(20)}) == 400


# Pictures.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [12.3, 26.0, 51.7])
def test_a_shape_fills_its_box_and_nothing_else(shape: str, side: float) -> None:
    areas = {"square": 1, "triangle": 1 / 2, "cross": 5 / 9, "diamond": 1 / 2}
    areas |= {"circle": np.pi / 4, "ring": np.pi / 4 * 3 / 4}
    image, (left, top) = mask(shape, (5.4, 7.7, 5.4 + side, 7.7 + side))
    cover = np.asarray(image) / 255
    assert (left, top) == (5, 7) and image.width <= side + 2
    assert cover.max() == 1 and ((cover > 0.1) & (cover < 0.9)).any()  # anti-aliased
    # The first and last rows and columns are touched.
    assert all(cover.max(axis)[[0, 1]].max() > 0 and cover.max(axis)[[-2, -1]].max() > 0 for axis in (0, 1))
    if shape in areas:
        assert cover.sum() / side**2 == pytest.approx(areas[shape], rel=0.04)  # a quarter-pixel grid
    assert (cover[round(side / 2), round(side / 2)] < 0.1) == (shape == "ring")


def test_a_picture_has_its_two_colours_mixtures_of_them_and_nothing_outside_the_box() -> None:
    scene = Scene((CIRCLE,), "dark blue")
    pixels = np.asarray(render(scene), dtype=float)
    ground, tint = np.array(BACKGROUNDS["dark blue"]), np.array(COLOURS["red"])
    cover = (pixels - ground) @ (tint - ground) / np.square(tint - ground).sum()
    assert np.abs(ground + cover[..., None] * (tint - ground) - pixels).max() < 1.5  # rounding
    rows, columns = np.nonzero(cover > 0)
    assert rows.min() >= int(64 * 0.25) and rows.max() <= int(64 * 0.65)
    assert columns.min() >= int(64 * 0.1) and columns.max() <= int(64 * 0.5)
    assert render(scene, 96).size == (96, 96) and render(scene).mode == "RGB"


# The oracle.


@pytest.mark.parametrize("size, count", [(64, 500), (128, 100), (48, 100)])
def test_the_oracle_reads_what_was_drawn(size: int, count: int) -> None:
    wrong = 0
    for index in range(count):
        example = sample(11, index, SPLITS[index % 3], size)
        reading = read(example.image)
        wrong += not judge(reading, example.scene)["all"]
        for item in example.scene.objects:  # positions to a pixel
            assert min(np.hypot(item.x - seen.x, item.y - seen.y) for seen in reading.objects) < 1 / size
    assert wrong / count <= (0.005 if size >= 64 else 0.01)  # at 48 a small shape has nine pixels


def test_the_oracle_forgives_the_faults_of_a_decoder() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for index in range(60):
        example = sample(12, index, SPLITS[index % 3])
        soft = np.asarray(example.image.filter(ImageFilter.GaussianBlur(0.7)))
        poor = soft + rng.normal(0, 4, 3) + rng.normal(0, 6, soft.shape)
        verdict = judge(read(Image.fromarray(np.clip(poor, 0, 255).astype(np.uint8))), example.scene)
        del verdict["background"], verdict["all"]  # cream and white are 43 apart: a cast may swap them
        wrong += not all(verdict.values())
    assert wrong <= 1


def test_the_oracle_is_not_fooled() -> None:
    swapped = Scene((replace(CIRCLE, x=0.7), replace(SQUARE, x=0.25)), "white", "to the right of")
    lies = {
        "colour": replace(SCENE, objects=(replace(CIRCLE, colour="orange"), SQUARE)),
        "shape": replace(SCENE, objects=(CIRCLE, replace(SQUARE, shape="diamond"))),
        "size": replace(SCENE, objects=(CIRCLE, replace(SQUARE, size="large", extent=0.38))),
        "relation": swapped,
        "background": replace(SCENE, background="cream"),
    }
    assert judge(read(render(SCENE)), SCENE) == dict.fromkeys([*lies, "count", "all"], True)
    for word, lie in lies.items():
        assert judge(read(render(lie)), lie)["all"]
        verdict = judge(read(render(lie)), SCENE)
        assert [key for key, right in verdict.items() if not right] == sorted([word, "all"], key=list(verdict).index)


def test_the_oracle_notices_every_repainting_erasure_and_addition() -> None:
    for index, scene in enumerate(drawn(40, n_objects=2)):
        first, second = scene.objects
        colours = list(COLOURS)
        other = colours[(colours.index(first.colour) + 1 + index % 7) % 8]
        assert not judge(read(render(replace(scene, objects=(replace(first, colour=other), second)))), scene)["colour"]
        alone = judge(read(render(Scene((second,), scene.background))), scene)
        assert not (alone["count"] or alone["shape"] or alone["colour"] or alone["size"] or alone["relation"])
        extra = judge(read(render(scene)), Scene((first,), scene.background))
        assert [word for word, right in extra.items() if not right] == ["count", "all"]


def test_colours_bound_to_the_wrong_shapes_are_noticed() -> None:
    crossed = replace(SCENE, objects=(replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")))
    verdict = judge(read(render(crossed)), SCENE)
    assert not verdict["colour"] and verdict["shape"] and verdict["relation"]


def test_a_diagonal_is_judged_by_its_longer_way() -> None:
    steep = replace(SCENE, objects=(replace(CIRCLE, y=0.25), replace(SQUARE, x=0.45, y=0.8)))
    verdict = judge(read(render(steep)), SCENE)
    assert [word for word, right in verdict.items() if not right] == ["relation", "all"]
    assert judge(read(render(steep)), replace(steep, relation="above"))["all"]


@pytest.mark.parametrize("rgb", [(125, 95, 47), (130, 130, 130), (35, 120, 147), (200, 170, 160)])
def test_a_muddy_colour_is_unclear(rgb: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (64, 64), BACKGROUNDS["white"])
    coverage, corner = mask("circle", (20, 20, 46, 46))
    image.paste(rgb, corner, coverage)
    (seen,) = read(image).objects
    assert (seen.shape, seen.colour) == ("circle", UNCLEAR)


def test_two_colours_in_one_blob_and_a_scrap_are_unclear() -> None:
    pixels = np.asarray(render(Scene((CIRCLE,), "white"))).copy()
    half = pixels[:29]
    half[half[..., 1] < 100] = COLOURS["green"]
    assert read(Image.fromarray(pixels)).objects[0].colour == UNCLEAR
    scrap = np.full((64, 64, 3), 255, dtype=np.uint8)
    scrap[20:24, 10:50] = scrap[20:50, 10:14] = COLOURS["red"]  # an angle, which is none of the shapes
    assert read(Image.fromarray(scrap)).objects[0].shape == UNCLEAR


def test_noise_and_emptiness_match_nothing() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        noise = np.repeat(rng.uniform(0, 255, (64, 64, channels)), 3 // channels, -1).astype(np.uint8)
        reading = read(Image.fromarray(noise))
        assert all(UNCLEAR in (seen.shape, seen.colour) for seen in reading.objects)
        assert not any(judge(reading, scene)["all"] for scene in drawn(50))
    empty = read(Image.new("RGB", (64, 64), BACKGROUNDS["cream"]))
    assert (empty.background, empty.objects) == ("cream", ())
    assert read(Image.new("RGB", (64, 64), (0, 255, 0))).background == UNCLEAR
    with pytest.raises(ValueError, match="40 x 40"):
        read(Image.new("RGB", (40, 40)))


def test_labels_join_exactly_what_touches() -> None:
    rows = ["##.#.", "#..##", "###..", "....#", "#####"]
    marked = np.array([[cell == "#" for cell in row] for row in rows])
    want = [[1, 1, 0, 2, 0], [1, 0, 0, 2, 2], [1, 1, 1, 0, 0], [0, 0, 0, 0, 3], [3, 3, 3, 3, 3]]
    np.testing.assert_array_equal(label(marked), want)
