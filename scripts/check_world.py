"""Renders fresh scenes of shapes on plain grounds, reads them back and counts the oracle's errors by kind; then says
how fast a world is made, told and drawn.

python scripts/check_world.py                     # 2,000 scenes of shapes
python scripts/check_world.py --emoji 64 --sheet sheet.png
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from minisd.eval.evaluate import SHAPES
from minisd.image import grid, to_pil
from minisd.world.mark import mark, told
from minisd.world.oracle import read
from minisd.world.recipe import WorldRecipe
from minisd.world.scenes import SPLITS
from minisd.world.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--emoji", type=int, help="how many emoji the timed world has (default: all)")
    parser.add_argument("--font", help="Noto Color Emoji")
    parser.add_argument("--sheet", type=Path, help="also save the first 96 pictures of that world as one PNG")
    args = parser.parse_args()
    check_oracle(World(SHAPES, args.size), args.count, args.seed)
    check_speed(args)


def check_oracle(world: World, count: int, seed: int) -> None:
    """Print how many pictures of each kind of scene the oracle reads wrong."""
    wrong, shown = Counter(), Counter()
    start, reading = time.perf_counter(), 0.0
    for k in range(count):
        scene = world.scene(seed * count + k, SPLITS[k % len(SPLITS)])
        (image,) = to_pil(world.draw([scene]))
        begun = time.perf_counter()
        verdict = mark(read(image), told(scene))
        reading += time.perf_counter() - begun
        shown[scene.kind] += 1
        wrong.update(word for word, right in verdict.items() if not right)
        wrong[scene.kind] += not verdict["all"]
    for word in verdict:
        print(f"{word:12}{wrong[word]:6} wrong of {count} ({100 * wrong[word] / count:.2f} %)")
    print(", ".join(f"{kind} {wrong[kind]} of {shown[kind]}" for kind in shown))
    print(f"{time.perf_counter() - start:.1f} s, {1000 * reading / count:.2f} ms to read a picture")


def check_speed(args: argparse.Namespace) -> None:
    """Print processor times of the world's parts, and save a sheet."""
    clock, start = time.process_time, time.process_time()
    world = World(WorldRecipe(emoji=args.emoji, font=args.font, seed=args.seed), args.size)
    world.painter  # noqa: B018  # made when first asked for
    words = world.vocabulary
    print(f"{len(words.nouns)} emoji, {len(world.sprites.looks)} looks, made in {clock() - start:.1f} s")
    for name, job in {
        "scenes": lambda: world.scenes(range(4096)),
        "scenes and captions": lambda: world.captions(range(4096), 0),
        "scenes and pictures": lambda: [world.pictures(range(i, i + 64)) for i in range(0, 4096, 64)],
    }.items():
        start = clock()
        job()
        print(f"{4096 / (clock() - start):8,.0f} {name} a second of one core")
    if args.sheet:
        grid(to_pil(world.pictures(range(96))), columns=12).save(args.sheet)


if __name__ == "__main__":
    main()
