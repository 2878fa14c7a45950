"""`minisd grid`: every cell is the very picture that `generate` draws with those flags, under labels one can read."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageFont
from test_cli import everything, pixels, recipe

import minisd
from minisd.cli import grid as command
from minisd.cli import main
from minisd.config import SAMPLER_NAMES
from minisd.settings import Options
from minisd.sheet import LINES, WIDEST, column_width, labelled_sheet, plain_sheet, wrap

BAD = r"""
grid
grid x
grid --x steps=1,2
grid x --x
grid x --x steps
grid x --x =1,2
grid x --x steps=
grid x --x steps=0,5
grid x --x steps=5,0
grid x --x steps=5,,6
grid x --x steps=1.5
grid x --x steps=٣
grid x --x stepps=1,2
grid x --x model=a,b
grid x --x num_images=1,2
grid x --x batch_size=1,2
grid x --x cfg_scale=1,nan
grid x --x cfg_scale=-1
grid x --x clip_skip=1,3
grid x --x sampler=euler,eulr
grid x --x schedule=karas
grid x --x seed=1,-2
grid x --x seed=1,18446744073709551616
grid x --x width=64,66
grid x --x eta=0,0.5 --y sampler=ddim,heun
grid x --x eta=0.5 --sampler heun
grid x --x steps=1,2 --y steps=3,4
grid x --x cfg=1,2 --y cfg_scale=3,4
grid x --x steps=1,2 --steps 5
grid x --x prompt=a;b
grid --x prompt=a;b -p x
grid x --x negative_prompt=a;b -n x
grid x --x seed=1,2 --seed 3
grid x --x seed={numbers} --y steps=1,2,3,4
grid x --x width=16000 --y height=16000
grid x --x steps=1,2 -N 2
grid x --x steps=1,2 --from-file a.txt
grid x --x steps=1,2 -o {bad}/a.jpg
grid x --x steps=1,2 -o {bad}/taken.png
grid x --x steps=1,2 -o {bad}/missing/a.png
grid x --x steps=1,2 --outdir {bad}/taken.png
grid x --x steps=1,2 --cells {bad}/taken.png
grid x --x steps=1,2 --model {bad}/missing
grid '1 2 3 4 5 6 7 8 9 0 1 2 3 4 5' --x long_prompt=chunk,error
grid x --x strength=0.5,0.7
grid x --x mask_blur=0,3 -i {bad}/taken.png
grid x --x hires_strength=0.5,0.7
grid x --x hires=1,2 -i {bad}/taken.png --mask {bad}/taken.png
grid x --x hires=1,2 -i {bad}/taken.png --outpaint 0,0,32,0
WORLD_SIZE=2 RANK=0 grid x --x steps=1,2 --seed 1
""".strip().splitlines()


@pytest.fixture
def sheet(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`minisd grid` with the tiny model, in an empty folder; the sheet, and its cells cut out."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[Image.Image, list[Image.Image]]:
        assert main(["grid", *argv, "--model", str(tiny_model), "--device", "cpu"]) == 0
        with Image.open(capsys.readouterr().out.splitlines()[-1]) as image:
            image.load()
        return image, [image.crop(cell["box"]) for cell in told(image)["cells"]]

    return run


def told(image: Image.Image) -> dict:
    return json.loads(image.info["minisd_grid"])


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_2_before_any_model(
    line: str, tiny_model: Path, no_loading: None, tmp_path: Path, monkeypatch, capsys, at_once: None
) -> None:
    bad, here = tmp_path / "bad", tmp_path / "here"
    bad.mkdir()
    here.mkdir()
    Image.new("RGB", (8, 8)).save(bad / "taken.png")
    monkeypatch.chdir(here)
    words = shlex.split(line.format(bad=bad, numbers=",".join(map(str, range(101)))))
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("="))
    words += [] if "--model" in words else ["--model", str(tiny_model)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"minisd: [^\n]{10,300}\n", err), err
    assert everything(bad) == ["taken.png"]
    assert [name for name in everything(here) if name != "outputs"] == []


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("--x stepps=1", "did you mean steps?"),
        ("--x sampler=eulr", "did you mean euler?"),
        ("--x steps=5,0 --y clip_skip=1,2", "--steps 0 must be a whole number in 1..1000 (cell steps=0, clip_skip=1)"),
        ("--x eta=0,0.5 --y sampler=ddim,heun", "(cell eta=0, sampler=heun)"),
        ("--x width=64,66", "64 and 68"),
        ("--x steps=1.5", "--x steps: '1.5' is not a whole number"),
        ("--x steps=1 --steps 2", "steps is an axis and was given besides"),
        ("--x strength=0.5,0.7", "--strength means nothing without --init-img"),
        ("--x hires_strength=0.5 --y steps=1,2", "--hires-strength means nothing without --hires"),
    ],
)
def test_the_one_line_shows_the_way_out(line: str, hint: str, tiny_model: Path, no_loading: None, capsys) -> None:
    assert main(["grid", "x", *line.split(), "--model", str(tiny_model)]) == 2
    assert hint in capsys.readouterr().err


def test_help_and_bad_axes_do_not_import_torch() -> None:
    script = """if True:
        import sys
        from minisd.cli import main
        codes = [main(line.split()) for line in ["grid --help", "grid x --x nope=1", "generate --from-file nowhere"]]
        sys.exit(f"{codes} {set(sys.modules) & set(('torch', 'numpy', 'PIL'))}")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[0, 2, 2] set()"
    assert done.stdout.isascii()


def test_every_axis_is_an_option_that_one_flag_sets() -> None:
    """What `generate` learns to take comes along: each of its numbers is an axis, and reads one value from one text."""
    flags = command.build_parser()._option_string_actions
    assert set(command.AXES) - {"prompt", "negative_prompt"} <= set(Options.__annotations__)
    assert {*command.NUMBERS, "seed"} - set(command.AXES) == {"num_images", "batch_size"}
    for name in command.AXES:
        action = flags[f"--{name.replace('_', '-')}"]
        assert action.dest == name and action.nargs is None and action.default is None


def test_each_cell_is_the_picture_that_generate_draws(sheet, draw) -> None:
    image, cells = sheet("a red circle", "--x", "steps=2,3,5", "--y", "clip-skip=1,2", "--seed", "7", "--cfg", "2")
    made = [
        draw("a red circle", "--seed", "7", "--cfg", "2", "--steps", steps, "--clip-skip", skip)[0]
        for skip in ("1", "2")
        for steps in ("2", "3", "5")
    ]
    assert [cell.tobytes() for cell in cells] == [pixels(path) for path in made]
    assert len({cell.tobytes() for cell in cells}) == 6
    for cell in cells:
        cell.info["minisd"] = "{}"
    labels = ["steps 2", "steps 3", "steps 5"], ["clip skip 1", "clip skip 2"]
    assert labelled_sheet(cells, *labels, {}).tobytes() == image.tobytes()
    data = told(image)
    assert [data["recipe"] | cell for cell in data["cells"]] == [
        recipe(path) | {"box": cell["box"]} for path, cell in zip(made, data["cells"], strict=True)
    ]
    assert data["x"] == {"name": "steps", "values": [2, 3, 5]} and data["y"] == {"name": "clip_skip", "values": [1, 2]}
    assert set(image.info) == {"minisd_grid"}  # no recipe: nothing takes the sheet for a picture


@pytest.mark.parametrize(
    "axes",
    [
        ["--x", "sampler=ddim,euler_a,heun", "--y", "schedule=karras,trailing"],
        ["--x", "cfg_scale=1,2.5,1e1", "--y", "seed=1,2"],
        ["--y", "negative_prompt=;blue, small;gray"],
        ["--x", "guidance_rescale=0,.5", "--y", "eta=0;1", "--sampler", "euler_a"],
        ["--x", "width=32,64", "--y", "height=64,16"],
        ["--x", "hires=1,2", "--y", "hires_steps=3,4", "--hires-strength", "0.4"],
        ["--x", "variation_strength=0.2,0.5", "--y", "variation_seed=4,-1"],
    ],
)
def test_recipe_and_cell_together_draw_the_cell_again(sheet, tiny_model: Path, axes: list[str]) -> None:
    """In the middle of a larger cell too, where sizes differ. No cell is another's: each value reaches its picture."""
    image, cells = sheet("a red circle", *axes, "--seed" if "seed" not in str(axes) else "--steps", "3")
    data, model = told(image), minisd.load(tiny_model, device="cpu")
    for cell, told_cell in zip(cells, data["cells"], strict=True):
        whole = data["recipe"] | told_cell
        options = {name: whole[name] for name in (*Options.__annotations__, "negative_prompt") if name in whole}
        (again,) = minisd.generate(model, whole["prompt"], **options)
        assert again.tobytes() == cell.tobytes()
    assert len({cell.tobytes() for cell in cells}) == len(cells)


def test_seeds_that_are_not_said_are_random_ones(sheet) -> None:
    """The same in all cells, but where an axis asks for one more; each is told, so that the cell can be drawn again."""
    data = told(sheet("x", "--steps", "1", "--seed", "2", "--x", "variation_strength=0,0.5,1")[0])
    cells = [data["recipe"] | cell for cell in data["cells"]]
    assert len({cell["variation_seed"] for cell in cells}) == 1 and cells[0]["variation_seed"] is not None
    data = told(sheet("x", "--steps", "1", "--variation-strength", "0.5", "--x", "seed=-1,-1,1")[0])
    cells = [data["recipe"] | cell for cell in data["cells"]]
    seeds = [cell["seed"] for cell in cells]
    assert len(set(seeds)) == 3 and min(seeds) >= 0 and seeds[2] == 1
    assert len({cell["variation_seed"] for cell in cells}) == 1 and data["x"]["values"] == seeds


def test_a_recipe_keeps_its_eta_for_the_samplers_that_take_one(sheet, draw, tiny_model, capsys) -> None:
    (first,) = draw("x", "--sampler", "ddim", "--eta", "0.5", "--steps", "2", "--seed", "1")
    data = told(sheet("--like", str(first), "--x", "sampler=ddim,euler,euler_a")[0])
    assert [(data["recipe"] | cell).get("eta") for cell in data["cells"]] == [0.5, None, 0.5]
    call = ["grid", "--like", str(first), "--model", str(tiny_model), "--x", "sampler=ddim,euler", "--eta", "0.2"]
    assert main(call) == 2 and "--eta means nothing to the sampler euler" in capsys.readouterr().err


def test_prompts_are_parted_by_semicolons(sheet) -> None:
    prompts = "prompt=a red, round circle; [a|b] \udcff star"
    image, _ = sheet("--x", prompts, "--steps", "1", "--seed", "1", "-n", "a; b")
    data = told(image)
    assert [cell["prompt"] for cell in data["cells"]] == ["a red, round circle", "[a|b] ? star"]
    assert data["recipe"]["negative_prompt"] == "a; b"


def test_the_sheet_and_its_cells_are_named_and_printed(tiny_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["grid", "x", "--x", "seed=5,9", "--steps", "1", "-q", "--model", str(tiny_model)]
    assert main([*call, "--cells", "c"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["c/00000-5.png", "c/00001-9.png", "outputs/grid-00000-5.png"] and err == "seed 5\n"
    assert recipe(Path("c/00001-9.png"))["seed"] == 9
    assert main([*call, "-o", "a.png"]) == 0
    assert main([*call, "-o", "a.png"]) == 2
    assert main([*call, "-o", "a.png", "--overwrite"]) == 0
    assert main(call) == 0
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["grid-00000-5.png", "grid-00001-5.png"]
    assert pixels(Path("outputs/grid-00001-5.png")) == pixels(Path("a.png"))
    capsys.readouterr()
    assert main(["info", "a.png"]) == 0
    assert json.loads(capsys.readouterr().out)["x"] == {"name": "seed", "values": [5, 9]}


def flat(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Gray pictures with a recipe."""
    images = [Image.new("RGB", size, (100 + i, 100, 100)) for i in range(count)]
    for i, image in enumerate(images):
        image.info["minisd"] = json.dumps({"seed": i})
    return images


def test_labels_stand_beside_their_row_and_over_their_column() -> None:
    """Changing one label changes pixels in its own strip alone, which is white where the label is empty."""
    names = ["one", "two", "six"], ["ten", "old"]
    plain = labelled_sheet(flat(6), *names, {})
    boxes = [cell["box"] for cell in told(plain)["cells"]]
    for axis, place in ((0, 0), (0, 2), (1, 1)):
        changed = [list(labels) for labels in names]
        changed[axis][place] = "."
        other = labelled_sheet(flat(6), *changed, {})
        left, top, right, bottom = ImageChops.difference(plain, other).getbbox()
        x0, y0, x1, y1 = boxes[place if axis == 0 else 3 * place]
        if axis == 0:
            assert x0 <= left < right <= x1 and bottom <= y0
        else:
            assert y0 <= top < bottom <= y1 and right <= x0
    for box in boxes:
        plain.paste("white", box)
    left, top, right, bottom = ImageChops.invert(plain).getbbox()  # what is left of it are labels, none cut off
    assert left > 0 and top > 0 and right < plain.width and bottom < plain.height
    bare = labelled_sheet(flat(6), [""] * 3, [""] * 2, {})
    assert bare.size == (3 * 68 + 4, 2 * 52 + 4)


@pytest.mark.parametrize("size", [12, 20, 32])
def test_labels_are_wrapped_and_lose_words_only_where_they_do_not_fit(size: int) -> None:
    font = ImageFont.load_default(size)
    labels = ["steps 20", "a large red circle to the left of a small blue square", "sampler dpmpp_2m_sde", ""]
    labels += ["W" * 99, "a " * 300, "two\nlines\tand\0more\u2028", "😀 ציור 画 \u200d\u0301", "x" * 10**6, " " * 500]
    for label in labels:
        for width in (20, column_width(label, font), WIDEST * size):
            lines = wrap(label, font, width, LINES)
            assert len(lines) <= LINES
            assert all(font.getlength(line) <= width or line == "…" for line in lines)
            assert all(line.isprintable() for line in lines)
            if "…" not in "".join(lines):
                assert " ".join(lines).split() == "".join(c if c.isprintable() else " " for c in label).split()
    for name in SAMPLER_NAMES:  # a name is one word, and is never cut
        assert wrap(f"sampler {name}", font, WIDEST * size, 1) == [f"sampler {name}"]
    whole = wrap(labels[1], ImageFont.load_default(12), column_width(labels[1], ImageFont.load_default(12)), LINES)
    assert " ".join(whole) == labels[1]


def test_pictures_of_several_sizes_keep_their_pixels_and_do_not_meet() -> None:
    images = [*flat(1, (64, 16)), *flat(1, (16, 64)), *flat(1, (32, 32)), *flat(1, (64, 64))]
    sheet = labelled_sheet(images, ["a", "b"], ["c", "d"], {})
    boxes = [cell["box"] for cell in told(sheet)["cells"]]
    assert [(right - left, bottom - top) for left, top, right, bottom in boxes] == [image.size for image in images]
    assert [sheet.crop(box).tobytes() for box in boxes] == [image.tobytes() for image in images]
    centres = [(left + right, top + bottom) for left, top, right, bottom in boxes]
    assert centres[0][0] == centres[2][0] and centres[1][0] == centres[3][0]
    assert centres[0][1] == centres[1][1] and centres[2][1] == centres[3][1]


@pytest.mark.parametrize(("count", "size"), [(2, (2, 1)), (3, (2, 2)), (4, (2, 2)), (5, (3, 2)), (10, (4, 3))])
def test_a_plain_sheet_is_as_square_as_can_be(count: int, size: tuple[int, int]) -> None:
    columns, rows = size
    assert plain_sheet(flat(count, (8, 6))).size == (columns * 10 + 2, rows * 8 + 2)
