"""Pictures on the command line: what does not fit is one line and exit 2; what fits comes out as Python draws it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisd
from minisd.cli import main
from minisd.picture import describe, outpaint, read_mask, read_picture

# Each line is what follows `generate x`; {f} is the folder of `files`.
BAD = r"""
-i
-i {f}/missing.png
-i {f}
-i {f}/fifo
-i {f}/empty.png
-i {f}/text.txt
-i {f}/drawing.svg
-i {f}/cut.png
-i {f}/bomb.png
-i {f}/nul{nul}byte
-i {f}/{long}.png
-i ''
--image {f}/missing.png
--init-image {f}/text.txt
--strength 0.5
--strength 0.5 --hires 2
--mask {f}/mask.png
--mask-blur 2
--mask-blur 2 -i {f}/a.png
--outpaint 0,0,16,0
-i {f}/a.png --strength -0.1
-i {f}/a.png --strength 1.1
-i {f}/a.png --strength nan
-i {f}/a.png --strength half
-i {f}/a.png --strength 1e-999999
-i {f}/a.png -W 66
-i {f}/a.png --mask {f}/missing.png
-i {f}/a.png --mask {f}/text.txt
-i {f}/a.png --mask {f}/other-size.png
-i {f}/a.png --mask {f}/mask.png --mask-blur -1
-i {f}/a.png --mask {f}/mask.png --mask-blur 1001
-i {f}/a.png --mask {f}/mask.png --outpaint 0,0,16,0
-i {f}/a.png --mask {f}/mask.png --hires 2
-i {f}/a.png --outpaint 0,0,0,0
-i {f}/a.png --outpaint 16
-i {f}/a.png --outpaint 0,0,16
-i {f}/a.png --outpaint 0,0,-16,0
-i {f}/a.png --outpaint 0,0,1e2,0
-i {f}/a.png --outpaint 0,0,10,0
-i {f}/a.png --outpaint 0,0,99999,0
-i {f}/a.png --outpaint 0,0,64,0 -W 64
-i {f}/a.png --outpaint 0,0,16384,0
-i {f}/a.png --outpaint 0,0,16,0 --hires 2
--hires 0.5
--hires 9
--hires nan
--hires 2x
--hires 8 -W 4096
--hires-strength 0.5
--hires-steps 5
--hires-upscale latent
--hires 2 --hires-strength 2
--hires 2 --hires-steps 0
--hires 2 --hires-steps 1.5
--hires 2 --hires-upscale lanczos
""".strip().splitlines()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of each kind, and what is none."""
    folder = tmp_path_factory.mktemp("pictures")
    a = Image.effect_noise((64, 64), 40).convert("RGB")
    a.paste((200, 30, 60), (10, 20, 40, 50))
    a.save(folder / "a.png")
    a.save(folder / "animated.gif", save_all=True, append_images=[a.rotate(90)])
    a.resize((80, 48)).save(folder / "wide.png")
    a.resize((800, 600)).save(folder / "photo.jpg")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(folder / "mask.png")
    mask.resize((64, 60)).save(folder / "other-size.png")
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-500])
    (folder / "empty.png").touch()
    (folder / "text.txt").write_text("a text\n")
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>')
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture
def draw(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`minisd generate x` by the tiny model: the picture, what it says of itself, and what was noted."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[np.ndarray, dict, str]:
        words = ["generate", "a red circle", *map(str, argv), "--seed", "3", "-o", "x.png", "--overwrite"]
        assert main([*words, "--model", str(tiny_model), "--device", "cpu"]) == 0
        with Image.open("x.png") as picture:
            return np.asarray(picture).astype(int), json.loads(picture.info["minisd"]), capsys.readouterr().err

    return run


def words(line: str, files: Path) -> list[str]:
    return [word.format(f=files, nul="\0", long="n" * 300) for word in shlex.split(line)]


@pytest.mark.parametrize("line", BAD)
def test_bad_pictures_are_one_line_and_exit_2_before_any_model(
    line: str, files: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, at_once: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.weights.folder.load", lambda *args, **kwargs: pytest.fail("reached the model"))
    assert main(["generate", "x", *words(line, files), "--model", str(tiny_model)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(r"minisd: [^\n]{10,400}\n", err), err
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "outputs"])


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("-i {f}/drawing.svg", "save it as a PNG"),
        ("-i {f}/bomb.png", "9000 x 9000 pixels are more than 64 million"),
        ("-i {f}/missing.png", "there is no file"),
        ("--strength 0.5", "--strength means nothing without --init-img"),
        ("--mask {f}/mask.png", "--mask means nothing without --init-img"),
        ("-i {f}/a.png --mask-blur 2", "--mask-blur means nothing without --mask or --outpaint"),
        ("-i {f}/a.png --mask {f}/other-size.png", "64 x 60 pixels, the picture 64 x 64 pixels"),
        ("-i {f}/a.png --strength 1.1", "--strength 1.1 must be a number in 0..1"),
        ("-i {f}/a.png --outpaint -4,0,0,0", "'-4,0,0,0' is not LEFT,TOP,RIGHT,BOTTOM"),
        ("-i {f}/a.png --outpaint 0,0,10,0", "the nearest are 8 and 12"),
        ("-i {f}/a.png --outpaint 0,0,64,0 -W 64", "leaves 0 x 64 pixels"),
        ("--hires 2 --hires-upscale laten", "did you mean latent?"),
        ("--init-image {f}/text.txt", "PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM"),
        ("-i {f}/a.png --stength 0.5", "did you mean --strength?"),
    ],
)
def test_the_one_line_shows_the_way_out(line: str, hint: str, files: Path, tiny_model: Path, capsys) -> None:
    assert main(["generate", "x", *words(line, files), "--model", str(tiny_model)]) == 2
    assert hint in capsys.readouterr().err


def test_bad_pictures_do_not_import_torch(files: Path, tiny_model: Path) -> None:
    script = """if True:
        import sys
        from minisd.cli import main
        codes = [main(line.split()) for line in sys.argv[1:]]
        sys.exit(f"{codes} {'torch' in sys.modules}")
    """
    lines = ["--strength 0.5", "-i {f}/text.txt", "-i {f}/bomb.png", "-i {f}/a.png --strength 2"]
    lines += ["-i {f}/a.png --mask {f}/other-size.png", "-i {f}/a.png --outpaint 0,0,10,0", "--hires 0"]
    lines = [f"generate x --model {tiny_model} {line.format(f=files)}" for line in lines]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"{[2] * len(lines)} False"


def test_flags_draw_what_python_draws(files: Path, tiny_model: Path, draw) -> None:
    model = minisd.load(tiny_model, device="cpu")
    a, mask = read_picture(files / "a.png"), read_mask(files / "mask.png")
    large, around = outpaint(a, 8, 0, 16, 4)
    for line, given in (
        ("-i {f}/a.png", {"image": a}),
        ("--image {f}/a.png --strength 0.5", {"image": a, "strength": 0.5}),
        ("-i {f}/wide.png -H 32", {"image": read_picture(files / "wide.png"), "height": 32}),
        ("-i {f}/a.png --mask {f}/mask.png --mask-blur 2", {"image": a, "mask": mask, "mask_blur": 2.0}),
        ("-i {f}/a.png --outpaint 8,0,16,4", {"image": large, "mask": around}),
        ("--hires 1.5 --hires-steps 6", {"hires": 1.5, "hires_steps": 6}),
        ("--hires 2 --hires-strength 0.75 --hires-upscale latent -i {f}/a.png --strength 0.5",
         {"hires": 2.0, "hires_strength": 0.75, "hires_upscale": "latent", "image": a, "strength": 0.5}),
    ):  # fmt: skip
        pixels, said, _ = draw(*words(line, files))
        (wanted,) = minisd.generate(model, "a red circle", seed=3, **given)
        assert np.array_equal(pixels, np.asarray(wanted)), line
        assert said == json.loads(wanted.info["minisd"]), line


def test_the_recipe_is_enough_to_ask_for_the_same_again(files: Path, draw) -> None:
    """Named sizes, as a recipe has them, mean the same as those the picture brought along."""
    first, said, _ = draw("-i", files / "wide.png", "--outpaint", "0,4,8,0")
    assert said["image"]["name"] == "wide.png" and (said["width"], said["height"]) == (88, 52)
    margins = ",".join(map(str, said["outpaint"]))
    size = ("-W", said["width"], "-H", said["height"])
    again, _, _ = draw("-i", files / "wide.png", "--outpaint", margins, "--strength", said["strength"], *size)
    assert np.array_equal(first, again)


def test_a_recipe_tells_the_picture_as_it_was_read(files: Path, draw) -> None:
    wanted = describe(read_picture(files / "photo.jpg"))
    for more in ([], ["-W", "32"], ["--outpaint", "0,0,8,0"]):
        assert draw("-i", files / "photo.jpg", "--strength", "0.25", *more)[1]["image"] == wanted


def test_outpainting_keeps_every_pixel_of_the_picture(files: Path, draw) -> None:
    pixels, _, _ = draw("-i", files / "a.png", "--outpaint", "8,0,16,4")
    assert pixels.shape == (68, 88, 3)
    assert np.array_equal(pixels[:64, 8:72], np.asarray(Image.open(files / "a.png")))


def test_frames_and_steps_that_are_left_out_are_noted(files: Path, draw) -> None:
    _, _, said = draw("-i", files / "animated.gif", "--strength", "0.1")
    assert "minisd: note: " in said and "several frames: the first is taken" in said
    assert "strength 0.1 of 4 steps runs none" in said and " is drawn at " not in said
    _, _, said = draw("-i", files / "photo.jpg")
    assert "the picture of 800 x 600 pixels is drawn at 72 x 52" in said


def test_image_i_from_a_picture_is_that_of_seed_plus_i(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    common = ["--model", str(tiny_model), "--outdir", str(tmp_path), "-i", str(files / "a.png"), "--sampler", "euler_a"]
    assert main(["generate", "x", *common, "--seed", "5", "-N", "2"]) == 0
    assert main(["generate", "x", *common, "--seed", "6"]) == 0
    second, alone = ((tmp_path / name).read_bytes() for name in ("00001-6.png", "00002-6.png"))
    assert second == alone
