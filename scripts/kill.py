"""Kills training runs with `kill -9` and lets them go on: is what they leave that of an unbroken run, byte for byte?

    python scripts/kill.py [--kills 50] [--inside 10] [--seed 0] [--dir FOLDER]

All stages of a tiny model, from nothing to the exported folder. `inside` of the kills come at set points inside a save,
the others at random moments of the whole run. Exit 1 where anything differs.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from kills import TRAPS, differences, preload, run, run_for, trap, write_recipe  # noqa: E402

NETWORKS = ("clip", "vae", "unet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside", type=int, default=10, help="so many of them inside a save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the runs are written, and removed again")
    args = parser.parse_args()
    preload()
    rng, right, started = random.Random(args.seed), {"inside": 0, "random": 0}, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.dir) as home:
        recipe, whole = write_recipe(Path(home)), Path(home) / "whole"
        assert run(recipe, whole) == 0, "the unbroken run failed"
        seconds = time.perf_counter() - started
        print(f"the unbroken run: {seconds:.1f} s")
        for i in range(args.kills):
            out = Path(home) / str(i)
            if i < args.inside:
                kind, where, stage, nth = "inside", TRAPS[i % len(TRAPS)], NETWORKS[i % 3], rng.choice((1, 2, 4))
                said = f"save {nth} of {stage}: {where}"
                code = run(recipe, out, lambda w=where, s=stage, n=nth: trap(w, s, n))
            else:
                kind, code = "random", 0
                while code == 0:  # it was at its end already: once more, and sooner
                    shutil.rmtree(out, ignore_errors=True)
                    moment = rng.uniform(0, seconds)
                    said, code = f"after {moment:.2f} s", run_for(recipe, out, moment)
                    seconds = moment if code == 0 else seconds
            there = len([p for p in out.rglob("*") if p.is_file()])
            again = run(recipe, out)
            wrong = differences(whole, out)
            right[kind] += code == -9 and again == 0 and not wrong
            print(
                f"{i + 1:3} {said:35} ended {code}, {there} files; went on: {again}, {wrong or 'all the same'}",
                flush=True,
            )
    print(
        f"{right['random']} of {args.kills - args.inside} killed at random moments and {right['inside']} of "
        f"{args.inside} inside a save ended as the unbroken run; {time.perf_counter() - started:.0f} s"
    )
    return int(sum(right.values()) < args.kills)


if __name__ == "__main__":
    sys.exit(main())
