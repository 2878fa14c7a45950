"""What is measured on a model's pictures beside right and wrong: do they fit their prompts, are they like real ones
as a whole, are they copies?

In: answers. Out: plain figures with 95 % intervals.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..world.world import World
from .clip import Clip, clip_scores
from .distances import frechet, nearest
from .intervals import bootstrap, jackknife, wilson
from .kept import Kept
from .score import Answers, from_bytes, to_bytes

LOT = 64
COARSE = 2  # pictures are compared at a half of their size: a shift by one pixel is no other picture


def clip_figures(clip: Clip, answers: Sequence[Answers]) -> dict[str, Any]:
    """The mean CLIP score of pictures with their prompts, and with those of others: what chance gives."""
    pictures = torch.cat([clip.pictures(lot) for some in answers for lot in lots(some.pictures)])
    texts = clip.prompts([question.prompt for some in answers for question in some.questions])
    scores = clip_scores(texts, pictures).cpu()
    other = clip_scores(texts.roll(len(texts) // 2 + 1, 0), pictures)
    return {
        "score": scores.mean().item(),
        "interval": bootstrap(scores),
        "with_other_prompts": other.mean().item(),
        "count": len(scores),
    }


def frechet_figures(kept: Kept, answers: Answers) -> dict[str, Any]:
    """The Fréchet distance of a model's pictures from real ones, and that of as many other real ones: the part of it
    that so few pictures make up."""
    features, real = all_features(kept, answers.pictures), kept.real.cpu()
    n = len(features)
    few = min(n, len(real) // 2)
    return {
        "distance": frechet(features, real),
        "interval": jackknife(lambda part: frechet(part, real), features),
        "of_real_pictures": frechet(real[:few], real[few:]),
        "count": n,
        "real": len(real),
    }


def nearest_figures(kept: Kept, world: World, answers: Answers, learned: int) -> dict[str, Any]:
    """How far pictures are from the nearest of some training pictures, in features and in pixels (root mean square, 0
    to 255), a model's and unseen real ones; and how many of a model's are nearer than 99 of 100 real ones: copies, if
    they are more than one in a hundred."""
    training = torch.cat(
        [to_bytes(world.pictures(range(i, min(i + LOT, learned))), world.size) for i in range(0, learned, LOT)]
    )
    scenes = [question.scene for question in answers.questions]
    unseen = torch.cat([to_bytes(world.draw(scenes[i : i + LOT]), world.size) for i in range(0, len(scenes), LOT)])
    found: dict[str, Any] = {"count": len(unseen), "training_pictures": learned}
    for space, seen in (("features", lambda x: all_features(kept, x)), ("pixels", coarse)):
        drawn, real = (nearest(seen(x), seen(training)) for x in (answers.pictures, unseen))
        copies = int((drawn < real.quantile(0.01)).sum())
        found[space] = {
            "median": drawn.median().item(),
            "interval": bootstrap(drawn, median=True),
            "median_of_real": real.median().item(),
            "interval_of_real": bootstrap(real, median=True),
            "nearer_than_99_of_100_real": copies / len(drawn),
            "interval_of_nearer": wilson(copies, len(drawn)),
        }
    return found


def all_features(kept: Kept, pictures: Tensor) -> Tensor:
    """The judge's features (n, f) of pictures in bytes, on the CPU."""
    return torch.cat([kept.judge.features(lot) for lot in lots(pictures)]).cpu()


def coarse(pictures: Tensor) -> Tensor:
    """Pictures in bytes as vectors of which a distance is a root mean square difference of 0..255."""
    small = F.avg_pool2d(pictures.float(), COARSE).flatten(1)
    return small / small.shape[1] ** 0.5


def lots(pictures: Tensor) -> list[Tensor]:
    """Pictures in bytes, some at a time, in [-1, 1]."""
    return [from_bytes(lot) for lot in pictures.split(LOT)]
