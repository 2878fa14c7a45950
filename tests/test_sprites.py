"""What objects look like: shapes and their patterns, emoji out of a font, hues, look-alikes."""

import colorsys
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_font import GREEN, TOYS, picture, write_font

from minisd.cli import main
from minisd.world.colour import lab, named
from minisd.world.emoji import EMOJI, FIRST
from minisd.world.recipe import FONTS, WorldRecipe, find_font
from minisd.world.shapes import mask
from minisd.world.sprites import LINE, Look, Sprites, apart, as_seen, emoji_pictures, open_font, shape_sprite
from minisd.world.words import COLOURS, PATTERNS, SHAPES, TINTS
from minisd.world.world import World, standing_out


@pytest.fixture(scope="module")
def toys(toy_font: Path) -> Sprites:
    return Sprites(emoji_pictures(len(TOYS), str(toy_font)))


@pytest.fixture(scope="module")
def atlas(toys: Sprites) -> dict[tuple[str, str | None, str], np.ndarray]:
    """Premultiplied RGBA (32, 32, 4) in 0..1 by look."""
    return dict(zip(toys.looks, toys.atlas(32).transpose(0, 2, 3, 1) / 255, strict=True))


# Shapes.


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


def test_patterns_are_pale_where_their_names_say() -> None:
    """On a black square: the share that is pale, and how often it changes along a row and a column through it."""
    wanted = {  # share, changes along the row at 1/8, down the column at 1/8
        "plain": (0, 0, 0),
        "striped": (2 / 5, 0, 4),
        "checkered": (1 / 2, 3, 3),
        "outlined": ((1 - 2 * LINE) ** 2, 2, 2),
    }
    for pattern, (share, across, down) in wanted.items():
        bright = shape_sprite(Look("square", "black", pattern), 80)[..., 0] > 80
        assert bright.mean() == pytest.approx(share, abs=0.03), pattern
        assert (np.diff(bright[10].astype(int)) != 0).sum() == across
        assert (np.diff(bright[:, 10].astype(int)) != 0).sum() == down
    dots = shape_sprite(Look("square", "black", "dotted"), 80)[..., 0] > 80
    assert 0.15 < dots.mean() < 0.4 and dots[40, 40] and (dots == dots[:, ::-1]).mean() > 0.95


def test_a_pattern_changes_neither_the_outline_nor_the_colour_of_a_shape() -> None:
    for shape in SHAPES:
        plain = shape_sprite(Look(shape, "red"), 40)
        for pattern in PATTERNS[1:]:
            other = shape_sprite(Look(shape, "red", pattern), 40)
            np.testing.assert_array_equal(other[..., 3], plain[..., 3])
            solid = other[other[..., 3] == 255][:, :3] - np.array(COLOURS["red"], float)
            pale = 255 - np.array(COLOURS["red"])
            share = solid @ pale / (pale @ pale)  # of white
            assert np.abs(solid - share[:, None] * pale).max() < 2 and share.min() > -0.01 and share.max() < 0.91
            assert (share < 0.02).mean() > 0.25


def test_shapes_come_in_every_pattern_that_can_be_told(toys: Sprites) -> None:
    looks = {look for look in toys.looks if look.noun in SHAPES}
    left_out = {("circle", "outlined")} | {("ring", pattern) for pattern in PATTERNS[1:]}
    pairs = {(shape, pattern) for shape in SHAPES for pattern in PATTERNS} - left_out
    assert looks == {Look(shape, colour, pattern) for shape, pattern in pairs for colour in COLOURS}


# Emoji.


def test_a_glyph_is_cut_out_square_with_its_own_pixels(toy_font: Path) -> None:
    pictures = emoji_pictures(3, str(toy_font))
    assert list(pictures) == ["fox", "cat", "dog"]
    assert {(image.mode, image.size) for image in pictures.values()} == {("RGBA", (128, 128))}
    for noun, image in pictures.items():
        toy = TOYS[noun]
        left, top, right, bottom = image.getchannel("A").getbbox()
        assert (
            max(right - left, bottom - top) == 128 and abs((left + right) - 128) <= 2 and abs((top + bottom) - 128) <= 2
        )
        cut = toy.crop(toy.getchannel("A").getbbox()).resize((right - left, bottom - top))
        apart = np.abs(np.asarray(cut, float) - np.asarray(image.crop((left, top, right, bottom)), float))
        assert apart[np.asarray(cut)[..., 3] == 255].mean() < 6  # resized twice


def test_look_alikes_are_dropped_and_forms_that_repeat_have_no_hues(toys: Sprites) -> None:
    assert set(toys.nouns) == set(TOYS) - {"penguin"}  # the panda again
    assert {noun for noun, hues in toys.nouns.items() if not hues} == {"butterfly"}  # the frog in red
    alone = Sprites({noun: picture for noun, picture in toys.pictures.items() if noun not in ("frog", "panda")})
    assert set(alone.nouns) == set(TOYS) - {"frog", "panda"} and len(alone.nouns["butterfly"]) == 6


def test_an_emoji_of_one_colour_is_called_by_it_and_has_no_such_hue(toys: Sprites) -> None:
    assert toys.own == {"fox": "orange", "frog": "green", "butterfly": "red"}
    assert all(own not in toys.nouns[noun] for noun, own in toys.own.items())
    assert set(toys.nouns["cat"]) == set(toys.nouns["panda"]) == set(TINTS)


def test_a_hue_too_near_to_an_emoji_is_left_out_though_it_is_no_name_for_it() -> None:
    """A brown box is none of the colours, and an orange one would look the same (20 apart; the next is 42)."""
    parts = (("rectangle", (0, 0, 1, 1), (205, 120, 45)), ("rectangle", (0.3, 0.3, 0.6, 0.6), (120, 80, 40)))
    sprites = Sprites({"box": picture(*parts)})
    assert sprites.own == {} and set(sprites.nouns["box"]) == set(TINTS) - {"orange"}


@pytest.mark.parametrize("width, told", [(0.3, False), (0.6, True)])
def test_forms_need_a_part_that_differs(width: float, told: bool) -> None:
    """Two discs, one with a darker spot of this width: of the smaller spot its hues do not make two things."""
    low, high = 0.5 - width / 2, 0.5 + width / 2
    spotted = picture(("ellipse", (0, 0, 1, 1), GREEN), ("ellipse", (low, low, high, high), (20, 80, 30)))
    sprites = Sprites({"coin": picture(("ellipse", (0, 0, 1, 1), (250, 205, 60))), "button": spotted})
    assert bool(sprites.nouns["button"]) == told and sprites.nouns["coin"]


@pytest.mark.parametrize(
    "rgb, name",
    [
        ((246, 146, 145), "pink"),  # a brain
        ((255, 246, 157), "beige"),  # the inside of an avocado
        ((254, 97, 94), "red"),  # an octopus
        ((246, 176, 62), "yellow"),
        ((2, 191, 165), "green"),
        ((53, 178, 222), "blue"),
    ],
)
def test_a_colour_has_the_name_that_people_give_it(rgb: tuple[int, int, int], name: str) -> None:
    assert named(np.array([rgb])).tolist() == [name]


@pytest.mark.parametrize("colour", TINTS)
def test_a_hue_is_what_its_name_says_and_keeps_the_details(atlas: dict, colour: str) -> None:
    for noun in ("cat", "dog", "panda"):
        natural, hued = atlas[noun, None, "plain"], atlas[noun, colour, "plain"]
        np.testing.assert_array_equal(natural[..., 3], hued[..., 3])
        solid = natural[..., 3] == 1
        mean = hued[solid][:, :3].mean(0)
        hue, saturation, _ = colorsys.rgb_to_hsv(*mean)
        wanted, *_ = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[colour]))
        assert abs((hue - wanted + 0.5) % 1 - 0.5) < 12 / 360 and saturation > 0.4, (noun, colour)
        luma = np.array([0.299, 0.587, 0.114])
        one, other = (image[solid][:, :3] @ luma for image in (natural, hued))
        assert np.corrcoef(one, other)[0, 1] > 0.9  # what is light stays light


def test_the_hues_of_an_emoji_are_told_apart(toys: Sprites) -> None:
    every = toys.atlas(17).transpose(0, 2, 3, 1)
    for noun, hues in toys.nouns.items():
        bytes_ = every[[toys.looks.index(Look(noun, hue)) for hue in (None, *hues)]]
        seen, cover = as_seen(bytes_), bytes_[..., 3].reshape(len(bytes_), -1) / 255
        far = apart(seen, cover) + 1000 * np.eye(len(bytes_))
        assert far[0].min() > 29.9 and far.min() > 15, noun  # the nearest: red and orange, blue and purple


def test_difference_is_that_of_the_colours_over_the_union() -> None:
    """By hand: two opaque squares that share a third of their union."""
    sprites = np.zeros((2, 6, 6, 4))
    sprites[0, :4, :3], sprites[1, 2:, :3] = (*COLOURS["red"], 255), (*COLOURS["blue"], 255)
    red, blue, white, black = (lab(np.array(rgb)) for rgb in (COLOURS["red"], COLOURS["blue"], (255,) * 3, (0,) * 3))
    pairs = {"both": (red, blue), "red": (red, None), "blue": (blue, None)}
    squares = [
        np.square(a - (ground if b is None else b)).sum() for ground in (white, black) for a, b in pairs.values()
    ]
    found = apart(as_seen(sprites), sprites[..., 3].reshape(2, -1) / 255)
    assert found[0, 1] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-5)
    assert found[0, 0] == pytest.approx(0, abs=0.5)  # float32


def test_things_stand_out_from_their_ground(toy_world: World) -> None:
    clear = standing_out(toy_world.sprites, toy_world.grounds)
    assert ("frog", None) not in clear["meadow"] and ("frog", "red") in clear["meadow"]
    assert ("panda", None) not in clear["white"] and ("panda", None) in clear["brown"]
    assert ("circle", "black") not in clear["night sky"] and ("circle", "yellow") in clear["night sky"]
    assert all(
        (shape, colour) in clear[ground] for ground in ("white", "gray") for shape in SHAPES for colour in COLOURS
    )
    for ground in toy_world.grounds:  # something is left on every ground, held out or not
        choice = toy_world.vocabulary.on[ground]
        assert len(choice.shapes) > 20 and choice.hued and choice.held_out
    assert np.linalg.norm(lab(np.array(GREEN)) - lab(np.array((132, 196, 92)))) < 40  # a frog on grass


# The font.


def test_a_missing_or_foreign_font_says_what_to_do(tmp_path: Path, toy_font: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no colour font at /nowhere\.ttf: install Debian's fonts-noto-color-emoji.*--font"
    ):
        World(WorldRecipe(font="/nowhere.ttf"))
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(toy_font.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken\.ttf cannot be used"):
        open_font(str(broken))
    small = write_font(tmp_path / "small.ttf", {EMOJI["fox"]: TOYS["fox"]})
    with pytest.raises(ValueError, match=r"no picture of '🐱' \(U\+1F431\)"):
        emoji_pictures(2, str(small))
    assert World(WorldRecipe(emoji=0, font="/nowhere.ttf")).vocabulary.nouns == {}  # shapes need none


def test_the_command_line_asks_for_the_font_before_torch_is_loaded(tmp_path: Path, capsys) -> None:
    recipe = Path(__file__).parent.parent / "configs/train/cpu.toml"
    train = ["train", "tokenizer", "--recipe", str(recipe), "--out", str(tmp_path)]
    assert main([*train, "--font", "/nowhere.ttf"]) == 2
    assert "no colour font at /nowhere.ttf: install Debian's fonts-noto-color-emoji" in capsys.readouterr().err
    argv = [*train, "--font", "/nowhere.ttf"]
    code = f"import sys; from minisd.cli import main; main({argv!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_real_font_where_there_is_one() -> None:
    """Every emoji has a picture; at least 320 and all of the first are told apart; most can be had in any colour."""
    for path in (path for path in FONTS if Path(path).is_file()):
        assert find_font(None) == path
        sprites = Sprites(emoji_pictures(None))
        assert len(sprites.nouns) >= 320 and set(list(EMOJI)[: len(FIRST)]) <= set(sprites.nouns)
        assert np.mean([len(hues) >= 6 for hues in sprites.nouns.values()]) > 0.9
        red = {noun for noun, own in sprites.own.items() if own == "red"}
        assert {"apple", "balloon", "rose", "car"} <= red and not {"banana", "penguin", "house"} & set(sprites.own)
        assert sprites.own["brain"] == "pink" and "avocado" not in sprites.own
        assert sprites.own["fox"] == "orange" and sprites.own["frog"] == "green"
