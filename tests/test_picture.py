"""Reading pictures: every mode and orientation as numpy works it out, and odd or hostile files in one line."""

import logging
import os
import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from minisd.config import Config, Defaults
from minisd.picture import MAX_PIXELS, as_mask, as_rgb, describe, fit, own_size, read_mask, read_picture

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (24, 20, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = RGB[..., 1]
INDICES = np.arange(24 * 20).reshape(24, 20) % 24
DEEP = RANDOM.integers(0, 65536, (24, 20), dtype=np.uint16)


def array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def over(values: np.ndarray, alpha: np.ndarray, ground: int) -> np.ndarray:
    """Laid on a ground: (h, w, 3)."""
    share = alpha[..., None] / 255
    return share * values + (1 - share) * ground


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def palette() -> Image.Image:
    """Colour i is RGB's pixel i of the first column; a (24, 20) picture of its indices."""
    picture = Image.fromarray(INDICES.astype(np.uint8), "P")
    picture.putpalette(RGB[:, 0].reshape(-1).tolist())
    return picture


def png(width: int, height: int, depth: int, kind: int, rows: bytes = b"") -> bytes:
    """A PNG by hand; without rows, its header promises pixels that are not there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


DEEP_ROWS = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in DEEP)
CMYK = RANDOM.integers(0, 256, (24, 20, 4), dtype=np.uint8)
KINDS = {  # a picture, its format and how to save it, what it shows
    "RGB": (Image.fromarray(RGB), "PNG", {}, RGB),
    "L": (Image.fromarray(GREY), "PNG", {}, grey(GREY)),
    "1": (Image.fromarray(GREY > 99), "PNG", {}, grey(255 * (GREY > 99))),
    "P": (palette(), "PNG", {}, RGB[:, 0][INDICES]),
    "P with a clear colour": (palette(), "PNG", {"transparency": 5}, None),
    "P, GIF": (palette(), "GIF", {}, RGB[:, 0][INDICES]),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), "PNG", {}, over(RGB, ALPHA, 255)),
    "RGBA, WebP": (Image.fromarray(np.dstack([RGB, ALPHA])), "WEBP", {"lossless": True, "exact": True}, None),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "PNG", {}, over(grey(GREY), ALPHA, 255)),
    "16 bits": (Image.fromarray(DEEP), "PNG", {}, grey(DEEP / 257)),
    "16 bits, TIFF": (Image.fromarray(DEEP), "TIFF", {}, grey(DEEP / 257)),
    "CMYK": (Image.fromarray(CMYK, "CMYK"), "TIFF", {}, (255 - CMYK[..., :3]) * ((255.0 - CMYK[..., 3:]) / 255)),
    "BMP": (Image.fromarray(RGB), "BMP", {}, RGB),
    "PPM": (Image.fromarray(RGB), "PPM", {}, RGB),
}
KINDS["RGBA, WebP"] = (*KINDS["RGBA, WebP"][:3], KINDS["RGBA"][3])
KINDS["P with a clear colour"] = (
    *KINDS["P with a clear colour"][:3],
    np.where((INDICES == 5)[..., None], 255, RGB[:, 0][INDICES]),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_is_read_as_what_it_shows(kind: str, tmp_path: Path) -> None:
    picture, format_, options, shown = KINDS[kind]
    picture.save(tmp_path / "x", format_, **options)
    read = read_picture(tmp_path / "x")
    assert read.mode == "RGB"
    assert np.abs(array(read) - shown).max() <= (0 if shown.dtype.kind in "iu" else 1)
    assert np.array_equal(array(as_rgb(read)), array(read))


def test_sixteen_bits_a_channel(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(png(20, 24, 16, 2, DEEP_ROWS))
    assert np.abs(array(read_picture(tmp_path / "x")) - grey(DEEP / 257)).max() < 1


TURNS = {  # the EXIF orientation: what a viewer shows of the stored array
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_exif_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format_, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        Image.fromarray(RGB).save(tmp_path / "x", format_, exif=exif, **options)
        assert np.array_equal(array(read_picture(tmp_path / "x")), TURNS[orientation](RGB))
    Image.fromarray(DEEP).save(tmp_path / "x", "PNG", exif=exif)
    assert np.array_equal(array(read_mask(tmp_path / "x")), TURNS[orientation]((DEEP + 128) // 257))


def test_a_mask_is_white_where_it_is_drawn_anew(tmp_path: Path) -> None:
    """Transparent parts stay: strokes of white on nothing are a mask."""
    alpha = np.where(GREY > 128, 255, 0).astype(np.uint8)
    white = Image.merge("RGBA", [Image.new("L", (20, 24), 255)] * 3 + [Image.fromarray(alpha)])
    for picture in (white, Image.fromarray(alpha), Image.fromarray(alpha).convert("1"), white.convert("LA")):
        picture.save(tmp_path / "x", "PNG")
        mask = read_mask(tmp_path / "x")
        assert mask.mode == "L" and np.array_equal(array(mask), alpha)
        assert np.array_equal(array(as_mask(mask)), alpha)


def test_the_first_frame_of_several_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(RGB).rotate(180)]
    for format_, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        caplog.clear()
        frames[0].save(tmp_path / "x", format_, save_all=True, append_images=frames[1:], **options)
        with caplog.at_level(logging.INFO, "minisd"):
            assert np.array_equal(array(read_picture(tmp_path / "x")), RGB)
        assert "several frames: the first is taken" in caplog.text


def saved(format_: str, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(RGB).save(file, format_, **options)
    return file.getvalue()


def bomb(path: Path) -> None:
    path.write_bytes(png(8001, 8000, 1, 0))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {  # what makes the file, what is said
    "missing": (lambda path: None, "there is no file"),
    "a folder": (lambda path: path.mkdir(), "is a folder or a device"),
    "a pipe": (lambda path: os.mkfifo(path), "is a folder or a device"),
    "empty": (lambda path: path.touch(), "is empty"),
    "a text": (lambda path: path.write_text("a red circle"), "is not a picture in one of PNG, JPEG"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><p>"), "is not a picture"),
    "SVG": (lambda path: path.write_text('<?xml version="1.0"?><svg xmlns="x"/>'), "an SVG drawing"),
    "PostScript": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "is not a picture",
    ),
    "64,008,000 pixels": (bomb, "8001 x 8000 pixels are more than 64 million"),
    "10 billion pixels": (lambda path: path.write_bytes(png(100_000, 100_000, 1, 0)), "exceeds limit"),
    "PNG without pixels": (lambda path: path.write_bytes(png(9, 9, 8, 2)), "cannot be read"),
    "cut PNG": (lambda path: path.write_bytes(saved("PNG")[:-200]), "cannot be read"),
    "cut JPEG": (lambda path: path.write_bytes(saved("JPEG")[:-200]), "cannot be read"),
    "cut WebP": (lambda path: path.write_bytes(saved("WEBP")[:-200]), "cannot be read"),
    "cut BMP": (lambda path: path.write_bytes(saved("BMP")[:-200]), "cannot be read"),
    "cut header": (lambda path: path.write_bytes(saved("PNG")[:20]), "x"),
    "fractions": (lambda path: Image.new("F", (4, 4)).save(path, "TIFF"), "fractions of no known range"),
    "32 bits": (lambda path: Image.new("I", (4, 4), 70000).save(path, "TIFF"), "pixels of 32 bits"),
    "a text bomb": (lambda path: path.write_bytes(text_bomb()), "cannot be read"),
}


def text_bomb() -> bytes:
    """3 kB that unfold to 3 MB of text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 3_000_000, zip=True)
    return saved("PNG", pnginfo=info)


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_told_in_one_line(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    make, said = BAD[kind]
    make(tmp_path / "x")
    for reader in (read_picture, read_mask):
        with pytest.raises(ValueError) as error:
            reader(tmp_path / "x")
        message = str(error.value)
        assert said in message and str(tmp_path / "x") in message and "\n" not in message
    assert capfd.readouterr().err == ""


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("unpacked"))
    bomb(tmp_path / "x")
    with pytest.raises(ValueError, match="more than 64 million"):
        read_picture(tmp_path / "x")
    assert 8000 * 8000 <= MAX_PIXELS < 8001 * 8000


def test_what_cannot_be_opened_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        read_picture(tmp_path / "x")


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """300 files with bytes changed or cut off: a picture, or a ValueError that names the file."""
    rng, refused = random.Random(0), 0
    whole = [saved(f) for f in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")]
    for i in range(300):
        data = bytearray(whole[i % len(whole)])
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(len(data))] if rng.random() < 0.3 else data
        (tmp_path / "x").write_bytes(data)
        try:
            assert read_picture(tmp_path / "x").mode == "RGB"
        except ValueError as error:
            assert str(tmp_path / "x") in str(error)
            refused += 1
    assert 100 < refused < 250


def ramp(width: int, height: int) -> np.ndarray:
    """Each pixel's own place in its first two channels: x and y of its middle, two levels a pixel."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.dstack([2 * x, 2 * y, np.zeros_like(x)])


@pytest.mark.parametrize("size, target", [((100, 80), (40, 20)), ((60, 100), (48, 48)), ((50, 50), (100, 60))])
def test_fit_covers_and_cuts_centrally(size: tuple[int, int], target: tuple[int, int]) -> None:
    """A pixel shows the place that it lies at, measured from the middle, in one scale for both sides."""
    (w, h), (width, height) = size, target
    scale = max(width / w, height / h)
    result = array(fit(Image.fromarray(ramp(w, h).round().astype(np.uint8)), width, height))
    y, x = np.mgrid[:height, :width] + 0.5
    wanted = np.dstack([2 * ((x - width / 2) / scale + w / 2), 2 * ((y - height / 2) / scale + h / 2)])
    inner = (slice(3, -3), slice(3, -3))  # at the edge the filter has one side only
    assert result.shape == (height, width, 3)
    assert np.abs(result[..., :2] - wanted)[inner].max() <= 1.5


def test_fit_leaves_a_picture_of_that_size_alone_and_cuts_a_little() -> None:
    picture = Image.fromarray(RGB)
    assert np.array_equal(array(fit(picture, 20, 24)), RGB)
    assert np.array_equal(array(fit(picture, 16, 20)), RGB[2:22, 2:18])
    assert np.array_equal(array(fit(picture, 17, 24)), RGB[:, 1:18])


def test_a_scaled_mask_keeps_black_and_white() -> None:
    mask = Image.new("L", (100, 100))
    mask.paste(255, (50, 0, 100, 100))
    small = array(fit(mask, 30, 30))
    assert set(small[:, :13].flat) == {0} and set(small[:, 17:].flat) == {255}  # nothing rings


def test_own_size() -> None:
    mini, sd = (Config("x", defaults=Defaults(width=side, height=side)) for side in (64, 512))
    assert own_size(mini, 64, 64) == (64, 64)
    assert own_size(mini, 128, 128) == (128, 128)  # four times the area
    assert own_size(mini, 136, 128) == (64, 56)
    assert own_size(sd, 1000, 800) == (1000, 800)
    assert own_size(sd, 1023, 805) == (1016, 800)
    assert own_size(sd, 4000, 3000) == (584, 440)
    assert own_size(sd, 64, 64) == (512, 512)
    assert own_size(sd, 9000, 3) == (28040, 8)  # which `resolve` refuses
    for width in range(1, 3000, 37):
        for height in (100, 333, 1024):
            w, h = own_size(sd, width, height)
            kept = 512 * 512 / 4 <= width * height <= 512 * 512 * 4
            assert w % 8 == h % 8 == 0 and (not kept or (0 <= width - w < 8 and 0 <= height - h < 8))
            if not kept and min(w, h) > 80:  # the model's own area, the picture's own shape, but for rounding
                assert 0.8 < w * h / 512**2 <= 1 and 0.9 < w / h / (width / height) < 1.1


def test_a_picture_is_known_by_its_pixels(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    a, b = (describe(read_picture(tmp_path / name)) for name in ("a.png", "b.bmp"))
    assert (a["name"], b["name"], a["sha256"]) == ("a.png", "b.bmp", b["sha256"])
    assert describe(picture.rotate(180))["sha256"] != a["sha256"] and "name" not in describe(picture)
    tall = Image.fromarray(RGB.reshape(20, 24, 3))
    assert tall.tobytes() == picture.tobytes() and describe(tall)["sha256"] != a["sha256"]
    info = PngImagePlugin.PngInfo()
    info.add_text("about", "a text of that name inside a file is not meant")
    picture.save(tmp_path / "c.png", pnginfo=info)
    assert describe(read_picture(tmp_path / "c.png")) == {"name": "c.png", "sha256": a["sha256"]}
    with Image.open(tmp_path / "c.png") as opened:
        assert describe(as_rgb(opened)) == {"name": "c.png", "sha256": a["sha256"]}
