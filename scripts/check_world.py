"""Renders 2,000 fresh scenes, reads them back and counts the oracle's errors by kind."""

import argparse
import time
from collections import Counter

from minisd.world.captions import sample
from minisd.world.oracle import judge, read
from minisd.world.scenes import SPLITS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    examples = [sample(args.seed, k, SPLITS[k % len(SPLITS)], args.size) for k in range(args.count)]
    drawn = time.perf_counter()
    verdicts = [judge(read(example.image), example.scene) for example in examples]
    done = time.perf_counter()

    wrong = Counter(word for verdict in verdicts for word, right in verdict.items() if not right)
    for word in verdicts[0]:
        print(f"{word:12}{wrong[word]:6} wrong of {args.count} ({100 * wrong[word] / args.count:.2f} %)")
    print(f"drawn in {drawn - start:.2f} s, read in {done - drawn:.2f} s", end=", ")
    print(f"{1000 * (done - drawn) / args.count:.2f} ms a picture")


if __name__ == "__main__":
    main()
