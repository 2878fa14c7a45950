"""`--like`: a picture drawn again from its own file has the same pixels, and a flag beside it wins."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd import recipe
from minisd.cli import main
from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES, VERSION
from minisd.image import save
from minisd.pipeline import Model
from minisd.settings import EMPHASIS_NAMES, ETA_SAMPLERS, LONG_PROMPT_NAMES, UPSCALE_NAMES, Options

Run = Callable[..., tuple[list[Path], str]]
WORDS = [
    "a red circle",
    "一只猫",
    "😀👩‍👩‍👧",
    "שלום",
    "(a:1.2)",
    "[b]",
    "\\(",
    "\n",
    ", ",
    ": ",
    '"',
    "<|endoftext|>",
    "\t",
]
WORDS += [
    "\nNegative prompt: z",
    "\na: 1, b: 2, c: 3",
    "Steps: 9, Seed: 9, Size: 9x9",
    "{",
    "é",
    "\0",
    "--seed 4",
    "\ud800",
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, "cpu")


@pytest.fixture
def run(tiny_model: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Run:
    """`minisd generate` in an empty folder, with the tiny model: the printed paths, and what stderr says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.weights.load.load", lambda *_, **__: model)

    def generate(*argv: object, code: int = 0, which: Path | None = tiny_model) -> tuple[list[Path], str]:
        assert main(["generate", *map(str, argv), *(["-m", str(which)] if which else [])]) == code
        out, err = capsys.readouterr()
        return [Path(line) for line in out.splitlines()], err

    return generate


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def stored(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info["minisd"])


def random_call(draw: random.Random, i: int) -> dict[str, Any]:
    """What `generate` takes, for one way to draw the tiny model. Every sampler and every schedule comes up."""

    def words() -> str:
        return "".join(draw.choices(WORDS, k=draw.randrange(6)))

    sampler = SAMPLER_NAMES[i % len(SAMPLER_NAMES)]
    always = {
        "prompt": words(),
        "sampler": sampler,
        "steps": draw.randint(1, 5),
        "num_images": draw.choice([1, 1, 2, 3]),
    }
    always |= {"seed": draw.choice([0, 2**64 - 4, draw.randrange(2**64 - 4)])}
    schedule = SCHEDULE_NAMES[i % len(SCHEDULE_NAMES)]
    maybe = {"schedule": schedule, "cfg_scale": draw.choice([0, 1, 3.7]), "clip_skip": draw.randint(1, 2)}
    maybe |= {"width": 32, "height": draw.choice([32, 96]), "negative_prompt": draw.choice([None, "", words()])}
    maybe |= {"guidance_rescale": draw.random(), "guidance_interval": sorted([draw.random(), draw.random()])}
    maybe |= {"eta": draw.random()} if sampler in ETA_SAMPLERS else {}
    maybe |= {
        "emphasis": draw.choice(EMPHASIS_NAMES),
        "vae_tiling": "on",
        "start_scale": draw.choice(["sigma", "total"]),
    }
    maybe |= {"long_prompt": draw.choice([name for name in LONG_PROMPT_NAMES if name != "error"])}
    maybe |= {"variation_seed": draw.randrange(2**64 - 4), "variation_strength": draw.random()} if i % 5 == 0 else {}
    known = {"prompt", "negative_prompt", *Options.__annotations__}
    together = {"variation_seed", "variation_strength"}
    chosen = {key for key in maybe if key in together or draw.random() < 0.6}
    twice = {"hires": 1.5, "hires_strength": 0.6, "hires_upscale": draw.choice(UPSCALE_NAMES)} if i % 7 == 0 else {}
    return always | twice | {key: value for key, value in maybe.items() if key in known & chosen}


def test_fifty_recipes_drawn_again_from_their_files(model: Model, run: Run) -> None:
    draw, same = random.Random(2026), 0
    for i in range(50):
        pictures = minisd.generate(model, **random_call(draw, i))
        picture = draw.choice(pictures)
        path = Path(f"{i}{draw.choice(['.png', '.png', '.jpg', '.webp'])}")
        save(picture, path)
        (again,), err = run("--like", path, "-o", f"again-{i}.png")
        wanted = picture.info["minisd"].encode("utf-8", "replace").decode("utf-8")
        assert stored(again) == json.loads(wanted), i
        assert "differ" not in err and "not honoured" not in err
        same += pixels(again) == picture.tobytes()
    assert same == 50


def test_recipes_drawn_again_from_their_parameters_text_alone(model: Model, run: Run) -> None:
    """Of files that have lost their JSON. The first says nothing: every default has to be found again."""
    draw = random.Random(7)
    plain = {"prompt": "a (red:1.3) circle AND a star", "num_images": 1}
    for i in range(15):
        picture = minisd.generate(model, **(random_call(draw, i) if i else {}) | plain | {"negative_prompt": "blue"})[0]
        save(picture, Path("a.png"), overwrite=True)
        with Image.open("a.png") as image:
            write_text("b.png", image.info["parameters"])
        ((again,), err) = run("--like", "b.png")
        assert stored(again) == stored(Path("a.png")) and pixels(again) == picture.tobytes()
        assert "note: b.png" not in err


def test_two_lines_of_python_draw_it_again(model: Model, tmp_path: Path) -> None:
    (picture,) = minisd.generate(model, "a cat", seed=5, sampler="euler_a", eta=0.5, guidance_interval=(0.1, 0.9))
    save(picture, tmp_path / "a.jpg")
    again = recipe.read(tmp_path / "a.jpg", model.config)
    (found,) = minisd.generate(model, again.prompt, negative_prompt=again.negative_prompt, **again.options)
    assert found.tobytes() == picture.tobytes()


@pytest.fixture
def first(run: Run) -> Path:
    """A picture that says something of everything."""
    flags = "--sampler ddim --eta 0.5 --schedule karras --steps 3 --cfg-scale 2.5 --clip-skip 2 -W 32 --vae-tiling on"
    ((path,), _) = run("a red circle", "-n", "blue", "--seed", 7, *flags.split(), "-o", "first.png")
    return path


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["a star"], {"prompt": "a star"}),
        (["-p", "a star"], {"prompt": "a star"}),
        (["-n", ""], {"negative_prompt": ""}),
        (["--steps", 2], {"steps": 2}),
        (["--seed", 0], {"seed": 0}),
        (["--cfg", 1], {"cfg_scale": 1.0}),
        (["--schedule", "trailing"], {"schedule": "trailing"}),
        (["--sampler", "euler_a"], {"sampler": "euler_a"}),
        (["--sampler", "heun"], {"sampler": "heun", "eta": None}),  # which has none
        (["--eta", 0], {"eta": 0.0}),
        (["--clip-skip", 1], {"clip_skip": 1}),
        (["-W", 64, "-H", 32], {"width": 64, "height": 32}),
        (["--vae-tiling", "off"], {"vae_tiling": "off"}),
    ],
)
def test_a_flag_wins_and_nothing_else_changes(run: Run, first: Path, flags: list, changed: dict) -> None:
    ((path,), _) = run("--like", first, *flags, "-o", "second.png")
    assert stored(path) == stored(first) | changed


def test_a_random_seed_and_more_pictures_can_be_asked_for(run: Run, first: Path) -> None:
    paths, err = run("--like", first, "-N", 2)
    assert [stored(path)["seed"] for path in paths] == [7, 8] and pixels(paths[0]) == pixels(first)
    ((path,), err) = run("--like", first, "--seed", -1)
    assert f"seed {stored(path)['seed']}\n" in err and stored(path)["seed"] != 7


def edited(path: Path, name: str, **changed: object) -> Path:
    """A copy whose recipe says something else; what is None goes."""
    said = {key: value for key, value in (stored(path) | changed).items() if value is not None}
    info, copy = PngInfo(), path.with_name(name)
    info.add_text("minisd", json.dumps(said))
    with Image.open(path) as image:
        image.save(copy, pnginfo=info)
    return copy


def test_what_differs_is_said_and_what_is_the_same_is_not(run: Run, first: Path) -> None:
    ((_,), err) = run("--like", first)
    assert "note: first.png" not in err
    said = {"model_sha256": "0" * 64, "loras": "film (0.8)", "vae": "own.pt", "torch": "1.0", "minisd": "9.9", "new": 1}
    other = edited(first, "other.png", **said)
    ((path,), err) = run("--like", other)
    for text in (
        "other weights of tiny: their hash is 0000000000",
        "loras film (0.8)",
        "vae own.pt",
        "not honoured: new",
    ):
        assert text in err
    assert "torch" not in err and pixels(path) == pixels(first)
    assert f"minisd 9.9, here is {VERSION}" in run("--like", other, "-v")[1]
    assert run("--like", other, "-q")[1] == "seed 7\n"


def test_a_file_is_known_by_its_hash(run: Run, first: Path, tiny_model: Path) -> None:
    """A short hash, as AUTOMATIC1111 writes it, is the start of the long one."""
    text = "x\nSteps: 2, Sampler: Euler, Seed: 1, RNG: CPU, Model: m, Model hash: {}"
    for hash, known in ((stored(first)["model_sha256"][:10], True), ("0123456789", False), ("01234567", True)):
        write_text("a.png", text.format(hash))
        assert ("other weights of m" not in run("--like", "a.png")[1]) == known


def write_text(name: str, text: str) -> None:
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(name, pnginfo=info)


def test_a_text_by_another_tool_is_drawn_and_what_is_not_honoured_is_listed(run: Run, capsys) -> None:
    line = "Steps: 3, Sampler: Euler a, CFG scale: 2, Seed: 9, Size: 64x32, Model: x, Face restoration: GFPGAN, ENSD: 1"
    write_text("a.png", f"a cat\nNegative prompt: dog\n{line}, Version: v1.6.0")
    ((path,), err) = run("--like", "a.png")
    wanted = {"prompt": "a cat", "negative_prompt": "dog", "steps": 3, "sampler": "euler_a", "schedule": "normal"}
    wanted |= {"cfg_scale": 2.0, "seed": 9, "width": 64, "height": 32, "clip_skip": 1}
    assert stored(path) | wanted == stored(path)
    assert "minisd: note: a.png: its noise was drawn on a GPU" in err
    assert "minisd: note: a.png: not honoured: Face restoration, ENSD\n" in err
    assert main(["info", "a.png"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "AUTOMATIC1111" and told["ignored"] == ["Face restoration", "ENSD"]
    assert told["options"]["steps"] == 3 and told["made"]["model"] == "x" and len(told["notes"]) == 1


def test_the_recorded_device_and_dtype_are_taken_where_they_are_here(run: Run, first: Path, monkeypatch) -> None:
    asked, true_load = [], minisd.weights.load.load

    def load(model: object, device: str, dtype: str, **source: object) -> Model:
        asked.append((device, dtype))
        return true_load()

    monkeypatch.setattr("minisd.weights.load.load", load)
    cases = [
        ({"device": "cpu", "dtype": "float32"}, [], ("cpu", "fp32"), ""),
        ({"device": "cpu", "dtype": "bfloat16"}, [], ("cpu", "bf16"), ""),
        ({"device": "cpu", "dtype": "bfloat16"}, ["--dtype", "fp32"], ("cpu", "fp32"), ""),
        ({"device": "cuda", "dtype": "bfloat16"}, [], ("auto", "bf16"), "drawn on CUDA, which is not here"),
        ({"device": "cuda", "dtype": "float16"}, [], ("auto", "auto"), "fp16, which is not for the CPU"),
        (
            {"device": "cuda", "dtype": "float16"},
            ["--device", "cpu"],
            ("cpu", "auto"),
            "fp16, which is not for the CPU",
        ),
        ({"device": "tpu", "dtype": "fp7"}, [], ("auto", "auto"), ""),
    ]
    for said, flags, wanted, note in cases:
        _, err = run("--like", edited(first, "other.png", **said), *flags)
        assert asked.pop() == wanted and note in err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    args = type("Args", (), {"device": "auto", "dtype": "auto", "like": "x"})
    minisd.cli.like.choose_machine(args, {"device": "cuda", "dtype": "float16"})
    assert (args.device, args.dtype) == ("cuda", "fp16")


def test_the_recorded_model_is_found_or_asked_for(run: Run, first: Path, tiny_model: Path, monkeypatch) -> None:
    _, err = run("--like", first, which=None, code=2)
    assert err == "minisd: first.png was drawn by the model 'tiny': say where that is, with -m MODEL\n"
    shutil.copytree(tiny_model, "tiny")
    ((path,), _) = run("--like", first, which=None)
    assert pixels(path) == pixels(first)
    write_text("a.png", "x\nSteps: 2, Sampler: Euler, Seed: 1, Model: tiny")  # of another tool's no name is taken
    assert "drawn by the model 'tiny'" in run("--like", "a.png", which=None, code=2)[1]
    write_text("a.png", "x\nSteps: 2, Sampler: Euler, Seed: 1")
    assert "a model it does not name" in run("--like", "a.png", which=None, code=2)[1]


def test_a_picture_cannot_start_a_download(run: Run, first: Path, monkeypatch) -> None:
    asked = []

    def fetch(repo: str, revision: str | None, variant: str | None, offline: bool, weights: bool = True) -> Path:
        asked.append((repo, revision, variant, offline))
        raise ValueError(f"{repo} is not in the hub's cache")

    monkeypatch.setattr("minisd.weights.hub.fetch", fetch)
    said = {"model": "owner/name", "revision": "v2", "variant": "fp16"}
    _, err = run("--like", edited(first, "other.png", **said), which=None, code=2)
    assert asked == [("owner/name", "v2", "fp16", True)] and "cache" in err


def test_a_picture_from_a_picture_needs_it(run: Run, first: Path) -> None:
    other = edited(first, "other.png", image={"name": "photo.jpg", "sha256": "0"}, strength=0.5)
    assert "drawn with the image 'photo.jpg': give it, -i FILE" in run("--like", other, code=2)[1]
    write_text("a.png", "x\nSteps: 2, Sampler: Euler, Seed: 1, Denoising strength: 0.5")
    assert "drawn with an image: give it, -i FILE" in run("--like", "a.png", code=2)[1]


@pytest.mark.parametrize(
    "flags",
    [
        "-i photo.png",
        "-i photo.png --strength 0.5 -W 32 -H 32",
        "-i photo.png --mask mask.png --mask-blur 2 --strength 1",
        "-i photo.png --outpaint 0,0,32,0",
        "-i photo.png --outpaint 0,32,0,0 -W 32 -H 64",
        "--hires 2 --hires-strength 0.7 --hires-upscale latent",
        "--hires 1.5 --hires-steps 6 -W 32 -H 32",
    ],
)
def test_a_picture_from_a_picture_is_drawn_again_from_the_same(run: Run, flags: str) -> None:
    for name in ("photo.png", "other.png"):
        Image.effect_noise((64, 64), 50).convert("RGB").save(name)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 40, 40))
    mask.save("mask.png")
    ((path,), _) = run("a cat", "--seed", 3, *flags.split(), "-o", "a.png")
    needs = []
    for flag, file in (("-i", "photo.png"), ("--mask", "mask.png")):
        if f"{flag} " in flags:
            assert f"'{file}': give it, {flag} FILE" in run("--like", path, *needs, code=2)[1]
            needs += [flag, file]
    ((again,), err) = run("--like", path, *needs, "-o", "b.png")
    assert pixels(again) == pixels(path) and stored(again) == stored(path) and "another" not in err
    if needs:
        _, err = run("--like", path, "-i", "other.png", *needs[2:])
        assert "drawn with another image than the one given here" in err
