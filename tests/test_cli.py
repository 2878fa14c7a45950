"""The command line: bad input is one line and exit 2 before a model is loaded; pictures are whole or not there."""

import builtins
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

import minisd
from minisd import cli, files
from minisd.cli import common, main
from minisd.cli import flags as command
from minisd.cli.output import save_numbered
from minisd.cli.train import NEEDS, default_recipe
from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES
from minisd.image import FORMATS
from minisd.infotext import EMPHASIS_LABELS, SAMPLER_LABELS, SCHEDULE_LABELS, recipe_text
from minisd.runtime import DTYPE_NAMES
from minisd.settings import EMPHASIS_NAMES
from minisd.train.stages import STAGES

# Each line is a whole command; {bad} is the folder of `bad_files`, and --model is the tiny model where none is named.
BAD = r"""
''
generat x
--help-me
generate
generate --prompt
generate x y
generate a red circle
generate x --prompt y
generate x --stpes 5
generate x --step 5
generate x --no-such-flag
generate x -Z
generate x --steps
generate x --outdir {bad}/o --output {bad}/o.png
generate x --quiet --verbose
generate x --overwrite=yes
generate x --steps 0
generate x --steps -1
generate x --steps 1.5
generate x --steps 1e9
generate x --steps 1000000000
generate x --steps 1_0
generate x --steps ٣
generate x --steps ''
generate x --steps ' 7 '
generate x --steps ten
generate x --cfg-scale nan
generate x --cfg inf
generate x --scale=-inf
generate x --guidance_scale -1
generate x --cfg-scale 7,5
generate x --cfg-scale seven
generate x --cfg-scale ''
generate x --cfg-scale 1e999
generate x --cfg-scale 1e6
generate x --seed 18446744073709551616
generate x --seed 18446744073709551615 -N 2
generate x --seed -2
generate x --seed 0x10
generate x --seed 1e3
generate x --seed 1.0
generate x --seed {many}
generate x -W 0
generate x -W 7
generate x -W -8
generate x -W 513
generate x -W 10000000
generate x -W 512.0
generate x -H 0
generate x -H 7
generate x -H -8
generate x -H 513
generate x -H 66
generate x -H 10000000
generate x -H 512.0
generate x --height 1e2
generate x --clip-skip 0
generate x --clip-skip 3
generate x --clip-skip 99
generate x --clip_skip -1
generate x --clip-skip one
generate x --eta 0.5 --sampler heun
generate x --eta 1.5 --sampler ddim
generate x --eta nan
generate x --guidance-rescale -0.1
generate x --start-scale sigm
generate x --variation-seed 5
generate x --variation-seed -2 --variation-strength 0.5
generate x --variation-strength 1.5
generate x --guidance-interval 0.5
generate x --guidance-interval 0.8,0.2
generate x --guidance-interval 0,x
generate x --dynamic-threshold 0
generate x --dynamic-threshold 99.5
generate x --num-images 0
generate x --num_images -3
generate x -N 1000000
generate x --batch-size 0
generate x --batch-size 1.5
generate x --threads 0
generate x --threads -1
generate x --threads 99999999999
generate x --threads 1025
generate x --sampler eulr
generate x --sampler ''
generate x --sampler Euler
generate x --schedule karas
generate x --long-prompt wrap
generate '1 2 3 4 5 6 7 8 9 0 1 2 3 4 5' --long-prompt error
generate x -n '1 2 3 4 5 6 7 8 9 0 1 2 3 4 5' --long-prompt error
generate '[x:1 2 3 4 5 6 7 8 9 0 1 2 3 4 5:0.5]' --long-prompt error
generate x --emphasis bold
generate x --dtype fp61
generate x --device gpu
generate x --device cuda:-1
generate x --device cuda
generate x --device cuda:99
generate x --device cpu --dtype fp16
generate x --model {bad}/missing
generate x --model ''
generate x --offline --model some/hub-id
generate x --model {bad}/folder
generate x --model {bad}/text.txt
generate x --model {bad}/fifo
generate x --model {bad}/nul{nul}byte
generate x --model {bad}/{many}
generate x --model {bad}/empty
generate x --model {bad}/short
generate x --model {bad}/words
generate x --model {bad}/lfs
generate x --model {bad}/html
generate x --model {bad}/zeros
generate x --model {bad}/empty/model.safetensors
generate x --model {bad}/short/model.safetensors
generate x --model {bad}/lfs/model.safetensors
generate x --model {bad}/html/model.safetensors
generate x --model {bad}/zeros/model.safetensors
generate x --model {bad}/flux.safetensors
generate x --model {bad}/config-words
generate x --model {bad}/config-binary
generate x --model {bad}/config-field
generate x --model {bad}/config-width
generate x --outdir {bad}/text.txt
generate x --outdir {bad}/text.txt/deeper
generate x --outdir /proc/nothing
generate x -o {bad}/missing/a.png
generate x -o {bad}/text.txt/a.png
generate x -o {bad}/folder
generate x -o {bad}/folder.png
generate x -o {bad}/a.gif
generate x -o {bad}/a
generate x -o ''
generate x -o {bad}/taken.png
generate x -o {bad}/taken.png -N 2 --seed 7
generate x -o {bad}/{long}.png
generate x -o /proc/a.png
generate --like
generate --like ''
generate --like {bad}/missing.png
generate --like {bad}/folder
generate --like {bad}/fifo
generate --like {bad}/empty/model.safetensors
generate --like {bad}/text.txt
generate --like {bad}/nul{nul}byte
generate --like {bad}/{many}
generate --like {bad}/taken.png
generate --like {bad}/truncated.png
generate x --like {bad}/taken.png
generate --like {bad}/comfy.png
generate --like {bad}/words.png
generate --like {bad}/damaged.png
generate --like {bad}/odd.png
generate --like {bad}/odd.png --steps 5 --clip-skip 99
generate x --like {bad}/fine.png --prompt y
generate --like {bad}/fine.png --steps 0
generate --like {bad}/fine.png --model {bad}/missing
generate --like {bad}/fine.png -o {bad}/taken.png
generate --like {bad}/mask.png
prompt
prompt a red circle
prompt x --emphasis bold
prompt x --long-prompt wrap
prompt x --model {bad}/missing
prompt x --model {bad}/config-field
prompt x --tokenizer {bad}/missing
prompt x --tokenizer {bad}/folder
prompt x --model {bad}/short --tokenizer {bad}/folder
prompt x --negative
train
train unets
train clip --steps 3
train clip --recipe {bad}/missing.toml
train clip --recipe {bad}/text.txt
train clip --recipe {bad}/fields.toml
train clip --recipe {bad}/no-config.toml
train clip --recipe shapes --out {bad}/folder
train vae --recipe shapes --out {bad}/run
train unet --recipe shapes --out {bad}/run
train vae --recipe shapes --out {bad}/text.txt
train vae --recipe shapes --threads 0
train vae --recipe shapes --device gpu
train vae --recipe shapes --minutes 0
train vae --recipe shapes --minutes soon
train vae --recipe shapes --resume always
train all --recipe shapes --out {bad}/text.txt
plot
plot {bad}/missing --text
plot {bad}/text.txt --text
plot {bad}/folder --text
info
info {bad}/missing
info {bad}/folder
info {bad}/text.txt
info {bad}/taken.png
info {bad}/truncated.png
info {bad}/comfy.png
""".strip().splitlines()


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One of each kind of thing that is not what it is taken for."""
    bad = tmp_path_factory.mktemp("bad")
    weights = (tiny_model / "model.safetensors").read_bytes()
    config = (tiny_model / "config.json").read_text()
    kinds = {
        "empty": b"",
        "short": weights[:-100],
        "words": b"these are not the weights you are looking for",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "html": b"<!DOCTYPE html><title>Sign in</title>",
        "zeros": bytes(1000),
    }
    for name, content in kinds.items():
        shutil.copytree(tiny_model, bad / name)
        (bad / name / "model.safetensors").write_bytes(content)
    configs = {
        "config-words": b"width: 512",
        "config-binary": bytes(range(256)),
        "config-field": config.replace('"hidden"', '"hiden"').encode(),
        "config-width": config.replace('"context_dim": 32', '"context_dim": 33').encode(),
    }
    for name, content in configs.items():
        shutil.copytree(tiny_model, bad / name)
        (bad / name / "config.json").write_bytes(content)
    for folder in ("folder", "folder.png", "run/tokenizer"):
        (bad / folder).mkdir(parents=True)
    (bad / "text.txt").write_text("a text\n")
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}, bad / "flux.safetensors")
    os.mkfifo(bad / "fifo")
    Image.new("RGB", (8, 8)).save(bad / "taken.png")
    Image.new("RGB", (8, 8)).save(bad / "taken-8.png")
    fine = {"prompt": "x", "steps": 2, "sampler": "euler", "seed": 1, "model": "tiny"}
    texts = {
        "comfy": {"prompt": '{"3": {}}', "workflow": "{}"},
        "words": {"parameters": "a red circle, steps unknown"},
        "damaged": {"minisd": '{"prompt": "x", "steps": 2'},
        "odd": {"minisd": json.dumps(fine | {"steps": "ten"})},
        "mask": {"minisd": json.dumps(fine | {"image": {"name": "a.png"}, "mask": {}})},
        "fine": {"minisd": json.dumps(fine)},
    }
    for name, chunks in texts.items():
        info = PngInfo()
        for key, text in chunks.items():
            info.add_text(key, text)
        Image.new("RGB", (8, 8)).save(bad / f"{name}.png", pnginfo=info)
    (bad / "truncated.png").write_bytes((bad / "taken.png").read_bytes()[:20])
    (bad / "run" / "tokenizer" / "vocab.json").touch()
    (bad / "run" / "vae.safetensors").touch()
    recipe = default_recipe("shapes").read_text(encoding="utf-8")
    (bad / "fields.toml").write_text(recipe.replace("batch", "bach"))
    (bad / "no-config.toml").write_text(recipe.replace("../shapes.json", "nowhere.json"))
    return bad


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def recipe(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["minisd"])


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def words(line: str, bad: Path, model: Path) -> list[str]:
    """A line of BAD as the command gets it."""
    fill = {"bad": bad, "many": "9" * 5000, "long": "n" * 300, "nul": "\0"}
    argv = [word.format(**fill) for word in shlex.split(line)]
    return [*argv, "--model", str(model)] if argv[0] == "generate" and "--model" not in argv else argv


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_2_before_any_model(
    line: str,
    tiny_model: Path,
    bad_files: Path,
    no_loading: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    at_once: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(bad_files)
    assert main(words(line, bad_files, tiny_model)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"minisd: [^\n]{10,400}\n", err), err
    assert everything(bad_files) == before
    assert [name for name in everything(tmp_path) if name not in ("outputs", "runs", "runs/mini")] == []


ASKS_TORCH = ["generate x --device cuda", "generate x --model {bad}/flux.safetensors"]
COLD = """if True:
    import json, os, sys
    for argv in json.loads(sys.argv[1]):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 1), os.dup2(writer, 2), os.close(reader)
            from minisd.cli import main
            os._exit(main(argv))
        os.close(writer)
        with os.fdopen(reader) as said:
            told = said.read()
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), told, used.ru_utime + used.ru_stime]))
"""


def test_bad_input_is_refused_within_a_second_of_a_cold_start(tiny_model: Path, bad_files: Path, tmp_path) -> None:
    """Processor time of processes that had imported nothing: every twelfth line; 3 s where torch must be asked."""
    asks_torch = re.compile(r"--device cuda|--dtype fp16|--model \S+\.(safetensors|txt)")  # whether it is there; a file
    lines = list(dict.fromkeys([*BAD[::12], *ASKS_TORCH]))
    asked = json.dumps([words(line, bad_files, tiny_model) for line in lines])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(minisd.__path__[0]).parent)}
    argv = [sys.executable, "-c", COLD, asked]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    answers = [json.loads(answer) for answer in done.stdout.splitlines()]
    assert len(answers) == len(lines) > 15
    for line, (code, told, seconds) in zip(lines, answers, strict=True):
        assert code == 2 and re.fullmatch(r"minisd: [^\n]{10,400}\n", told), (line, told)
        assert seconds < (3 if asks_torch.search(line) else 1), (line, seconds)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "generate x --model {locked}",
            "generate x --model {locked}/model.safetensors",
            "generate -i {locked}/a.png x",
        ),
        *("generate --like {locked}/a.png", "generate --from-file {locked}/prompts.txt", "info {locked}/a.png"),
        *(
            "generate x --outdir {locked}/out",
            "generate x -o {locked}/b.png",
            "prompt x --tokenizer {locked}/tokenizer",
        ),
        "train vae --recipe {locked}/recipe.toml",
    ],
)
def test_what_may_not_be_opened_is_one_line(
    line: str, tiny_model: Path, no_loading: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """As after chmod 000, which does not hinder root."""
    locked, true_open = shutil.copytree(tiny_model, tmp_path / "locked"), io.open
    for name in ("a.png", "prompts.txt", "recipe.toml"):
        (locked / name).touch()
    before = everything(locked)

    def refusing(file: object, *args: object, **options: object) -> object:
        if str(locked) in str(file):
            raise PermissionError(13, "Permission denied", str(file))
        return true_open(file, *args, **options)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", refusing)
    assert main(words(line.replace("locked", "bad"), locked, tiny_model)) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"minisd: [^\n]*Permission denied[^\n]*\n", err), err
    assert [name for name in everything(locked) if name != "out"] == before


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("generate x --stpes 5", "did you mean --steps?"),
        ("generate x --sampler eulr", "did you mean euler?"),
        ("generate x --sampler eulr", "dpmpp_2m"),
        ("generate x --schedule karas", "did you mean karras?"),
        ("generate x --dtype fp61", "did you mean fp16?"),
        ("generate x --device gpu", "choose from auto, cpu, cuda, cuda:N"),
        ("generate x --model {bad}/flux.safetensors", "Flux"),
        ("generate x y", "quotes"),
        ("generat x", "did you mean generate?"),
        ("train unets", "did you mean unet?"),
        ("generate x -W 66", "64 and 68"),
        ("generate x --clip-skip 3", "--clip-skip 3"),
        ("generate x --model {bad}/lfs", "git lfs pull"),
        ("generate x --model {bad}/html", "web page"),
        ("generate x --model {bad}/short", "cut short"),
        ("generate x -o {bad}/taken.png", "--overwrite"),
        ("generate x -o /proc/a.png", "/proc/a.png: "),
        ("generate x -o {bad}/{long}.png", "too long"),
        ("generate --like {bad}/missing.png", "there is no picture"),
        ("generate --like {bad}/text.txt", "PNG, JPEG, WEBP"),
        ("generate --like {bad}/taken.png", "holds no recipe"),
        ("generate --like {bad}/damaged.png", "its recipe is damaged"),
        ("generate --like {bad}/comfy.png", "ComfyUI"),
        ("generate --like {bad}/odd.png", "--steps 'ten'"),
        ("generate --like {bad}/mask.png", "give it, -i FILE"),
        ("train unet --recipe shapes --out {bad}/run", "minisd train clip"),
        ("train vae --recipe shapes --out {bad}/run", "--resume"),
    ],
)
def test_the_one_line_shows_the_way_out(
    line: str, hint: str, tiny_model: Path, bad_files: Path, no_loading: None, capsys: pytest.CaptureFixture
) -> None:
    argv = line.format(bad=bad_files, long="n" * 300).split()
    assert main(argv if "--model" in argv or argv[0] == "train" else [*argv, "--model", str(tiny_model)]) == 2
    assert hint in capsys.readouterr().err


def test_weights_of_another_model_are_refused_in_few_lines(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"layers": 2', '"layers": 3'))
    assert main(["generate", "x", "--model", str(other), "--outdir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "missing" in err and len(err.splitlines()) <= 6
    assert everything(tmp_path / "out") == []


def test_help_and_wrong_names_do_not_import_torch() -> None:
    script = """if True:
        import sys
        from minisd.cli import main
        codes = [main(line.split()) for line in sys.argv[1:]]
        heavy = {"torch", "transformers", "numpy", "PIL", "tqdm"} & set(sys.modules)
        sys.exit(f"{codes} {heavy}")
    """
    lines = ["--help", "generate --help", "prompt --help", "train --help", "info --help", "convert --help", "--version"]
    lines += ["generate x --sampler nope", "train nope", "generate x --model nowhere", "generate x --seed x"]
    lines += ["eval --help", "eval --sweep foo=1", "eval -m nowhere", "eval --judge nowhere"]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 0, 2, 2, 2] set()"
    assert done.stdout.isascii()  # any terminal can show it
    assert "--clip-skip" in done.stdout and f"minisd {minisd.__version__}" in done.stdout


def test_every_name_the_help_offers_is_known_to_the_library() -> None:
    assert list(NEEDS) == list(STAGES)
    assert list(command.DTYPES) == list(DTYPE_NAMES)
    assert tuple(FORMATS) == command.SUFFIXES
    assert set(SAMPLER_LABELS) == set(SAMPLER_NAMES)
    assert set(SCHEDULE_LABELS) == set(SCHEDULE_NAMES)
    assert set(EMPHASIS_LABELS) >= set(EMPHASIS_NAMES)
    assert default_recipe().is_file()
    parser = command.build_parser()
    assert set(command.ALIASES.values()) <= set(parser._option_string_actions)


def test_a_picture_holds_its_recipe(draw, capsys: pytest.CaptureFixture) -> None:
    flags = ["--steps", "3", "--cfg_scale", "2.5", "--sampler", "euler_a", "--schedule", "karras", "--seed", "7"]
    (path,) = draw("a red, circle", "-n", "blue: things", *flags, "--clip_skip", "2", "-W", "32", "--eta", "0.5")
    assert path == Path("outputs/00000-7.png")
    said = recipe(path)
    wanted = {"prompt": "a red, circle", "negative_prompt": "blue: things", "steps": 3, "cfg_scale": 2.5}
    wanted |= {"sampler": "euler_a", "schedule": "karras", "seed": 7, "clip_skip": 2, "width": 32, "height": 64}
    wanted |= {"eta": 0.5, "device": "cpu", "dtype": "float32", "model": "tiny"}
    assert said | wanted == said
    with Image.open(path) as image:
        assert image.size == (32, 64)
        text = image.info["parameters"]
    assert text.splitlines() == [
        "a red, circle",
        "Negative prompt: blue: things",
        "Steps: 3, Sampler: Euler a, Schedule type: Karras, CFG scale: 2.5, Seed: 7, Size: 32x64, "
        f"Model hash: {said['model_sha256'][:10]}, Model: tiny, Clip skip: 2, RNG: CPU, Eta: 0.5, "
        f"Version: minisd {minisd.__version__}",
    ]
    assert main(["info", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_the_infotext_leaves_out_defaults_and_quotes_separators() -> None:
    recipe = {"prompt": "", "negative_prompt": "", "steps": 20, "sampler": "dpmpp_2m", "schedule": "trailing"}
    recipe |= {"cfg_scale": 7.0, "seed": 0, "width": 64, "height": 64, "clip_skip": 1, "model": "a, b: c"}
    prompt, line = recipe_text(recipe).split("\n")
    assert prompt == ""
    assert line.startswith("Steps: 20, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 7, Seed: 0, Size")
    assert 'Model: "a, b: c", RNG: CPU, schedule: trailing, Version' in line


def test_the_same_seed_draws_the_same_pixels_and_image_i_is_seed_plus_i(draw) -> None:
    first, second = draw("a red circle", "--seed", "41", "-N", "2")
    (again,) = draw("a red circle", "--seed=42", "--images", "1")
    assert [recipe(p)["seed"] for p in (first, second, again)] == [41, 42, 42]
    assert [p.name for p in (first, second, again)] == ["00000-41.png", "00001-42.png", "00002-42.png"]
    assert pixels(second) == pixels(again)
    assert pixels(first) != pixels(again)


def test_variations_are_drawn_and_named_by_both_seeds(draw) -> None:
    flags = ["--seed", "3", "--variation-strength", "0.3"]
    first, second = draw("a red circle", *flags, "--variation-seed", "50", "-N", "2")
    (again,) = draw("a red circle", *flags, "--variation-seed", "51", "-o", "again.png")
    assert [p.name for p in (first, second)] == ["00000-3-50.png", "00001-3-51.png"]
    assert pixels(second) == pixels(again) != pixels(first)
    (lone,) = draw("a red circle", *flags)  # a seed of its own choosing
    assert recipe(lone)["variation_seed"] not in (None, 50)


def test_every_flag_reaches_the_picture(draw) -> None:
    """A flag that were read and forgotten would leave the pixels as they are."""
    (plain,) = draw("a red circle", "--seed", "3")
    changes = ["-n blue", "--steps 5", "--cfg 4", "--sampler ddim", "--schedule karras", "--clip-skip 2", "-H 32"]
    changes += ["--guidance-rescale 0.9", "--sampler=ddim --eta=1", "--seed 4", "--start-scale sigma"]
    changes += ["--variation-seed 9 --variation-strength 0.5"]
    changes += ["--guidance-interval 0.3,0.9", "--dynamic-threshold 0.5"]
    drawn = {change: pixels(draw("a red circle", "--seed", "3", *change.split())[0]) for change in changes}
    assert len({pixels(plain), *drawn.values()}) == len(changes) + 1


def test_the_seed_is_printed_stored_and_enough_to_draw_again(draw, tiny_model, capsys) -> None:
    assert main(["generate", "x", "--model", str(tiny_model), "--seed", "-1", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    (seed,) = re.findall(r"^seed (\d+)$", err, re.M)
    path = Path(out.strip())
    assert recipe(path)["seed"] == int(seed) and path.name == f"00000-{seed}.png"
    assert re.search(r"^cpu fp32: \w+", err, re.M)
    assert "4/4" in err
    (again,) = draw("x", "--seed", seed)
    assert pixels(again) == pixels(path)
    (largest,) = draw("x", "--seed", str(2**64 - 1))
    assert recipe(largest)["seed"] == 2**64 - 1


def test_quiet_leaves_only_the_seed_on_stderr(draw, tiny_model, capsys) -> None:
    assert main(["generate", "x", "-q", "--model", str(tiny_model), "--seed", "9"]) == 0
    assert capsys.readouterr().err == "seed 9\n"


def test_a_long_prompt_is_noted_or_refused(draw, tiny_model, capsys) -> None:
    long = "a red circle and a blue square " * 9
    argv = ["generate", long, "--model", str(tiny_model), "--outdir", "o"]
    assert main([*argv, "-N", "2"]) == 0
    assert capsys.readouterr().err.count("minisd: note: the text 'a red circle") == 1  # once, not for each picture
    assert main([*argv, "--long-prompt", "error"]) == 2
    assert len(everything(Path("o"))) == 2
    (path,) = draw("a (red) circle", "--long_prompt", "window", "--emphasis", "comfy")
    assert (recipe(path)["long_prompt"], recipe(path)["emphasis"]) == ("window", "comfy")
    assert logging.getLogger("minisd").handlers == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_output_is_exactly_that_file(draw, capsys, suffix: str) -> None:
    (path,) = draw("a rød circle 😀", "-o", f"out{suffix}", "--seed", "1")
    assert everything(Path()) == [f"out{suffix}"]
    with Image.open(path) as image:
        assert image.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
        text = image.info["parameters"] if comment is None else comment[8:].decode("utf-16-be")
    assert text.startswith("a rød circle 😀\nSteps: 4, Sampler: DPM++ 2M")
    assert main(["info", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a rød circle 😀"


def test_png_and_webp_keep_every_pixel(draw) -> None:
    (png,), (webp,) = draw("x", "-o", "a.png", "--seed", "1"), draw("x", "-o", "a.webp", "--seed", "1")
    assert pixels(png) == pixels(webp)


def test_a_recipe_too_long_for_exif_is_left_out_and_said(draw, tiny_model, capsys) -> None:
    argv = ["generate", "a red circle " * 6000, "--long-prompt", "truncate", "--model", str(tiny_model), "--seed", "1"]
    assert main([*argv, "-o", "a.jpg"]) == 0
    assert "too long for EXIF" in capsys.readouterr().err
    assert main([*argv, "-o", "a.png"]) == 0
    assert len(recipe(Path("a.png"))["prompt"]) == 13 * 6000


def test_several_pictures_to_one_name_are_told_apart_by_seed(draw) -> None:
    paths = draw("x", "-o", "out.png", "-N", "2", "--seed", "8")
    assert [str(p) for p in paths] == ["out-8.png", "out-9.png"]


def test_nothing_is_overwritten_unless_asked(draw, no_loading) -> None:
    Path("a.png").write_bytes(b"mine")
    draw("x", "-o", "a.png", code=2)
    assert Path("a.png").read_bytes() == b"mine"


def test_overwrite_replaces_the_whole_file(draw) -> None:
    Path("a.png").write_bytes(b"mine")
    (path,) = draw("x", "-o", "a.png", "--overwrite", "--seed", "2")
    assert recipe(path)["seed"] == 2


def test_numbering_goes_on_after_the_highest(draw) -> None:
    Path("o").mkdir()
    for name in ("00003-1.png", "00011-x.jpg", "notes-99999.png", "12-1.png"):
        Path("o", name).touch()
    assert draw("x", "--outdir", "o", "--seed", "5") == [Path("o/00012-5.png")]


def test_two_processes_that_race_for_a_number_both_keep_their_picture(tmp_path: Path, monkeypatch) -> None:
    """The other one takes the name between our look at the folder and our save."""
    picture, other = Image.new("RGB", (4, 4), "red"), tmp_path / "00000-5.png"
    true_save = minisd.image.save

    def slow_save(image: Image.Image, path: Path, overwrite: bool = False) -> None:
        if not other.exists():
            other.write_bytes(b"theirs")
        true_save(image, path, overwrite)

    monkeypatch.setattr("minisd.image.save", slow_save)
    assert save_numbered(picture, tmp_path, 5) == tmp_path / "00001-5.png"
    assert other.read_bytes() == b"theirs" and everything(tmp_path) == ["00000-5.png", "00001-5.png"]


@pytest.mark.parametrize("links", [True, False])
def test_atomic_files_are_whole_or_not_there(tmp_path: Path, monkeypatch, links: bool) -> None:
    if not links:  # as on a FAT stick
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no hard links here")))
    path = tmp_path / "file"
    with files.atomic(path, overwrite=False) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(FileExistsError), files.atomic(path, overwrite=False) as temporary:
        temporary.write_text("second")
    with pytest.raises(KeyboardInterrupt), files.atomic(path) as temporary:
        temporary.write_text("thi")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and everything(tmp_path) == ["file"]
    with files.atomic(path) as temporary:
        temporary.write_text("fourth")
    assert path.read_text() == "fourth" and everything(tmp_path) == ["file"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    """safetensors leaves its files to their owner alone; a shared model folder must not be so."""
    with files.atomic(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)
    (tmp_path / "b").touch()
    modes = {name: (tmp_path / name).stat().st_mode for name in ("a", "b")}
    assert modes["a"] == modes["b"]


def test_surrogates_and_control_characters_do_no_harm(draw, capsys) -> None:
    (path,) = draw("bad \udcff byte", "-n", "\ud800", "--seed", "1", "-o", "a.png")
    assert recipe(path)["prompt"] == "bad ? byte"
    (path,) = draw("tab\t nul\0 line\n Negative prompt: z", "--seed", "1", "-o", "b.png")
    assert recipe(path)["prompt"] == "tab\t nul\0 line\n Negative prompt: z"
    assert main(["info", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 1


def test_a_prompt_that_begins_with_a_dash_goes_after_two(draw) -> None:
    (path,) = draw("--prompt=--cfg_scale is a flag", "--seed", "1", "-o", "a.png")
    assert recipe(path)["prompt"] == "--cfg_scale is a flag"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
        (RuntimeError("something\nelse"), 1, "RuntimeError: something else (--debug"),
        (FloatingPointError("the VAE gave numbers that are not finite"), 1, "not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("place", ["PIL.Image.Image.save", "os.replace", "minisd.pipeline.generate"])
def test_a_failure_while_running_is_one_line_and_leaves_nothing(
    draw, tiny_model, capsys, monkeypatch, error: BaseException, code: int, said: str, place: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        if place == "PIL.Image.Image.save":
            Path(args[1]).write_bytes(b"half a pic")
        raise error

    monkeypatch.setattr(place, fail)
    argv = ["generate", "x", "-q", "--seed", "1", "--model", str(tiny_model)]
    assert main([*argv, "-o", "a.png", "--overwrite"]) == code
    seed, line = capsys.readouterr().err.splitlines()
    assert seed == "seed 1" and line.startswith("minisd: ") and said in line
    assert everything(Path()) == []


def test_numbers_that_are_not_finite_end_in_exit_1_and_no_file(tiny_model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.nn.vae.VAE.decode", lambda self, z: torch.full((1, 3, 64, 64), torch.nan))
    assert main(["generate", "x", "-q", "--model", str(tiny_model), "-o", "a.png"]) == 1
    assert "not finite" in capsys.readouterr().err
    assert everything(tmp_path) == []


def test_a_ctrl_c_while_the_model_is_loaded_is_one_line(draw, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minisd.weights.folder.load", interrupted)
    assert main(["generate", "x", "-q", "-o", "a.png"]) == 130
    assert capsys.readouterr().err == "minisd: interrupted\n"
    assert everything(tmp_path) == []


def test_emoji_pass_where_the_locale_knows_none(tiny_model: Path, tmp_path: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONPATH": str(Path(minisd.__path__[0]).parent)}
    for argv, code in ((["prompt", "😀", "--json"], 0), (["generate", "😀", "--sampler", "😀"], 2)):
        argv = [sys.executable, "-m", "minisd", *argv, "--model", str(tiny_model)]
        done = subprocess.run(argv, capture_output=True, cwd=tmp_path, env=environment)
        assert (
            done.returncode == code and (done.stderr.count(b"\n"), done.stdout[:1]) == ((0, b"{"), (1, b""))[code > 0]
        )
        said = json.loads(done.stdout)["prompt"]["text"] if code == 0 else done.stderr.decode().split("'")[1]
        assert said == "😀"


def test_pictures_drawn_before_a_ctrl_c_are_kept(draw, monkeypatch) -> None:
    true_generate = minisd.pipeline.generate

    def interrupted(*args: object, **options: object) -> object:
        if options["seed"] == 12:
            raise KeyboardInterrupt
        return true_generate(*args, **options)

    monkeypatch.setattr("minisd.pipeline.generate", interrupted)
    assert draw("x", "-N", "3", "--seed", "10", "--outdir", "o", code=130) == [
        Path("o/00000-10.png"),
        Path("o/00001-11.png"),
    ]


def test_a_closed_stdout_is_one_line(draw, tiny_model, capsys) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    kept = sys.stdout
    sys.stdout = os.fdopen(writer, "w")
    try:
        code = main(["generate", "x", "-q", "--seed", "1", "--model", str(tiny_model), "-o", "a.png"])
    finally:
        sys.stdout.close()
        sys.stdout = kept
    assert code == 1
    assert capsys.readouterr().err == "seed 1\nminisd: stdout was closed\n"
    assert everything(Path()) == ["a.png"]


def test_debug_shows_where(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "dispatch", lambda argv: 1 / 0)
    assert main(["generate", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["generate"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_info_counts_a_model_folder(tiny_model, capsys) -> None:
    assert main(["info", str(tiny_model)]) == 0
    said = json.loads(capsys.readouterr().out)
    model = minisd.load(tiny_model)
    wanted = sum(p.numel() for part in (model.text, model.unet, model.vae) for p in part.parameters())
    assert said["parameters"] == wanted
    assert said["model_sha256"] == model.origin["model_sha256"]
    assert said["config"] == model.config.to_dict()


def test_train_learns_a_tokenizer_into_its_run_folder(tmp_path: Path, capsys) -> None:
    text = default_recipe("shapes").read_text(encoding="utf-8").replace("captions = 4000", "captions = 50")
    text = text.replace("../shapes.json", str(default_recipe().parent.parent / "shapes.json"))
    (tmp_path / "r.toml").write_text(text)
    assert main(["train", "tokenizer", "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 0
    made = [".lock", "config.json", "stages.json", "tokenizer", "tokenizer/merges.txt", "tokenizer/vocab.json"]
    assert everything(tmp_path / "run") == made
    assert "tokenizer by " in capsys.readouterr().err


def test_train_hands_the_stage_its_run(bad_files: Path, monkeypatch) -> None:
    runs = []
    monkeypatch.setitem(STAGES, "vae", runs.append)
    argv = ["train", "vae", "--recipe", "shapes", "--out", str(bad_files / "run"), "--resume", "--device", "cpu"]
    assert main(argv) == 0
    assert runs[0].folder == bad_files / "run" and runs[0].resume and runs[0].device == torch.device("cpu")
    assert runs[0].base.name == "shapes"


@pytest.mark.parametrize("text", ["0", "-0", "+7", "18446744073709551615"])
def test_whole_numbers_are_read(text: str) -> None:
    assert common.whole(text) == int(text)


@pytest.mark.parametrize("text", ["0", "-1", "7.5", ".5", "5.", "1e-3", "+2E2"])
def test_numbers_are_read(text: str) -> None:
    assert common.number(text) == float(text)
