"""The judge: the truth it is taught, what it learns of it, and what it says of pictures that show nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_world import tiny_world

from minisd.train.judge import JudgeStage, Truth, losses, resized, unseen, write_judge
from minisd.train.loop import advance, attempt, begin
from minisd.train.recipe import JudgeRecipe, Recipe
from minisd.train.wear import bent, blurred, nothing, worn
from minisd.world.accuracy import accuracy
from minisd.world.emoji import EMOJI
from minisd.world.judge import EXTENT, Answers, Judge, Words, in_words, load, name
from minisd.world.known import vocabulary
from minisd.world.mark import mark, told
from minisd.world.oracle import UNCLEAR
from minisd.world.scenes import SPLITS, Scene
from minisd.world.words import GROUNDS
from minisd.world.world import World

RECIPE = JudgeRecipe(steps=70, batch=24, lr=5e-3, warmup=5, autocast=False, widths=(16, 32, 48), feature=48)


@pytest.fixture(scope="module")
def world(toy_font: Path) -> World:
    """Nearly all of its objects are emoji."""
    return tiny_world(toy_font, 48, shapes=0.01)


@pytest.fixture(scope="module")
def fresh(world: World) -> JudgeStage:
    return JudgeStage(RECIPE, world)


@pytest.fixture(scope="module")
def taught(world: World) -> JudgeStage:
    """A judge after a few seconds."""
    stage = JudgeStage(RECIPE, world)
    state, gradients = begin(stage)
    for step in range(RECIPE.steps):
        names, figures = attempt(stage, stage.prepare(step, slice(None)), gradients, 0, torch.device("cpu"))
        advance(state, RECIPE, gradients, dict(zip(names, figures.tolist(), strict=True)))
    stage.module.load_state_dict(state.ema)
    stage.module.eval()
    return stage


def none(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """No picture is lost, and none is empty."""
    return torch.zeros(len(scenes), dtype=torch.bool), torch.zeros(len(scenes), dtype=torch.bool)


def perfect(truth: Truth, counts: list[int], grounds: int, side: int) -> Answers:
    """What a network would say that knows the truth: at each cell the words of the object whose centre is nearest."""
    b = len(truth.there)
    at = (torch.arange(side) + 0.5) / side
    way = truth.box[..., :2, None, None] - torch.stack(torch.meshgrid(at, at, indexing="xy"))  # (b, 4, 2, h, w)
    far = way.abs().amax(2) + 9 * ~truth.there[..., None, None]
    own = far.argmin(1)  # (b, h, w)
    heat = torch.where(far.amin(1) <= 0.5 / side, 20.0, -20.0)

    def of_nearest(x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, own[:, None].expand(b, 1, side, side)).squeeze(1)

    place = torch.stack([of_nearest(way[:, :, 0]) * side, of_nearest(way[:, :, 1]) * side], 1)
    size = (truth.box[..., 2] / EXTENT).log()[..., None, None].expand(b, 4, side, side)
    words = [
        20.0
        * F.one_hot(of_nearest(truth.words[..., k, None, None].expand(b, 4, side, side)), n + 1).permute(0, 3, 1, 2)
        for k, n in enumerate(counts)
    ]
    ground = 20.0 * F.one_hot(truth.ground, grounds + 1)
    return Answers(heat, torch.cat([place, of_nearest(size)[:, None]], 1), *words, ground, torch.zeros(b, 1))


def test_who_knows_the_truth_reads_every_scene_and_loses_nothing(fresh: JudgeStage, world: World) -> None:
    """The network's answers, put in words, are the scenes again; wrong by one word or place they are not, and cost."""
    scenes = [scene for split in SPLITS for scene in world.scenes(range(60), split)]
    plan = world.painter.layout(scenes)
    truth = fresh.truth(scenes, plan, plan, *none(scenes))
    answers = perfect(truth, [len(words) for words in fresh.words.known], len(fresh.words.grounds), 12)
    for reading, scene in zip(in_words(answers, fresh.words), scenes, strict=True):
        assert mark(reading, told(scene))["all"], scene
        for item in scene.objects:
            seen = min(reading.objects, key=lambda s: abs(s.x - item.x) + abs(s.y - item.y))
            assert (seen.x, seen.y, seen.extent) == pytest.approx((item.x, item.y, item.extent), abs=1e-5)
    assert accuracy(in_words(answers, fresh.words), scenes).right["all"] == sum(len(s.objects) for s in scenes)
    known_loss = losses(answers, truth)
    assert max(known_loss.values()) < 1e-4
    wrong = answers._replace(noun=answers.noun.roll(1, 1), heat=-answers.heat, place=answers.place + 0.5)
    for part in ("noun", "heat", "place"):
        assert losses(wrong, truth)[part] > known_loss[part] + 0.1


def test_what_is_not_sure_is_unclear() -> None:
    words = ("fox", "boat")
    assert name(torch.tensor([0.61, 0.2, 0.19]), words) == "fox"
    assert name(torch.tensor([0.59, 0.21, 0.2]), words) == UNCLEAR  # nothing is sure
    assert name(torch.tensor([0.1, 0.1, 0.8]), words) == UNCLEAR  # sure that it is nothing


def test_a_muddle_is_unclear_in_what_its_two_halves_disagree_on(fresh: JudgeStage, world: World) -> None:
    scenes = world.scenes(range(200))
    plan = world.painter.layout(scenes)
    second, patches = fresh.muddle(plan, torch.Generator().manual_seed(0))
    changed = second.sprite != plan.sprite
    assert 0.05 < changed.sum() / (plan.sprite >= 0).sum() < 0.15
    assert not (changed & (plan.sprite < 0)).any() and set(patches.unique().tolist()) == {0.0, 1.0}
    truth = fresh.truth(scenes, plan, second, *none(scenes))
    one, other = fresh.said[plan.sprite[changed]], fresh.said[second.sprite[changed]]
    assert torch.equal(truth.words[changed] == fresh.unclear, one != other)
    same_noun = (one[:, 0] == other[:, 0]).float().mean()
    assert 0.4 < same_noun < 0.9  # a muddle of hues alone is as frequent as one of things
    untouched = ~changed.any(1)
    both = [world.painter(p)[untouched] for p in (plan, second)]
    assert torch.equal(*both)


def test_things_of_other_sizes_are_drawn_and_told_so(fresh: JudgeStage, world: World) -> None:
    """Half of them as they were; the boxes told are the boxes drawn: outside nothing changes."""
    scenes = world.scenes(range(100))
    plan = world.painter.layout(scenes)
    small = resized(plan, torch.Generator().manual_seed(0))
    shares = (small.box / plan.box)[plan.sprite >= 0]
    assert torch.equal(shares[:, :2], torch.ones_like(shares[:, :2])) and 0.68 <= shares[:, 2].min() < 0.75
    assert shares[:, 2].max() <= 1 and 0.4 < (shares[:, 2] == 1).float().mean() < 0.6
    bare = world.painter(replace(plan, sprite=torch.full_like(plan.sprite, -1)))
    touched = (world.painter(small) != bare).any(1)  # (b, h, w)
    at = (torch.arange(48) + 0.5) / 48
    reach = small.box[..., 2] / 2 + 1 / 48
    inside = [(small.box[..., k, None] - at).abs() <= reach[..., None] for k in (0, 1)]  # (b, 4, 48)
    boxes = (inside[0][:, :, None, :] & inside[1][:, :, :, None] & (plan.sprite >= 0)[..., None, None]).any(1)
    assert not (touched & ~boxes).any() and touched.sum() > 0.3 * boxes.sum()


def test_lost_pictures_keep_their_hues_alone_and_empty_ones_nothing(fresh: JudgeStage, world: World) -> None:
    scenes = world.scenes(range(20))
    plan = world.painter.layout(scenes)
    lost, empty = torch.arange(20) % 2 == 0, torch.arange(20) % 5 == 1
    before, after = (fresh.truth(scenes, plan, plan, *way) for way in (none(scenes), (lost, empty)))
    assert torch.equal(after.words[~lost], before.words[~lost])
    assert torch.equal(after.words[lost][..., 1], before.words[lost][..., 1])
    assert (after.words[lost][..., [0, 2]] == fresh.unclear[[0, 2]]).all()
    assert torch.equal(after.there[~empty], before.there[~empty]) and not after.there[empty].any()
    assert (after.ground[empty] == len(world.grounds)).all() and torch.equal(
        after.ground[~empty], before.ground[~empty]
    )


def test_a_blur_has_the_width_it_is_asked_for() -> None:
    """The variance of a blurred point is sigma squared; a plain picture stays as it is."""
    point = torch.zeros(3, 1, 65, 65)
    point[..., 32, 32] = 1
    sigma = torch.tensor([[0.02], [0.04], [0.08]])
    spread = blurred(point, sigma).sum(2).squeeze(1)  # (3, 65)
    variance = (spread * (torch.arange(65) - 32) ** 2).sum(1)
    torch.testing.assert_close(variance, (65 * sigma.squeeze(1)) ** 2, rtol=1e-3, atol=0)
    plain = torch.full((3, 2, 65, 65), 0.3)
    torch.testing.assert_close(blurred(plain, sigma), plain)


def test_wear_is_a_function_of_its_draws_and_moves_little(world: World) -> None:
    pictures = world.pictures(range(32))
    lost = torch.zeros(32, dtype=torch.bool)
    one, again, other = (worn(pictures, lost, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert (one - pictures).abs().mean() < 0.12 and one.abs().max() <= 1
    fine = (x.diff(dim=-1).abs().mean() for x in (one, worn(pictures, ~lost, torch.Generator().manual_seed(1))))
    assert next(fine) > 1.3 * next(fine)  # what is lost has edges no more
    still = bent(pictures, torch.zeros(32, 2, 5, 5))
    torch.testing.assert_close(still, pictures, rtol=0, atol=1e-5)
    right = bent(pictures, torch.tensor([1 / 48, 0.0]).view(1, 2, 1, 1).expand(32, 2, 5, 5))
    torch.testing.assert_close(right[..., :-1], pictures[..., 1:], rtol=0, atol=1e-4)


def test_a_step_is_a_pure_function_of_its_number_and_its_parts_are_those_of_the_whole(fresh: JudgeStage) -> None:
    whole, again = (fresh.prepare(3, slice(None)) for _ in range(2))
    part = fresh.prepare(3, slice(8, 16))
    for x, y, z in zip((whole[0], *whole[1]), (again[0], *again[1]), (part[0], *part[1]), strict=True):
        assert torch.equal(x, y) and torch.equal(x[8:16], z)


def test_a_few_seconds_teach_it_where_things_are_and_most_of_what_they_are(taught: JudgeStage, world: World) -> None:
    """Unseen scenes of three emoji in eight colours each: chance names a noun in a third, a colour in an eighth."""
    scenes = world.scenes(range(2**32, 2**32 + 200), "test")
    seen = accuracy(taught.module.read(world.draw(scenes)), scenes)
    shares = {factor: count / seen.objects for factor, count in seen.right.items()}
    assert shares["found"] > 0.8 and shares["noun"] > 0.45 and shares["colour"] > 0.3, shares


def test_what_shows_nothing_is_seldom_taken_for_something(taught: JudgeStage) -> None:
    """Plain pictures never; patches in at most a fifth of the pictures, after so short a time."""
    plain = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 48, 48)
    assert not any(reading.objects for reading in taught.module.read(plain))
    patches = taught.module.read(nothing(40, 48, torch.Generator().manual_seed(0)))
    assert sum(any(item.noun != UNCLEAR for item in reading.objects) for reading in patches) <= 8


def test_it_is_written_small_and_reads_the_same_from_its_file(taught: JudgeStage, world: World, tmp_path: Path) -> None:
    write_judge(taught, taught.module.state_dict(), tmp_path, 64)
    path = tmp_path / "judge.safetensors"
    judge, about, real = load(path)
    assert path.stat().st_size < 2.2 * sum(p.numel() for p in judge.parameters()) + 40_000
    assert real.shape == (32, 48) and about["accuracy"]["objects"] > 64
    scenes = unseen(world, 64)
    pictures = world.draw(scenes)
    assert judge.read(pictures) == taught.module.read(pictures)  # written in fp16, and measured so
    assert vars(accuracy(judge.read(pictures), scenes))["right"] == about["accuracy"]["right"]
    torch.testing.assert_close(judge.features(pictures[::2]), real, rtol=1e-2, atol=1e-3)
    words = vocabulary(about["world"])
    assert [words.sample(world.rng(0, 1, i), "test") for i in range(50)] == world.scenes(range(50), "test")


def test_pictures_of_another_size_are_made_to_fit(fresh: JudgeStage, world: World) -> None:
    pictures = world.pictures(range(8))
    large = F.interpolate(pictures, scale_factor=4, mode="bilinear")
    assert (fresh.module.fitted(large) - pictures).abs().mean() < 0.02
    assert fresh.module.fitted(pictures[:, :, :40]).shape == pictures.shape


def test_the_real_recipes_judge_fits_in_four_megabytes() -> None:
    """With as many nouns as the world can ever have; and its map has sixteen cells a side."""
    grounds = tuple(ground for kind in GROUNDS.values() for ground in kind)
    for path in (Path(__file__).parent.parent / "configs/train").glob("*.toml"):
        recipe = Recipe.load(path)
        if recipe.size is None:  # no world: a model's own pictures
            continue
        words = Words(tuple(EMOJI), {}, grounds, recipe.size, recipe.judge.widths, recipe.judge.feature)
        with torch.device("meta"):
            judge = Judge(words)
        assert 2 * sum(p.numel() for p in judge.parameters()) + 2 * 2048 * words.feature < 4e6
        assert judge(torch.empty(1, 3, recipe.size, recipe.size, device="meta")).heat.shape == (1, 16, 16)
