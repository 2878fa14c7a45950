"""The judge that ships: small enough, as good as it says, and `minisd eval` runs by it with no font and no training."""

import json
from collections.abc import Iterator

import pytest

from minisd.cli import main
from minisd.cli.eval import BUNDLED
from minisd.eval.kept import Kept, load_kept
from minisd.world.accuracy import accuracy
from minisd.world.judge import JUDGE
from minisd.world.recipe import WorldRecipe
from minisd.world.world import World


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    yield load_kept(BUNDLED)


def test_it_is_small_and_was_measured_at_more_than_99_in_100(kept: Kept) -> None:
    assert (BUNDLED / JUDGE).stat().st_size <= 4e6
    right, objects = kept.accuracy["right"], kept.accuracy["objects"]
    assert objects > 8000 and min(right.values()) / objects >= 0.99


def test_it_knows_the_shapes_without_a_font(kept: Kept) -> None:
    """Fresh pictures of its own world's shapes, patterns and grounds, read now."""
    world = World(WorldRecipe(emoji=0, seed=1), kept.judge.words.size)
    scenes = world.scenes(range(192), "test")
    seen = accuracy(kept.judge.read(world.pictures(range(192), "test")), scenes)
    # A black pattern's pale part is next to gray: the one thing that it is now and then unsure of.
    assert seen.extra == 0 and seen.right["all"] / seen.objects >= 0.97, (seen.line(), seen.confused)


def test_eval_runs_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--quick", "--count", "1", "--steps", "2", "--json", "-q"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"overall", "single_object", "two_objects", "counting", "colors", "position", "color_attribution"} <= set(
        line
    )
    assert line["clip_score"] is not None
