"""Folders of one's own pictures: what is read, what is refused and by which name, and every stage trained on them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from oracles import deviation
from own_pictures import folder_of, noise
from PIL import Image, ImageOps
from safetensors.torch import load_file
from test_folders import Case, case  # noqa: F401  (case is a fixture)
from test_train import tiny_config
from torch import Tensor

import minisd
from minisd.cli import main
from minisd.config import Config
from minisd.train.folder import Folder
from minisd.train.listing import list_folder
from minisd.train.recipe import Recipe
from minisd.weights.load import load

ROOT = Path(__file__).parent.parent


def as_pixels(picture: Image.Image) -> Tensor:
    return rearrange(torch.from_numpy(np.array(picture.convert("RGB"))), "h w c -> c h w").float() / 127.5 - 1


def test_pictures_are_scaled_turned_and_cut_as_pillow_does_it(tmp_path: Path) -> None:
    wide, tall, small, exact = noise(0, 96, 32), noise(1, 40, 60), noise(2, 12, 8), noise(3, 16, 16)
    see_through = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    grey = Image.fromarray(np.full((16, 16), 0x8000, np.uint16))
    folder = folder_of(tmp_path, [wide, tall, small, exact, see_through, grey, wide])
    turned = Image.Exif()
    turned[0x112] = 6  # a quarter turn
    wide.save(folder / "6.png", exif=turned)
    drawn = Folder(list_folder(folder), 16).pictures(range(7), "test")
    fitted = [ImageOps.fit(p, (16, 16), Image.Resampling.LANCZOS) for p in (wide, tall, small, exact)]
    fitted += [Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), (128, 128, 128))]
    fitted += [ImageOps.fit(wide.transpose(Image.Transpose.ROTATE_270), (16, 16), Image.Resampling.LANCZOS)]
    assert drawn.dtype == torch.float32
    for i, picture in enumerate(fitted):  # one level where Pillow scales only what it keeps
        assert (drawn[i] - as_pixels(picture)).abs().max() <= 1.01 / 127.5, i
    assert torch.equal(drawn[3], as_pixels(exact))


def shades(folder: Path, count: int) -> Path:
    """Pictures that can be told apart by their one colour."""
    return folder_of(folder, [Image.new("RGB", (8, 8), (i % 256, i // 256, 0)) for i in range(count)])


def shade(x: Tensor) -> list[int]:
    levels = ((x[:, :2, 0, 0] + 1) * 127.5).round().int()
    return (levels[:, 0] + 256 * levels[:, 1]).tolist()


def test_an_index_shows_what_it_shows_however_it_is_asked(tmp_path: Path) -> None:
    listing = list_folder(shades(tmp_path, 7))
    one, other, again = Folder(listing, 8), Folder(listing, 8, seed=1), Folder(listing, 8, keep=0)
    seen = shade(one.pictures(range(28)))
    assert shade(torch.cat([again.pictures([i]) for i in reversed(range(28))]))[::-1] == seen
    epochs = [seen[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    assert shade(other.pictures(range(28))) != seen
    told = one.captions(range(28), step=5)
    assert told == [f"picture number {i}" for i in seen] == one.captions(range(28), step=6)
    assert shade(one.pictures(range(14), "test")) == [*range(7)] * 2


def test_random_crops_are_the_indexs_own_and_lie_inside(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(96, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2))
    listing = list_folder(folder_of(tmp_path, [ramp]))
    folder = Folder(listing, 32, random_crop=True)
    x = folder.pictures(range(60))
    left = ((x[:, 0, 0, 0] + 1) * 127.5).round()
    assert left.min() < 6 and left.max() > 58 and len(set(left.tolist())) > 25  # of 0..64
    assert torch.equal(x[17:18], folder.pictures([17]))
    assert (x[:, 0, 5, 31] > x[:, 0, 5, 0]).all()
    assert folder.distinct == 16
    assert torch.equal(folder.pictures([0, 1], "test"), Folder(listing, 32).pictures([3, 4]))


@pytest.mark.parametrize("sides", [(1, 3000), (3000, 1), (1, 1)])
def test_a_line_of_pixels_does_not_fill_the_memory(sides: tuple[int, int], tmp_path: Path) -> None:
    """Enlarged as a whole, one pixel by 60,000 would take 47 GB at 512 x 512."""
    ramp = Image.linear_gradient("L").resize(sides).convert("RGB")
    listing = list_folder(folder_of(tmp_path, [ramp]))
    middle = Folder(listing, 32)
    assert middle.scaled(listing.entries[0]).shape == (32, 32, 3)
    assert (
        middle.pictures([0], "test") - as_pixels(ramp)[:, sides[1] // 2, sides[0] // 2].view(3, 1, 1)
    ).abs().max() < 0.1
    anywhere = Folder(listing, 32, random_crop=True)
    assert max(anywhere.scaled(listing.entries[0]).shape) <= 10 * 32
    assert anywhere.pictures(range(9)).shape == (9, 3, 32, 32)


def test_phrasings_change_with_the_step_and_each_has_its_turn(tmp_path: Path) -> None:
    folder = Folder(list_folder(folder_of(tmp_path, [noise(0, 8, 8)], [["a cat", "the cat", "one cat"]])), 8)
    told = [folder.captions([4], step)[0] for step in range(90)]
    assert {word: told.count(word) > 15 for word in set(told)} == {"a cat": True, "the cat": True, "one cat": True}
    assert told == [folder.captions([4], step)[0] for step in range(90)]


def test_one_in_twenty_is_never_trained_on_whatever_else_lies_there(tmp_path: Path) -> None:
    listing = list_folder(shades(tmp_path, 400))
    train, test = ({entry.name for entry in listing.split(name)} for name in ("train", "test"))
    assert not train & test and len(train | test) == 400
    assert 8 <= len(test) <= 36  # 20 on average
    rows = (tmp_path / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows[:200]))
    assert {entry.name for entry in list_folder(tmp_path).split("test")} == {n for n in test if int(n[:-4]) < 200}
    seen = set(shade(Folder(listing, 8).pictures(range(800))))
    assert seen == {int(name[:-4]) for name in train}
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows[:99]))
    few = list_folder(tmp_path)
    assert few.split("train") == few.split("test") and len(few.split("test")) == 99


def test_a_table_and_folders_within_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    noise(0, 8, 8).save(tmp_path / "deep/er/ä b.png")
    (tmp_path / "metadata.csv").write_text('file_name,text,more\ndeep/er/ä b.png,"a red, and\nround thing",7\n')
    entry = list_folder(tmp_path).entries[0]
    assert (entry.name, entry.captions, entry.size) == ("deep/er/ä b.png", ("a red, and\nround thing",), (8, 8))
    line = json.dumps({"file_name": "deep/er/ä b.png", "text": "x"})
    (tmp_path / "metadata.jsonl").write_text(
        f"\ufeff\n{line}\n\n{line}\n", encoding="utf-8"
    )  # it goes before the table
    assert [entry.captions for entry in list_folder(tmp_path).entries] == [("x",), ("x",)]


GOOD = '{"file_name": "0.png", "text": "x"}\n'
BAD = [
    ("{GOOD}{{\n", "metadata.jsonl:2: not valid JSON"),
    ("{GOOD}[1]\n", "metadata.jsonl:2: an object with file_name and text is wanted, not [1]"),
    ('{GOOD}\n{{"file_name": "0.png"}}\n', "metadata.jsonl:3: 'text' is missing: there is file_name"),
    ('{{"text": "x", "image": "0.png"}}\n', "metadata.jsonl:1: 'file_name' is missing: there is text, image"),
    ('{{"file_name": "0.png", "text": null}}\n', "metadata.jsonl:1: 'text' is missing"),
    (
        '{{"file_name": "0.png", "text": 3}}\n',
        "text must be a caption, or a list of phrasings, not 3",
    ),
    ('{{"file_name": "0.png", "text": []}}\n', "text must be a caption, or a list of phrasings, not []"),
    ('{{"file_name": "0.png", "text": ["a", 1]}}\n', "text must be a caption, or a list of phrasings, not ['a', 1]"),
    ('{{"file_name": 5, "text": "x"}}\n', "file_name must be a path, not 5"),
    ('{{"file_name": " ", "text": "x"}}\n', "file_name must be a path, not ' '"),
    ('{GOOD}{{"file_name": "no.png", "text": "x"}}\n', "metadata.jsonl:2: there is no file '{home}/no.png'"),
    ('{{"file_name": "empty.png", "text": "x"}}\n', "{home}/empty.png is empty"),
    ('{{"file_name": "words.png", "text": "x"}}\n', "metadata.jsonl:1: {home}/words.png is not a picture in one of"),
    ('{{"file_name": "short.png", "text": "x"}}\n', "{home}/short.png"),
    ('{{"file_name": "sub", "text": "x"}}\n', "{home}/sub is a folder or a device, not a file"),
    ('{{"file_name": "../out.png", "text": "x"}}\n', "'../out.png' lies outside the folder {home}"),
    ('{{"file_name": "sub/../../out.png", "text": "x"}}\n', "lies outside the folder {home}"),
    ('{{"file_name": "{home}/../out.png", "text": "x"}}\n', "lies outside the folder {home}"),
    ('{{"file_name": "link.png", "text": "x"}}\n', "'link.png' lies outside the folder {home}"),
    ('{{"file_name": "{long}.png", "text": "x"}}\n', "metadata.jsonl:1: File name too long: {home}/nnn"),
    ("{bytes}\n", "metadata.jsonl:1: not UTF-8 text"),
    ('{{"file_name": "\\udcff.png", "text": "x"}}\n', "metadata.jsonl:1: file_name must be a path, not '\\udcff.png'"),
    ("\n \n", "metadata.jsonl lists no pictures"),
    (None, "has no metadata.jsonl (and no metadata.csv): lines such as"),
]


@pytest.mark.parametrize(("lines", "told"), BAD)
def test_what_is_wrong_is_one_line_with_its_file(
    lines: str | None, told: str, tmp_path: Path, no_loading: None, capsys: pytest.CaptureFixture
) -> None:
    home = folder_of(tmp_path / "home", [noise(0, 8, 8)])
    noise(0, 8, 8).save(tmp_path / "out.png")
    (home / "sub").mkdir()
    (home / "link.png").symlink_to(tmp_path / "out.png")
    (home / "empty.png").touch()
    (home / "words.png").write_text("no picture")
    (home / "short.png").write_bytes((home / "0.png").read_bytes()[:20])
    if lines is None:
        (home / "metadata.jsonl").unlink()
    else:
        fill = {"GOOD": GOOD, "home": home, "long": "n" * 300, "bytes": "\udcff"}
        (home / "metadata.jsonl").write_text(lines.format(**fill), encoding="utf-8", errors="surrogateescape")
    assert main(["train", "lora", "--data", str(home), "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("minisd: ")
    assert told.format(home=home)[:200] in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("0.png,a cat, black", "metadata.csv:2: [' black'] lies beyond the last column"),
        ("0.png", "metadata.csv:2: 'text' is missing"),
        ('0.png,x\n0.png,"x', "metadata.csv: not a table of UTF-8 text after line 2: unexpected end"),
        ("0.png,caf\udce9", "metadata.csv: not a table of UTF-8 text after line 0: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_in_a_table_is_told(rows: str, told: str, tmp_path: Path) -> None:
    """A caption would lose what follows its comma."""
    folder_of(tmp_path, [noise(0, 8, 8)])
    (tmp_path / "metadata.jsonl").unlink()
    table = tmp_path / "metadata.csv"
    table.write_text(f"\ufefffile_name,text\n{rows}\n", encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as refused:
        list_folder(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/{told}")


def test_empty_captions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list_folder(folder_of(tmp_path, [noise(i, 8, 8) for i in range(4)], ["x", "", ["y", " "], ["z"]]))
    assert caplog.messages == ["2 of 4 pictures have an empty caption"]


def test_a_picture_damaged_further_down_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [noise(i, 64, 64) for i in range(3)])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:5000])
    listing = list_folder(folder)
    with pytest.raises(ValueError, match=r"1\.png cannot be read as a picture"):
        Folder(listing, 8).pictures(range(3))


def test_where_the_metadata_lies_deeper_it_is_told(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", [noise(0, 8, 8)])
    with pytest.raises(ValueError, match=r"there is one in .*train"):
        list_folder(tmp_path)


def test_the_latents_kept_are_those_of_these_pictures(tmp_path: Path) -> None:
    keys = set()
    for changed in (lambda: None, lambda: noise(9, 8, 9).save(tmp_path / "0.png")):
        changed()
        listing = list_folder(folder_of(tmp_path, [noise(i, 8, 8) for i in range(2)]) if not keys else tmp_path)
        keys |= {Folder(listing, 8).key, Folder(listing, 16).key, Folder(listing, 8, random_crop=True).key}
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("change", "told"),
    [("unet.steps=5", (5, 1e-3)), ("unet.lr=3e-4", (15500, 3e-4)), (" unet.lr = 1 ", (15500, 1.0))],
)
def test_a_field_of_the_recipe_can_be_set(change: str, told: tuple[int, float]) -> None:
    unet = Recipe.load(ROOT / "configs/train/shapes.toml", [change]).unet
    assert (unet.steps, unet.lr) == told
    assert Recipe.load(ROOT / "configs/train/finetune.toml", ["lora.base=bf16"]).lora.base == "bf16"


@pytest.mark.parametrize("change", ["unet.stepz=5", "unet.steps", "=5", "unet.steps=many", "size.x=3", "lora.base=fp8"])
def test_a_field_that_is_not_there_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=change.partition("=")[0].rpartition(".")[2] or change):
        Recipe.load(ROOT / "configs/train/shapes.toml", [change])


ABSURD = ["lora.alpha=0.0", "lora.alpha=-1.0", "unet.drop_prompt=1.5", "unet.text_lr=-0.1", "unet.snr_gamma=0.0"]


@pytest.mark.parametrize("change", [*ABSURD, "unet.time_power=0.0"])
def test_a_number_that_makes_no_sense_is_refused(change: str) -> None:
    """Some would train nothing, one would fall out of the noise table."""
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match=f"{name.partition('.')[2]} {value} must"):
        Recipe.load(ROOT / "configs/train/shapes.toml", [change])


TINY = {"steps": 2, "batch": 2, "warmup": 1, "save_every": 2, "grid_every": 2, "autocast": "false"}


def sets(*stages: str, **more: object) -> list[str]:
    """Flags that make stages short."""
    changes = [f"{stage}.{key}={value}" for stage in stages for key, value in TINY.items()]
    changes += [f"{key.replace('__', '.')}={value}" for key, value in more.items()]
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with words of their own."""
    captions = ["a zebra", ["a lemur", "one lemur"], "two okapis", "a quokka at dusk"]
    return folder_of(tmp_path_factory.mktemp("pictures"), [noise(i, 20, 16) for i in range(4)], captions)


def test_every_stage_learns_from_a_folder_alone(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    """From a tokenizer that knows the folder's words to a model that draws; the world is never asked."""
    (tmp_path / "tiny.json").write_text(tiny_config().to_json())
    (tmp_path / "recipe.toml").write_text(
        (ROOT / "configs/train/shapes.toml").read_text().replace("../shapes.json", "tiny.json")
    )
    monkeypatch.setattr("minisd.train.job.World", lambda *_: pytest.fail("the world"))
    short = sets("clip", "vae", "unet", size=16, clip__sketch_steps=1, clip__width=32, clip__layers=1, unet__unseen=3)
    for stage in ("tokenizer", "clip", "vae", "unet", "export"):
        argv = ["train", stage, "--data", str(pictures), "--recipe", str(tmp_path / "recipe.toml"), "--device", "cpu"]
        assert main([*argv, "--out", str(tmp_path / "run"), *short]) == 0
    model = minisd.load(tmp_path / "run/model", device="cpu")
    assert all(len(model.tokenizers[0].content(word)) == 1 for word in ("zebra", "lemur", "okapis", "quokka"))
    assert len(load_file(tmp_path / "run/latents/00000000.safetensors")["latents"]) == 4
    assert minisd.generate(model, "a zebra", output="tensor", width=16, height=16).isfinite().all()


@pytest.mark.parametrize(
    ("family", "kind", "rate"), [("sd1", "folder", 1e-12), ("sd1", "file", 1e-3), ("sd2-v", "folder", 1e-3)]
)
def test_the_unet_of_a_foreign_checkpoint_is_trained_on(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    kind: str,
    rate: float,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """What is exported is the model with another UNet, and at a learning rate of next to nothing the model itself."""
    one, out = case(family), str(tmp_path / "run")
    source = [str(one.folder)] if kind == "folder" else [str(one.file), "--tokenizer", str(one.folder / "tokenizer")]
    short = sets("unet", size=16, unet__lr=rate, unet__ema=0.28, unet__unseen=2, unet__shown=1)
    argv = ["train", "unet", "--data", str(pictures), "--init", *source, "--out", out, "--device", "cpu", *short]
    assert main(argv) == 0
    assert main(["train", "export", "--out", out]) == 0
    before, after = (load(folder, dtype="fp32") for folder in (one.folder, Path(out) / "model"))
    for name in ("text", "unet", "vae", "noise"):
        assert getattr(before.config, name) == getattr(after.config, name)
    assert kind == "file" or before.config == after.config
    for name in ("text", "vae"):
        now = getattr(after, name).state_dict()
        assert all(torch.equal(now[k], v.half().float()) for k, v in getattr(before, name).state_dict().items())
    now, was = after.unet.state_dict(), before.unet.state_dict()
    far = max(deviation(now[k], was[k]) for k in was)
    assert far < 1e-3 if rate == 1e-12 else 1e-2 < far < 1  # half precision keeps eleven bits


def test_a_run_that_started_from_a_model_goes_on_by_the_same_command(
    pictures: Path, tmp_path: Path, tiny_model
) -> None:
    argv = ["train", "unet", "--data", str(pictures), "--init", str(tiny_model), "--out", str(tmp_path / "run")]
    argv += [*sets("unet", size=16, unet__unseen=2, unet__shown=1), "--device", "cpu"]
    assert main(argv) == 0
    assert main(argv) == 2
    assert main([*argv, "--resume", "--set", "unet.steps=3"]) == 0
    rows = (tmp_path / "run/unet.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2]
    assert Config.load(tmp_path / "run/config.json") == Config.load(tiny_model / "config.json")


def test_a_vae_that_a_unet_knows_keeps_its_latents(pictures: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Only the decoder is tuned, and the scale factor stays."""
    argv = ["train", "vae", "--data", str(pictures), "--init", str(tiny_model), "--out", str(tmp_path)]
    argv += ["--device", "cpu"]
    assert main([*argv, *sets("vae", size=16, vae__ema=0.28)]) == 0
    assert main(["train", "export", "--out", str(tmp_path)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "model"))
    moved = {k for k in before if not torch.equal(before[k].half(), after[k])}
    assert moved and all(k.startswith(("vae.decoder.", "vae.post_quant.")) for k in moved)
    assert Config.load(tmp_path / "model/config.json") == Config.load(tiny_model / "config.json")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("unet --init {xl}", "SDXL): train a LoRA"),
        ("unet --init {inpainting}", "made for inpainting"),
        ("lora -m {inpainting}", "made for inpainting"),
        ("lora -m {sd1} --set size=17", "size 17 is not a multiple of 2"),
        ("lora -m {sd1} --set lora.layers=['to_w']", "no linear layer of the unet has such a name"),
        ("lora -m {sd1}/nowhere", "there is no model"),
        ("lora -m {sd1} --ema", "ema is for a single file"),
        ("lora --tokenizer {sd1}/tokenizer", "tokenizer says how a model is read: name it, -m"),
        ("unet --init {sd1} --rank 3", "--rank is for lora"),
        ("clip --init {sd1}", "clip cannot start from a model: a model holds no image tower"),
        ("tokenizer --init {sd1}", "tokenizer cannot start from a model"),
        ("lora --rank 0", "lora.rank must not be 0"),
        ("clip --recipe {finetune}", "finetune.toml has no section [clip]"),
        ("unet --recipe {finetune}", "names no model config: start from a model, --init MODEL"),
        ("lora -m {sd1} --data {sd1}", "has no metadata.jsonl"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(
    case: Callable[[str], Case],  # noqa: F811
    line: str,
    told: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    fill = {name: case(name).folder for name in ("sd1", "inpainting")} | {"xl": case("sdxl").folder}
    words = line.format(**fill, finetune=ROOT / "configs/train/finetune.toml").split()
    data = [] if "--data" in words else ["--data", str(pictures)]
    assert main(["train", *words, *data, "--out", str(tmp_path / "run"), "-q", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("minisd: ") == 1
