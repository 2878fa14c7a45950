"""`minisd eval`: its figures against known answers, its prompts, its tables and its line of JSON."""

import json
import math
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from scipy.linalg import sqrtm
from test_folders import Case, case  # noqa: F401  (a fixture)
from tiny_world import tiny_world
from toy_font import TOYS, write_font

from minisd.cli import eval as command
from minisd.cli import main
from minisd.config import Config
from minisd.eval.clip import clip_scores, load_clip
from minisd.eval.distances import frechet, nearest
from minisd.eval.evaluate import PARTS, TOLD_SHAPES, Evaluation, Plan
from minisd.eval.evaluate import SHAPES as SHAPES_ALONE
from minisd.eval.figures import clip_figures, coarse, nearest_figures
from minisd.eval.intervals import bootstrap, jackknife, of_mean_share, wilson
from minisd.eval.kept import Kept, load_kept
from minisd.eval.prompts import CATEGORIES, GENEVAL, HELD_OUT, described, questions
from minisd.eval.score import answered, by_oracle, from_bytes, overall, real, to_bytes
from minisd.settings import Options
from minisd.text.tokenizer import Tokenizer
from minisd.train.checkpoint import save as save_checkpoint
from minisd.train.clip import ClipStage
from minisd.train.export import keep_clip
from minisd.train.judge import JudgeStage, write_judge
from minisd.train.loop import begin
from minisd.train.recipe import ClipRecipe, JudgeRecipe
from minisd.world.emoji import EMOJI
from minisd.world.judge import JUDGE
from minisd.world.mark import mark
from minisd.world.oracle import Reading
from minisd.world.scenes import held_out, recipe, reserved
from minisd.world.words import SHAPES
from minisd.world.world import World

Make = Callable[[str], Case]


@pytest.fixture(autouse=True)
def no_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minisd.world.recipe.FONTS", ("/no/font",))


@pytest.fixture(scope="module")
def world(toy_font: Path) -> World:
    return tiny_world(toy_font)


@pytest.fixture(scope="module")
def kept_folder(world: World, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would ship: a judge that has learned nothing, of a world whose font lies where systems keep it, and the
    towers of a clip stage at its start."""
    folder = tmp_path_factory.mktemp("run")
    stage = JudgeStage(JudgeRecipe(widths=(8, 16), feature=16), world)
    stage.world = copy(world)
    stage.world.recipe = replace(world.recipe, font=None)
    write_judge(stage, stage.module.state_dict(), folder / "judge", 64)
    config = Config.load(tiny_model / "config.json").text[0]
    config = replace(config, projection=24)
    clip = ClipStage(
        ClipRecipe(10, 8, 1e-3, width=32, layers=1, heads=2), config, Tokenizer(tiny_model / "tokenizer", config), world
    )
    state, _ = begin(clip)
    save_checkpoint(folder / "clip.safetensors", state, clip.recipe)
    (folder / "tokenizer").symlink_to(tiny_model / "tokenizer")
    keep_clip(folder, config, folder / "judge")
    return folder / "judge"


@pytest.fixture(scope="module")
def kept(kept_folder: Path) -> Kept:
    return load_kept(kept_folder)


def gaussian(n: int, mean: torch.Tensor, root: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """n samples with exactly this mean and the covariance root root^T."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return mean + white @ root.T


# Distances.


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Along axes it is |m1 - m2|^2 + sum (s1 - s2)^2; of one Gaussian from itself 0; in any base the same."""
    mean1, mean2 = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([0.0, 2, 5, 4]).double()
    s1, s2 = torch.tensor([1.0, 0.5, 2, 3]).double(), torch.tensor([1.5, 0.5, 0.1, 3]).double()
    one, other = gaussian(500, mean1, s1.diag()), gaussian(300, mean2, s2.diag(), seed=1)
    want = float(((mean1 - mean2) ** 2).sum() + ((s1 - s2) ** 2).sum())
    assert frechet(one, other) == pytest.approx(want, rel=1e-9)
    assert frechet(other, one) == pytest.approx(want, rel=1e-9)
    assert frechet(one, gaussian(900, mean1, s1.diag(), seed=2)) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double()).Q
    assert frechet(one @ turn, other @ turn) == pytest.approx(want, rel=1e-9)


def test_the_frechet_distance_against_scipys_matrix_root() -> None:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(60, 12, generator=draw) @ torch.randn(12, 12, generator=draw)
    other = torch.randn(80, 12, generator=draw) @ torch.randn(12, 12, generator=draw) + 1
    c1, c2 = (x.double().T.cov().numpy() for x in (one, other))
    want = float((one - other.mean(0)).mean(0).square().sum()) + (c1 + c2 - 2 * sqrtm(c1 @ c2).real).trace()
    assert frechet(one, other) == pytest.approx(want, rel=1e-5)  # the means are float32
    few = one[:8]  # fewer than features: the covariance has no full rank
    assert math.isfinite(frechet(few, other)) and frechet(few, few) == pytest.approx(0, abs=1e-6)


def test_the_nearest_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(300, 5, generator=draw), torch.randn(40, 5, generator=draw)
    want = (one[:, None] - other).square().sum(-1).sqrt().min(1).values
    torch.testing.assert_close(nearest(one, other), want, rtol=1e-4, atol=1e-4)
    assert nearest(other[[7]], other).item() == pytest.approx(0, abs=1e-3)


def test_pixel_distances_are_in_levels() -> None:
    dark, bright = torch.full((1, 3, 8, 8), 10, dtype=torch.uint8), torch.full((1, 3, 8, 8), 17, dtype=torch.uint8)
    assert nearest(coarse(dark), coarse(bright)).item() == pytest.approx(7)


def test_copies_are_noticed(kept: Kept, world: World) -> None:
    """Training pictures themselves, handed in as a model's, are nearer than 99 of 100 real ones; real ones are not."""
    asked = described(world.vocabulary, 60)
    answers = answered(asked, real(world, asked), kept.judge.read, world.size)
    honest = nearest_figures(kept, world, answers, 256)
    copied = nearest_figures(
        kept, world, replace(answers, pictures=to_bytes(world.pictures(range(60)), world.size)), 256
    )
    for space in ("features", "pixels"):
        assert copied[space]["nearer_than_99_of_100_real"] > 0.95 and copied[space]["median"] < 0.2  # of 255 levels
        assert honest[space]["nearer_than_99_of_100_real"] <= 1 / 60
        assert honest[space]["median"] == honest[space]["median_of_real"]


# Intervals.


def test_wilsons_interval() -> None:
    """Against the closed values of Wilson's formula at 95 %."""
    assert wilson(270, 300) == pytest.approx((0.8609, 0.9290), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0


def test_wilsons_interval_holds_the_truth_in_95_of_100() -> None:
    draw = torch.Generator().manual_seed(0)
    for p in (0.5, 0.9, 0.98):
        right = torch.binomial(torch.full((2000,), 100.0), torch.full((2000,), p), generator=draw).int().tolist()
        held = sum(low <= p <= high for low, high in (wilson(r, 100) for r in right)) / 2000
        assert 0.92 < held < 0.99, (p, held)


def test_the_interval_of_a_mean_of_shares() -> None:
    """Of one share it is Wilson's; of k equal ones it is narrower by the root of k; it holds the truth as often."""
    assert of_mean_share([(30, 50)]) == pytest.approx(wilson(30, 50))
    low, high = wilson(30, 50)
    assert of_mean_share([(30, 50)] * 4) == pytest.approx((0.6 - (0.6 - low) / 2, 0.6 + (high - 0.6) / 2))
    draw, shares = torch.Generator().manual_seed(0), torch.tensor([0.3, 0.6, 0.8, 0.9, 0.95, 0.5])
    right = torch.binomial(torch.full((1000, 6), 50.0), shares.expand(1000, 6), generator=draw).int().tolist()
    ends = [of_mean_share([(r, 50) for r in row]) for row in right]
    assert 0.92 < sum(low <= shares.mean() <= high for low, high in ends) / 1000 < 0.98


def test_resampling_agrees_with_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 1
    mean, error = values.mean().item(), (values.std() / 20).item()
    want = pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)  # 2000 resamples
    assert bootstrap(values) == want
    assert bootstrap(values, seed=1) == want and bootstrap(values) == bootstrap(values)
    low, high = bootstrap(values, median=True)
    assert low < values.median() < high and high - low > 2 * 1.96 * error  # a median is 1.25 times as unsure
    assert jackknife(lambda x: x.mean().item(), values, groups=400) == pytest.approx(
        (mean - 1.96 * error, mean + 1.96 * error), rel=1e-4
    )


# CLIP scores.


def test_clip_scores_have_their_bounds() -> None:
    texts = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert clip_scores(texts, texts).tolist() == pytest.approx([2.5] * 50)
    assert clip_scores(texts, -texts).tolist() == [0.0] * 50
    assert clip_scores(texts, texts.roll(1, 0)).min() >= 0 and clip_scores(texts, texts.roll(1, 0)).max() <= 2.5


def test_the_kept_towers_are_those_of_the_clip_stage(kept: Kept, world: World, tiny_model: Path) -> None:
    """In fp16; and a picture of another size is made to fit."""
    config = replace(Config.load(tiny_model / "config.json").text[0], projection=24)
    stage = ClipStage(
        ClipRecipe(10, 8, 1e-3, width=32, layers=1, heads=2), config, Tokenizer(tiny_model / "tokenizer", config), world
    )
    stage.module.eval()
    pictures, prompts = world.pictures(range(6)), world.captions(range(6), 0)
    with torch.no_grad():
        image, text = stage.module["image"](pictures), stage.encode(prompts)[1]
    for ours, theirs in ((kept.clip.pictures(pictures), image), (kept.clip.prompts(prompts), text)):
        theirs = torch.nn.functional.normalize(theirs, dim=-1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # fp16 weights
    large = torch.nn.functional.interpolate(pictures, scale_factor=2, mode="bilinear")
    assert kept.clip.pictures(large).shape == (6, 24)
    assert load_clip(Path("/no/folder"), "cpu") is None


# Prompts.

LIKE = {
    "single_object": "a picture of a {}",
    "two_objects": "a picture of a {} and a {}",
    "counting": "a picture of {n} {}s",
    "colors": "a picture of a {colour} {}",
    "position": "a picture of a {} {relation} a {}",
    "color_attribution": "a picture of a {colour} {} and a {colour} {}",
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_distinct_true_of_their_scenes_and_never_trained_on(world: World, category: str) -> None:
    asked = questions(world.vocabulary, category, 60)
    assert len({question.prompt for question in asked}) == len(asked) == 60
    assert asked == questions(world.vocabulary, category, 60) != questions(world.vocabulary, category, 60, seed=1)
    for question in asked:
        things, scene = question.told.things, question.scene
        assert mark(Reading("unclear", scene.objects), question.told)["all"]
        put_aside = any(held_out(item) for item in scene.objects)
        assert put_aside == (category in HELD_OUT) and (put_aside or reserved(recipe(scene)))
        assert question.told.ground is None and question.told.place is None
        assert (question.told.relation is not None) == (category == "position")
        assert all((thing.colour is not None) == ("colour" in CATEGORIES[category].words) for thing in things)
        assert len(things) == len({thing.noun for thing in things}) or category == "counting"
        assert all(thing.noun in question.prompt and (thing.colour or "") in question.prompt for thing in things)


def test_prompts_say_what_genevals_say(world: World) -> None:
    """The words of the first ones, with nouns, colours, numbers and relations left open."""
    for category, form in LIKE.items():
        for question in questions(world.vocabulary, category, 5):
            things, numbers = question.told.things, {2: "two", 3: "three", 4: "four"}
            parts = form.replace("{colour}", "{}").split("{}")
            fill = [word for t in things for word in ((t.colour, t.noun) if "{colour}" in form else (t.noun,))]
            if category == "counting":
                fill = fill[:1]
            text = "".join(part + word for part, word in zip(parts, [*fill, ""], strict=True))
            text = text.replace("{n}", numbers.get(len(things), "")).replace("{relation}", question.told.relation or "")
            assert question.prompt.replace(" an ", " a ").replace("sses", "sss").replace("xes", "xs") == text


def test_a_small_world_gives_as_many_prompts_as_it_has(world: World) -> None:
    """Eleven nouns in three frames, with a size or without: 99 at most, each once."""
    asked = questions(world.vocabulary, "single_object", 1000)
    assert 60 < len(asked) <= 99
    first = [question.prompt for question in asked][: len(SHAPES)]
    assert all(prompt.startswith("a picture of a") for prompt in first)


def test_prompts_need_no_font(kept: Kept, world: World) -> None:
    """The words that ship with the judge give the prompts that the world itself gives."""
    for category in CATEGORIES:
        assert questions(kept.words, category, 30) == questions(world.vocabulary, category, 30)
    assert described(kept.words, 30) == described(world.vocabulary, 30)
    with pytest.raises(ValueError, match="no colour font"):
        kept.world()


def test_a_world_is_drawn_by_the_font_that_the_judge_learned_alone(
    kept: Kept, world: World, toy_font: Path, tmp_path: Path
) -> None:
    scenes = world.scenes(range(8), "test")
    assert torch.equal(kept.world(str(toy_font)).draw(scenes), world.draw(scenes))
    turned = {EMOJI[noun]: TOYS[toy] for noun, toy in (("fox", "cat"), ("cat", "dog"), ("dog", "fox"))}
    other = write_font(tmp_path / "other.ttf", turned)
    with pytest.raises(ValueError, match="other emoji than the judge has learned"):
        kept.world(str(other))


# Scores.


@pytest.mark.parametrize("shape", [(256, 256), (96, 64), (56, 56)])
def test_the_oracle_reads_pictures_of_any_size(shape: tuple[int, int]) -> None:
    asked = described(World(SHAPES_ALONE).vocabulary, 24, 0, *TOLD_SHAPES["two_shapes"])
    (pictures,) = real(World(SHAPES_ALONE), asked)
    fitted = torch.nn.functional.interpolate(pictures, shape, mode="bicubic", antialias=True)
    assert answered(asked, [fitted], by_oracle, 32).score.right["all"] >= 23


def test_a_score_counts_what_is_right(world: World) -> None:
    """A reader that sees all, and one that takes every third picture's first object for a circle too many."""
    asked = questions(world.vocabulary, "position", 60)
    truth = iter([Reading(q.scene.background, q.scene.objects) for q in asked])
    whole = answered(asked, real(world, asked), lambda x: [next(truth) for _ in x], 32).score
    assert (whole.share, whole.count, whole.right["relation"]) == (1.0, 60, 60)
    read = (Reading("sea", q.scene.objects[i % 3 == 0 :]) for i, q in enumerate(asked))
    some = answered(asked, real(world, asked), lambda x: [next(read) for _ in x], 32)
    assert some.score.right == dict.fromkeys(some.score.right, 40) | {"place": 60, "ground": 60}
    mean, (low, high) = overall([whole, some.score])
    assert mean == pytest.approx((1 + 40 / 60) / 2) and low < mean < high
    assert torch.equal(some.pictures, to_bytes(world.draw([q.scene for q in asked]), 32))
    assert (from_bytes(some.pictures) - world.draw([q.scene for q in asked])).abs().max() <= 0.5 / 127.5 + 1e-6


def test_a_picture_scores_higher_with_its_own_prompt_where_the_towers_know(kept: Kept, world: World) -> None:
    """Towers that see the picture in the prompt and the prompt in the picture."""
    asked = questions(world.vocabulary, "colors", 40)
    answers = answered(asked, real(world, asked), kept.judge.read, 32)
    vectors = torch.nn.functional.normalize(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), dim=-1)
    lots = iter(vectors.split(64))
    knowing = SimpleNamespace(pictures=lambda _: next(lots), prompts=lambda _: vectors)
    figures = clip_figures(knowing, [answers])
    assert figures["score"] == pytest.approx(2.5) and figures["with_other_prompts"] < 0.6 and figures["count"] == 40


# The command.


def evaluated(capsys: pytest.CaptureFixture, kept_folder: Path, model: Path, *argv: str) -> tuple[str, str]:
    assert main(["eval", "-m", str(model), "--judge", str(kept_folder), "--device", "cpu", *argv]) == 0
    return capsys.readouterr()


def test_one_line_of_json_comes_last(
    capsys: pytest.CaptureFixture,
    kept_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    sheet = tmp_path / "sheet.png"
    argv = ("--quick", "--json", "--count", "2", "--steps", "1", "--sweep", "steps=1,2", "--sheet", str(sheet))
    out, err = evaluated(capsys, kept_folder, tiny_model, *argv)
    assert out.count("\n") == 1 and sheet.is_file()
    data = json.loads(out)
    names = (*GENEVAL, *HELD_OUT)
    assert {"overall", *names} <= data.keys() and data["quick"] is True
    assert all(0 <= data[name] <= 1 for name in ("overall", *names))
    assert data["overall"] == pytest.approx(sum(data[name] for name in GENEVAL) / 6, abs=1e-4)
    for name in names:
        low, high = data["intervals"][name]
        assert data["counts"][name] == 2 and low <= data[name] <= high
        assert data["right"][name] / 2 == data[name]
    assert data["counts"]["overall"] == 12 and data["intervals"]["overall"][0] <= data["overall"]
    assert data["judge"]["measured"] is False and data["judge"]["objects"] > 64
    assert 0 <= data["clip_score"]["score"] <= 2.5 and data["clip_score"]["count"] == 12
    assert [row["steps"] for row in data["sweeps"]["steps"]] == [1, 2]
    assert data["sweeps"]["steps"][0]["overall"] == data["overall"]  # the same prompts, seeds and steps
    assert data["model"] == "tiny" and data["settings"]["steps"] == 1
    for words in ("the judge on", "no real pictures are drawn", "single_object", "overall", "CLIP score", "steps"):
        assert words in err


def test_the_tables_tell_all_parts(capsys: pytest.CaptureFixture, kept_folder: Path, tiny_model: Path) -> None:
    argv = ("--parts", "scenes,shapes", "--count", "3", "--steps", "1", "-q")
    out, _ = evaluated(capsys, kept_folder, tiny_model, *argv)
    assert out.startswith("the judge on")
    for words in ("one_shape", "held_out_shape_of_two", "scenes", "Fréchet distance", "of real pictures"):
        assert words in out
    assert "overall" not in out and "nearest" not in out  # no six categories, no font


def test_real_pictures_are_measured_where_they_can_be_drawn(kept: Kept, world: World, tiny_model: Path) -> None:
    import minisd

    model = minisd.load(tiny_model, device="cpu")
    said = []
    plan = Plan(4, ("held_out", "scenes"), options={"steps": 1}, looked_at=32, learned=64)
    report = Evaluation(model, kept, world, plan).run(lambda report: said.append(report.measured))
    assert said == [True] and report.accuracy["pictures"] == 32 and report.overall is None
    assert report.ceilings["held_out"]["held_out"].count == 4 and report.figures["nearest"]["training_pictures"] == 64


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_checkpoint_of_another_family_and_size_is_scored_whole(
    capsys: pytest.CaptureFixture,
    kept_folder: Path,
    case: Make,  # noqa: F811
    form: str,
) -> None:
    """A random SD 1.x, as a diffusers folder and as a single file, on pictures that are small and no squares."""
    one = case("sd1")
    path, tokenizer = getattr(one, form), [] if form == "folder" else ["--tokenizer", str(one.folder)]
    argv = ("--count", "1", "--steps", "1", "-W", "16", "-H", "32", "--json", "-q", *tokenizer)
    data = json.loads(evaluated(capsys, kept_folder, path, *argv)[0])
    assert data["counts"] == {"overall": 6, **dict.fromkeys((*CATEGORIES, *TOLD_SHAPES, "scenes"), 1)}
    assert "frechet" not in data and 0 <= data["overall"] <= 1  # one picture has no covariance


def test_a_setting_swept_twice_has_the_values_of_both(
    capsys: pytest.CaptureFixture, kept_folder: Path, tiny_model: Path
) -> None:
    argv = ("--sweep", "steps=1,2", "--sweep", "cfg=1", "--sweep", "steps=2,3", "--parts", "held_out", "--count", "1")
    data = json.loads(evaluated(capsys, kept_folder, tiny_model, *argv, "--steps", "1", "--json", "-q")[0])
    assert [row["steps"] for row in data["sweeps"]["steps"]] == [1, 2, 3]
    assert [row["cfg_scale"] for row in data["sweeps"]["cfg_scale"]] == [1.0]


@pytest.mark.usefixtures("no_loading")
def test_a_font_that_is_named_and_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture, kept_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = write_font(tmp_path / "other.ttf", {EMOJI["fox"]: TOYS["cat"]})
    (tmp_path / "text.ttf").write_text("no font")
    for font, said in ((other, "no picture of '🐱'"), (tmp_path / "text.ttf", "cannot be used")):
        argv = ["eval", "-m", str(tiny_model), "--judge", str(kept_folder), "--font", str(font)]
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--count", "0"], "--count: 0 must be at least 1"),
        (["--parts", "geneval,foo"], "unknown part 'foo'"),
        (["--sweep", "seed=1,2"], "--sweep: no setting 'seed'"),
        (["--sweep", "steps"], "has no ="),
        (["--sweep", "sampler=eulr"], "did you mean euler?"),
        (["--sweep", "clip_skip=1,9"], "--clip-skip 9 is out of range"),
        (["--steps", "0"], "--steps 0"),
        (["--judge", "/no/folder"], "/no/folder is no folder with judge.safetensors"),
        (["--font", "/no/font.ttf"], "there is no font"),
        (["--sheet", "x.jpg"], "must end in .png"),
        (["--sheet", "/no/x.png"], "No such file"),
        (["--plots", "plots"], "give a --sweep"),
        (["--count", "50000"], "--count 50000 makes 650000 pictures: 200000 are the most"),
        (["--count", "50000", "--parts", "scenes,held_out", "--sweep", "steps=1,2"], "makes 750000 pictures"),
        (["-m", "/no/model"], "/no/model"),
        (["a red circle"], "one word too many"),
    ],
)
@pytest.mark.usefixtures("no_loading", "at_once")
def test_bad_input_is_refused_in_one_line(
    argv: list[str], said: str, kept_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [] if "-m" in argv else ["-m", str(tiny_model)]
    judge = [] if "--judge" in argv else ["--judge", str(kept_folder)]
    assert main(["eval", *given, *judge, *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("minisd: ") and said in err


def test_the_help_names_what_there_is() -> None:
    assert tuple(command.PARTS) == PARTS and command.JUDGE == JUDGE
    assert [*command.PARTS.values()] == [len(GENEVAL), len(HELD_OUT), len(TOLD_SHAPES), 1]
    assert set(command.SWEPT) <= set(Options.__annotations__)


def test_a_plot_shows_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for matplotlib that notes what is drawn."""
    drawn: dict[str, list] = {"plot": [], "errorbar": []}

    class Panel:
        def __getattr__(self, name: str):
            return lambda *args, **more: drawn.get(name, []).append((args, more))

    class Figure:
        def __init__(self, **more: object) -> None:
            self.subplots = Panel

        def savefig(self, path: Path, **more: object) -> None:
            Path(path).write_bytes(b"picture")

    module = ModuleType("matplotlib.figure")
    module.Figure = Figure
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    from minisd.eval.plots import plot_sweep

    rows = [
        {"sampler": name, "overall": 0.5, "interval": (0.4, 0.65), **dict.fromkeys(GENEVAL, share)}
        for name, share in (("euler", 0.25), ("heun", 0.75))
    ]
    plot_sweep("sampler", rows, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes() == b"picture"
    assert [args[1] for args, _ in drawn["plot"]] == [[0.25, 0.75]] * 6
    ((places, shares, around), _) = drawn["errorbar"][0]
    assert (places, shares) == ([0, 1], [0.5, 0.5])
    assert around[0] == pytest.approx([0.1, 0.1]) and around[1] == pytest.approx([0.15, 0.15])
