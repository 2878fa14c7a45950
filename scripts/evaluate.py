"""How often shapes come out as told, by the rule oracle alone: no judge and no font are needed.

python scripts/evaluate.py               # the bundled model, 300 unseen prompts a category
python scripts/evaluate.py --count 50 -m runs/mini/model
"""

import argparse

import minisd
from minisd.eval.evaluate import SHAPES, TOLD_SHAPES
from minisd.eval.prompts import described
from minisd.eval.report import table
from minisd.eval.score import answered, by_oracle, real
from minisd.world.world import World


def main() -> None:
    """Parse, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="a model folder; default: the bundled model")
    parser.add_argument("--count", type=int, default=300, help="prompts in each category (default 300)")
    args = parser.parse_args()
    model = minisd.load(args.model)
    world = World(SHAPES, model.config.defaults.width)
    scores, ceilings = {}, {}
    for name, (split, kind) in TOLD_SHAPES.items():
        asked = described(world.vocabulary, args.count, 0, split, kind)
        prompts = [question.prompt for question in asked]
        pictures = minisd.generate(model, prompts, seed=0, batch_size=16, output="tensor", progress=True)
        scores[name] = answered(asked, [pictures], by_oracle, world.size).score
        ceilings[name] = answered(asked, real(world, asked), by_oracle, world.size).score
    print(table(scores, ceilings))


if __name__ == "__main__":
    main()
