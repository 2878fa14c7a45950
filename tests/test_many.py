"""Many pictures in one call: each is drawn once, whoever draws it, however often it was interrupted."""

import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli import everything, pixels, recipe

import minisd
from minisd.cli import main
from minisd.cli.many import Team, batches, is_drawn, read_prompts
from minisd.pipeline import recipes

PROMPTS = ["a red circle", "a blue square, small", "två gröna stjärnor 😀"]
DRAW = [sys.executable, "-m", "minisd", "generate", "--device", "cpu"]

# Each line is a whole command; {bad} is the folder of `bad_prompts`. Words NAME=VALUE in front go to the environment.
BAD = r"""
generate --from-file
generate --from-file {bad}/missing.txt
generate --from-file {bad}
generate --from-file {bad}/empty.txt
generate --from-file {bad}/comments.txt
generate --from-file {bad}/latin1.txt
generate --from-file {bad}/picture.png
generate --from-file {bad}/nul.txt
generate --from-file {bad}/large.txt
generate --from-file {bad}/nul{nul}byte.txt
generate --from-file ''
generate x --from-file {bad}/two.txt
generate -p x --from-file {bad}/two.txt
generate --from-file {bad}/two.txt -o a.png
generate --from-file {bad}/two.txt --steps 0
generate --from-file {bad}/two.txt --seed 18446744073709551615
generate --from-file {bad}/two.txt --seed 18446744073709551613 -N 2
generate --from-file {bad}/two.txt -N 50001
generate --from-file {bad}/many.txt -N 10000
generate --from-file {bad}/two.txt --outdir {bad}/two.txt
generate x --grid
generate x --grid -N 2 -o a.jpg
generate x --grid -N 2 --seed 7 -o {bad}/picture.png
generate x --grid -N 1000 -W 512 -H 512
RANK=0 WORLD_SIZE=2 generate x
RANK=0 WORLD_SIZE=2 generate x --seed -1
RANK=0 WORLD_SIZE=2 generate --from-file - --seed 1
RANK=0 WORLD_SIZE=2 generate x --grid -N 2 --seed 1
RANK=2 WORLD_SIZE=2 generate x --seed 1
RANK=-1 WORLD_SIZE=2 generate x --seed 1
RANK=0 WORLD_SIZE=x generate x --seed 1
RANK=0 WORLD_SIZE=0 generate x --seed 1
RANK=0 WORLD_SIZE=2 LOCAL_RANK=x generate x --seed 1
""".strip().splitlines()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of a team, unless a test says so."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def bad_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    contents = {"empty": b"", "comments": b"# nothing\n\n   \n#\n", "latin1": "grün".encode("latin-1")}
    contents |= {"nul": b"a\nb\0c\n", "large": b"x" * (2**24 + 1), "two": b"a\nb\n", "many": b"x\n" * 11}
    for name, content in contents.items():
        (folder / f"{name}.txt").write_bytes(content)
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return folder


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    """Three prompts, outside the folder that the pictures go to."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["# a comment", *PROMPTS]), encoding="utf-8")
    return str(path)


def files(folder: str | Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def pictures(folder: str | Path) -> dict[str, bytes]:
    """Its pictures; a process that was killed may leave a hidden temporary file."""
    return {name: content for name, content in files(folder).items() if name.endswith(".png")}


def environment() -> dict[str, str]:
    """For a process of its own: this checkout, and as many threads as here, on which the last bit hangs."""
    here = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(minisd.__path__[0]).parent)}
    return os.environ | here


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_2_before_any_model(
    line: str, tiny_model: Path, bad_prompts: Path, no_loading: None, tmp_path: Path, monkeypatch, capsys, at_once: None
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [word.format(bad=bad_prompts, nul="\0") for word in shlex.split(line)]
    while "=" in argv[0]:
        monkeypatch.setenv(*argv.pop(0).split("="))
    before = files(bad_prompts)
    assert main([*argv, "--model", str(tiny_model)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"minisd: [^\n]{10,300}\n", err), err
    assert files(bad_prompts) == before
    assert [name for name in everything(tmp_path) if name != "outputs"] == []


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\xef\xbb\xbfa red circle\r\n\r\n  b \r\n", ["a red circle", "b"]),
        (b"a\rb\nc", ["a", "b", "c"]),
        (b"# no\n  # no\n\\#1 star\n\\(x\\)\na # b", ["#1 star", "\\(x\\)", "a # b"]),
        ("a\u2028b\x0bc\x85d\n\u00e9 😀\n".encode(), ["a\u2028b\x0bc\x85d", "é 😀"]),  # no line ends of a text file
    ],
)
def test_a_prompt_a_line(tmp_path: Path, monkeypatch, content: bytes, wanted: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    assert read_prompts(str(path)) == wanted
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    assert read_prompts("-") == wanted


def test_picture_j_of_prompt_k_is_what_the_library_draws(draw, tiny_model: Path, prompt_file: str) -> None:
    """Seeds go on from prompt to prompt, and each file holds its own prompt and seed."""
    paths = draw("--from-file", prompt_file, "-N", "2", "--seed", "5", "--outdir", "o", "-n", "gray")
    assert [path.name for path in paths] == [f"{i:05d}-{i + 5}.png" for i in range(6)]
    options = {"negative_prompt": "gray", "num_images": 2, "seed": 5}
    wanted = minisd.generate(minisd.load(tiny_model, device="cpu"), PROMPTS, **options)
    assert [pixels(path) for path in paths] == [image.tobytes() for image in wanted]
    assert [recipe(path) for path in paths] == [json.loads(image.info["minisd"]) for image in wanted]
    assert [recipe(path)["prompt"] for path in paths] == [prompt for prompt in PROMPTS for _ in range(2)]
    (again,) = draw(PROMPTS[1], "--seed", "8", "-n", "gray")
    assert pixels(again) == pixels(paths[3])


def test_recipes_are_told_without_drawing(tiny_model: Path, monkeypatch) -> None:
    model = minisd.load(tiny_model, device="cpu")
    call = {"num_images": 2, "seed": 3, "sampler": "euler_a", "eta": 0.5, "clip_skip": 2}
    drawn = [json.loads(image.info["minisd"]) for image in minisd.generate(model, PROMPTS[:2], **call)]
    monkeypatch.setattr(model.unet, "forward", None)
    assert recipes(model, PROMPTS[:2], **call) == drawn


def test_seeds_of_a_list_stay_below_their_limit(tiny_model: Path) -> None:
    """Beyond 2^64 - 1 the generator would begin at 0 again."""
    model = minisd.load(tiny_model, device="cpu")
    assert recipes(model, ["a", "b"], seed=2**64 - 2)[1]["seed"] == 2**64 - 1
    with pytest.raises(ValueError, match="beyond"):
        minisd.generate(model, ["a", "b"], seed=2**64 - 1)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_batch_goes_on_where_it_stopped(draw, monkeypatch, prompt_file: str, after: int) -> None:
    whole = draw("--from-file", prompt_file, "-N", "2", "--outdir", "whole")
    true_generate, seeds = minisd.pipeline.generate, []

    def interrupted(*args: object, **options: object) -> object:
        seeds.append(options["seed"])
        if len(seeds) == after + 1:
            raise KeyboardInterrupt
        return true_generate(*args, **options)

    monkeypatch.setattr("minisd.pipeline.generate", interrupted)
    batch = ["--from-file", prompt_file, "-N", "2", "--outdir", "parts"]
    first = draw(*batch, code=130)
    second = draw(*batch)
    assert [path.name for path in first + second] == [path.name for path in whole]
    assert files("parts") == files("whole")
    assert seeds == [*range(after + 1), *range(after, 6)]
    assert draw(*batch) == [] and len(seeds) == 7


KILLED = """
import os, signal, sys
from PIL.Image import Image
from minisd.cli import main

def save(image, path, *how, **options):
    true(image, path, *how, **options)
    if os.path.exists(sys.argv[1]):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

true, Image.save = Image.save, save
main(sys.argv[2:])
"""


def test_a_killed_batch_leaves_whole_pictures_and_goes_on(draw, tiny_model: Path, prompt_file: str) -> None:
    """The worst moment: the second picture is half written."""
    batch = ["--from-file", prompt_file, "--outdir", "parts"]
    argv = [sys.executable, "-c", KILLED, "parts/00000-0.png", *DRAW[3:], *batch, "--model", str(tiny_model)]
    done = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL and done.stdout == "parts/00000-0.png\n"
    assert set(pictures("parts")) == {"00000-0.png"} and len(files("parts")) == 2
    assert len(draw(*batch)) == 2
    draw(*batch[:-1], "whole")
    assert pictures("parts") == pictures("whole")


def test_prompts_may_be_added_at_the_end(draw, prompt_file: str) -> None:
    draw("--from-file", prompt_file, "--outdir", "o")
    with open(prompt_file, "a", encoding="utf-8") as file:
        file.write("\n# more\none more\n")
    assert draw("--from-file", prompt_file, "--outdir", "o") == [Path("o/00003-3.png")]


@pytest.mark.parametrize("change", ["--steps=5", "--clip-skip=2", "-n=blue", "-W=32", "prompt", "text", "cut"])
def test_another_picture_is_never_overwritten_unasked(draw, monkeypatch, prompt_file: str, change: str) -> None:
    """A batch with other settings, other prompts, or a folder with other files in it."""
    batch = ["--from-file", prompt_file, "--outdir", "o"]
    *_, last = draw(*batch)
    if change == "prompt":
        Path(prompt_file).write_text("\n".join(PROMPTS[::-1]), encoding="utf-8")
    elif change == "text":
        last.write_text("mine")
    elif change == "cut":
        last.write_bytes(last.read_bytes()[:-20])
    batch += [change] if change.startswith("-") else []
    before = files("o")
    with monkeypatch.context() as patch:
        patch.setattr("minisd.pipeline.generate", lambda *_, **__: pytest.fail("drawn before all is checked"))
        draw(*batch, code=2)
    assert files("o") == before
    assert len(draw(*batch, "--overwrite")) == 3
    assert set(files("o")) == set(before) and files("o") != before
    assert draw(*batch) == []


def test_what_differs_is_said(draw, tiny_model: Path, prompt_file: str, capsys) -> None:
    batch = ["--from-file", prompt_file, "--outdir", "o", "--model", str(tiny_model)]
    assert main(["generate", *batch]) == 0
    capsys.readouterr()
    assert main(["generate", *batch, "-q", "--steps", "5", "--cfg", "2"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "00000-0.png" in line and "another steps, cfg_scale:" in line and "--overwrite" in line
    assert main(["generate", *batch]) == 0
    assert "0 pictures in 0.0 s, 3 were there already" in capsys.readouterr().err


def test_every_entry_of_a_recipe_is_compared_but_the_machine(draw) -> None:
    (path,) = draw("x", "--seed", "1")
    told = recipe(path)
    assert is_drawn(path, told) and not is_drawn(Path("other.png"), told)
    assert is_drawn(path, told | {"device": "cuda", "minisd": "9", "torch": "9"})
    for name in set(told) - {"device", "minisd", "torch"}:
        for other in (told | {name: "other"}, {k: v for k, v in told.items() if k != name or v is None}):
            if other != told:
                with pytest.raises(ValueError, match=f"another {name}: "):
                    is_drawn(path, other)
    with pytest.raises(ValueError, match="another new: "):
        is_drawn(path, told | {"new": 1})


def test_every_picture_falls_to_one_process() -> None:
    """Shares are disjoint and complete, each without a gap, and differ by one picture at most."""
    for count, world in itertools.product((1, 2, 3, 8, 17, 24, 40, 100), (1, 2, 3, 4, 7)):
        shares = [Team(rank, world).share(count) for rank in range(world)]
        assert [i for share in shares for i in share] == list(range(count))
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1


def test_lots_have_no_gap_and_lose_nothing() -> None:
    numbers = [0, 1, 2, 3, 4, 7, 8, 11, 20, 21, 22, 23]
    for size in (1, 2, 3, 100):
        lots = list(batches(numbers, size))
        assert [i for lot in lots for i in lot] == numbers
        assert all(lot == list(range(lot[0], lot[0] + len(lot))) and len(lot) <= size for lot in lots)
    assert list(batches(numbers, 3)) == [[0, 1, 2], [3, 4], [7, 8], [11], [20, 21, 22], [23]]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("where", [["--outdir", "o"], ["-o", "o.png"]])
def test_several_processes_share_the_pictures_of_one_prompt(draw, monkeypatch, where: list[str]) -> None:
    """The second looks at the folder when the first has drawn already."""
    call = ["a red circle", "-N", "5", "--seed", "7"]
    alone = {recipe(path)["seed"]: pixels(path) for path in draw(*call, "--outdir", "a")}
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared: list[Path] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        own = draw(*call, *where)
        assert len(own) in (2, 3)
        shared += own
    assert len(set(shared)) == 5
    assert {recipe(path)["seed"]: pixels(path) for path in shared} == alone


def test_torchrun_shares_a_file_of_prompts(draw, tiny_model: Path, prompt_file: str) -> None:
    """Two processes draw what one draws, file for file, each picture once; what both would say, one says."""
    batch = ["--from-file", prompt_file, "-N", "3", "--steps", "1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    argv = [*torchrun, *DRAW[2:], *batch, "--outdir", "shared", "--model", str(tiny_model)]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    alone = draw(*batch, "--outdir", "alone")
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == [path.name for path in alone]
    assert files("shared") == files("alone")
    assert [done.stderr.count(once) for once in ("seed 0\n", "cpu fp32: ")] == [1, 1]
    counts = re.findall(r"process ([01]) of 2: (\d) pictures in ", done.stderr)
    assert sorted(counts) == [("0", "4"), ("1", "5")]


def test_a_team_goes_on_with_what_one_process_began(draw, monkeypatch, prompt_file: str) -> None:
    batch = ["--from-file", prompt_file, "-N", "2", "--outdir", "o"]
    draw(*batch)
    wanted = files("o")
    for name in ("00000-0.png", "00003-3.png", "00004-4.png"):
        Path("o", name).unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        made += draw(*batch)
    assert sorted(path.name for path in made) == ["00000-0.png", "00003-3.png", "00004-4.png"]
    assert files("o") == wanted


def test_each_process_takes_a_cuda_device_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [Team(4 + i, 8, i).device("auto") for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Team(1, 2, 1).device("cpu") == "cpu" and Team(1, 2).device("auto") == Team().device("auto") == "auto"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Team(1, 2, 1).device("auto") == "auto"


def test_a_grid_shows_every_picture_and_is_no_picture_to_draw_again(draw, prompt_file: str, capsys) -> None:
    *paths, sheet = draw("--from-file", prompt_file, "-N", "2", "--grid", "--outdir", "o", "--seed", "5")
    assert sheet == Path("o/grid-00000-5.png") and len(paths) == 6
    with Image.open(sheet) as image:
        assert image.size == (3 * 66 + 2, 2 * 66 + 2)  # three columns, two rows
        corners = [(2 + 66 * column, 2 + 66 * row) for row in range(2) for column in range(3)]
        assert [image.crop((x, y, x + 64, y + 64)).tobytes() for x, y in corners] == [pixels(path) for path in paths]
        assert set(image.info) == {"minisd_grid"}
        told = json.loads(image.info["minisd_grid"])
    assert [told["recipe"] | cell for cell in told["cells"]] == [recipe(path) for path in paths]
    assert set(told["cells"][0]) == {"prompt", "seed"} and told["columns"] == 3
    assert main(["info", str(sheet)]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert draw("--from-file", prompt_file, "-N", "2", "--grid", "--outdir", "o", "--seed", "5") == [
        Path("o/grid-00001-5.png")
    ]
    assert pixels(Path("o/grid-00001-5.png")) == pixels(sheet)


def test_a_grid_takes_the_exact_name(draw) -> None:
    call = ["x", "-N", "2", "--seed", "8", "--grid", "-o", "a.png"]
    assert [str(path) for path in draw(*call)] == ["a-8.png", "a-9.png", "a.png"]
    with Image.open("a.png") as image:
        assert "minisd_grid" in image.info
    for name in ("a-8.png", "a-9.png"):
        Path(name).unlink()
    draw(*call, code=2)  # the sheet's own name is taken
    assert len(draw(*call, "--overwrite")) == 3
