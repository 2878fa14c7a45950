"""Pictures of the world: pasted right to a fraction of a pixel, and what they show is what their scenes say."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from test_world import CIRCLE, SCENE
from torch import Tensor

from minisd.world.draw import Painter
from minisd.world.grounds import PICTURES, colours, paint
from minisd.world.scenes import Object, Scene
from minisd.world.words import COLOURS, GROUNDS, LANDSCAPES, MUTED, PLAIN, SIZES
from minisd.world.world import World


def levels(pictures: Tensor) -> np.ndarray:
    """(b, 3, H, W) in [-1, 1] as (b, H, W, 3) in 0..255."""
    return (pictures.permute(0, 2, 3, 1).double().numpy() + 1) * 127.5


def ground_of(world: World, scene: Scene) -> np.ndarray:
    start, count = world.painter.starts[scene.background]
    return world.painter.grounds[start + scene.grain % count].permute(1, 2, 0).double().numpy()


def by_pillow(world: World, scene: Scene) -> np.ndarray:
    """The slow, simple picture: every sprite transformed over the whole canvas by Pillow, one after another."""
    painter, picture = world.painter, ground_of(world, scene)
    for item in scene.objects:
        atlas = painter.atlases[tuple(SIZES).index(item.size)]
        sprite = atlas[painter.sprites[item.look]].permute(1, 2, 0).numpy()
        inner = sprite.shape[0] - 2
        zoom = inner / (item.extent * world.size)  # sprite pixels a picture pixel
        shift = [(1 + inner / 2) - zoom * centre * world.size for centre in (item.x, item.y)]
        matrix = (zoom, 0, shift[0], 0, zoom, shift[1])
        layers = [  # a channel at a time, as 32-bit floats: Pillow's RGBA would be taken as not premultiplied
            np.asarray(
                Image.fromarray(sprite[..., k].astype(np.float32)).transform(
                    (world.size, world.size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
                )
            )
            for k in range(4)
        ]
        picture = picture * (1 - layers[3][..., None] / 255) + np.stack(layers[:3], -1)
    return picture


def test_the_painter_equals_pillow(toy_world: World) -> None:
    """64 scenes with up to four objects. Float32 and another order of sums: a hundredth of a level at most."""
    scenes = toy_world.scenes(range(48)) + toy_world.scenes(range(16), "held_out")
    drawn = levels(toy_world.draw(scenes))
    worst = max(np.abs(image - by_pillow(toy_world, scene)).max() for image, scene in zip(drawn, scenes, strict=True))
    assert worst < 0.05
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}


def test_sprites_on_whole_pixels_are_pasted_bit_for_bit(toy_world: World) -> None:
    painter = toy_world.painter
    for size, atlas in zip(SIZES, painter.atlases, strict=True):
        side = atlas.shape[-1] - 2
        at = (5 + side / 2) / 64
        scene = Scene((Object("fox", "orange", size, at, at, side / 64, own=True),), "gray")
        sprite = atlas[painter.sprites["fox", None, "plain"]][:, 1:-1, 1:-1].permute(1, 2, 0).double().numpy()
        wanted = np.full((64, 64, 3), 150.0)
        wanted[5 : 5 + side, 5 : 5 + side] *= 1 - sprite[..., 3:] / 255
        wanted[5 : 5 + side, 5 : 5 + side] += sprite[..., :3]
        assert np.abs(levels(toy_world.draw([scene]))[0] - wanted).max() < 1e-3


def test_nothing_changes_outside_the_boxes(toy_world: World) -> None:
    """But for the one pixel over which a rim is smoothed."""
    for scene in toy_world.scenes(range(60)):
        (image,) = levels(toy_world.draw([scene]))
        pixels = np.arange(64) + 0.5
        inside = np.zeros((64, 64), bool)
        for item in scene.objects:
            near = [np.abs(pixels / 64 - centre) <= item.extent / 2 + 1 / 64 for centre in (item.x, item.y)]
            inside |= near[1][:, None] & near[0][None, :]
        assert np.abs(image - ground_of(toy_world, scene))[~inside].max() < 1e-4


@pytest.mark.parametrize("shape, area", [("square", 1), ("circle", np.pi / 4), ("diamond", 1 / 2)])
def test_size_and_place_are_true_to_a_fraction_of_a_pixel(toy_world: World, shape: str, area: float) -> None:
    """Coverage and centre of mass, for places between the pixels."""
    rng = random.Random(0)
    for size in SIZES:
        extent = SIZES[size] + 0.01
        items = [Object(shape, "black", size, rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), extent) for _ in range(8)]
        drawn = levels(toy_world.draw([Scene((item,), "white") for item in items]))
        for image, item in zip(drawn, items, strict=True):
            cover = (255 - image[..., 0]) / (255 - COLOURS["black"][0])
            assert cover.sum() == pytest.approx(area * (extent * 64) ** 2, rel=0.03)
            centre = ndimage.center_of_mass(cover)
            # Polygons are drawn on quarters of a pixel: a circle is half a quarter off.
            assert np.hypot(centre[1] + 0.5 - 64 * item.x, centre[0] + 0.5 - 64 * item.y) < 0.2


def blobs(world: World, scene: Scene) -> list[tuple[float, float]]:
    """Centres (x, y) of the connected pieces that differ from the bare ground."""
    (image,) = levels(world.draw([scene]))
    differs = np.abs(image - ground_of(world, scene)).max(-1) > 6
    marks, count = ndimage.label(differs, np.ones((3, 3)))
    boxes = ndimage.find_objects(marks)
    return [((b[1].start + b[1].stop) / 128, (b[0].start + b[0].stop) / 128) for b in boxes[:count]]


def test_numbers_and_relations_are_true_of_the_pixels(toy_world: World) -> None:
    seen = set()
    for scene in toy_world.scenes(range(300)):
        found = blobs(toy_world, scene)
        assert len(found) == len(scene.objects), scene
        places = [min(found, key=lambda c, item=item: np.hypot(c[0] - item.x, c[1] - item.y)) for item in scene.objects]
        assert len(set(places)) == len(places)
        if scene.relation:
            (x0, y0), (x1, y1) = places
            ahead = {"to the left of": x1 - x0, "to the right of": x0 - x1, "above": y1 - y0, "below": y0 - y1}
            assert ahead[scene.relation] > 0.25 and max(ahead, key=ahead.get) == scene.relation
        seen.add((scene.kind, len(found)))
    assert len(seen) == 9  # every kind with every number it can have


def test_a_picture_shows_its_colours_and_mixtures_of_them(toy_world: World) -> None:
    (image,) = levels(toy_world.draw([Scene((CIRCLE,), "dark blue")]))
    ground, tint = np.array(PLAIN["dark blue"]), np.array(COLOURS["red"])
    cover = (image - ground) @ (tint - ground) / np.square(tint - ground).sum()
    assert np.abs(ground + cover[..., None] * (tint - ground) - image).max() < 1.5  # the sprite is stored in bytes
    assert cover.max() > 0.99 and cover.min() > -0.01
    assert toy_world.draw([SCENE]).dtype == torch.float32


def test_a_batch_is_its_pictures_one_by_one(toy_world: World) -> None:
    scenes = toy_world.scenes(range(24))
    together = toy_world.draw(scenes)
    assert torch.equal(together, torch.cat([toy_world.draw([scene]) for scene in scenes]))
    assert torch.equal(together, toy_world.painter(toy_world.painter.layout(scenes)))
    assert together.shape == (24, 3, 64, 64) and together.min() >= -1 and together.max() <= 1


def test_everything_is_drawn_on_the_painters_device(toy_world: World) -> None:
    """On the meta device a stray CPU tensor raises."""
    grounds = ("white", "striped white/red")
    painter = Painter(toy_world.sprites, grounds, 64, "meta")
    scenes = [replace(scene, background=grounds[i % 2]) for i, scene in enumerate(toy_world.scenes(range(16)))]
    assert painter(scenes).device.type == "meta"


# Grounds.


def test_grounds_are_what_their_names_say() -> None:
    white, red = np.array(MUTED["white"], float), np.array(MUTED["red"], float)
    (stripes,), (checks,), (gradient,) = (
        paint(f"{kind} white/red", 64) for kind in ("striped", "checkered", "gradient")
    )
    where = (np.arange(64) // 8) % 2
    np.testing.assert_array_equal(stripes, np.where(where[None, :, None], red, white) + np.zeros((64, 1, 1)))
    np.testing.assert_array_equal(checks, np.where((where[:, None] ^ where[None, :])[..., None], red, white))
    assert (gradient == gradient[:, :1]).all()  # from the top down
    assert np.abs(gradient[0, 0] - white).max() <= 2 and np.abs(gradient[-1, 0] - red).max() <= 2
    assert (np.diff(gradient[:, 0, 1].astype(int)) <= 0).all()
    assert (paint("cream", 32) == PLAIN["cream"]).all() and paint("cream", 32).shape == (1, 32, 32, 3)


def test_landscapes_have_many_pictures_of_the_colours_that_are_told() -> None:
    for ground in LANDSCAPES:
        pictures = paint(ground, 64)
        assert len(pictures) == PICTURES == len({picture.tobytes() for picture in pictures})
        assert (pictures == paint(ground, 64)).all()
        flat = pictures.reshape(-1, 3).astype(float)
        nearest = np.min([np.linalg.norm(flat - rgb, axis=-1) for rgb in colours(ground)], axis=0)
        assert np.median(nearest) < 35, ground  # what objects are kept from
    night, sea, meadow = (paint(ground, 64).astype(float) for ground in LANDSCAPES)
    assert night.mean() < 60 and (night.max((1, 2, 3)) > 200).all()  # dark, with stars
    assert ((night.mean(-1) > 120).mean((1, 2)) < 0.03).all()  # that are too small for things
    for picture in (sea, meadow):
        assert (picture[:, :16].mean((1, 2)).argmax(-1) == 2).all()  # a blue sky above
    assert (sea[:, -16:].mean((1, 2)).argmax(-1) == 2).all() and (meadow[:, -16:].mean((1, 2)).argmax(-1) == 1).all()


def test_the_grain_chooses_among_the_pictures_of_a_ground(toy_world: World) -> None:
    scene = Scene((CIRCLE,), "sea")
    drawn = toy_world.draw([replace(scene, grain=k) for k in (0, 1, PICTURES)])
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert {ground for kind in GROUNDS.values() for ground in kind} == set(toy_world.painter.starts)
