"""Prompt fidelity of a model on prompts it never saw, judged by the world's oracle.

python scripts/evaluate.py                          # the bundled model, 300 prompts a category
python scripts/evaluate.py -m runs/mini/model --count 100 --steps 10 --sheet sheet.png
"""

import argparse

import minisd
from minisd.image import grid
from minisd.train.evaluate import evaluate, table


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="a model folder; default: the bundled model")
    parser.add_argument("--count", type=int, default=300, help="prompts in each category (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sampler", choices=minisd.config.SAMPLER_NAMES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg-scale", type=float)
    parser.add_argument("--clip-skip", type=int)
    parser.add_argument("--sheet", help="also save the first 32 pictures of each category as one PNG")
    args = parser.parse_args()
    model = minisd.load(args.model, device=args.device)
    names = ("batch_size", "sampler", "steps", "cfg_scale", "clip_skip")
    results = list(evaluate(model, args.count, args.seed, **{name: getattr(args, name) for name in names}))
    print(f"\ndrawn by {model.config.name} ({model.runtime.reason})\n{table([r[0] for r in results])}")
    print(f"\nreal renders of the same scenes (the ceiling)\n{table([r[1] for r in results])}")
    if args.sheet:
        grid([image for r in results for image in r[2][:32]], columns=16).save(args.sheet)


if __name__ == "__main__":
    main()
