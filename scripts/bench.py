"""How long and how much memory one picture takes, from process start to the PNG on disk.

    python scripts/bench.py [--runs 5]
    python scripts/bench.py --clip-skip

Each run is a fresh process; the first one, which fills the caches, is not counted. --clip-skip: instead, how long SD
1.x's text encoder takes for a prompt and a negative prompt at each clip skip, fp32, with random weights.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

PROMPT = "a large red circle to the left of a small blue square on a white background"


def one(folder: str, threads: int) -> tuple[float, float]:
    """Seconds of wall time and MB resident at the peak of one `minisd generate`."""
    command = [sys.executable, "-m", "minisd", "generate", PROMPT, "--seed", "0", "--outdir", folder, "-q"]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    started = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    pid = os.posix_spawn(sys.executable, command, environment, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"minisd generate failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1000  # ru_maxrss counts KiB on Linux


def clip_skip(runs: int, threads: int) -> None:
    """Print a table: the median time of each skip, and what of the last block's it is."""
    import torch

    from minisd.config import TextConfig
    from minisd.nn.clip import CLIPText

    if threads:
        torch.set_num_threads(threads)
    tower = CLIPText(TextConfig()).eval().requires_grad_(False)
    ids = torch.full((2, 77), TextConfig().eos_id)
    depth = tower.config.depth
    seconds: dict[int, list[float]] = {skip: [] for skip in range(1, depth + 1)}
    for _ in range(runs + 1):
        for skip, times in seconds.items():  # in turn, so that a busy machine slows all of them alike
            started = time.perf_counter()
            tower(ids, skip)
            times.append(time.perf_counter() - started)
    median = {skip: statistics.median(times[1:]) for skip, times in seconds.items()}  # the first one warms up
    print("clip skip  blocks      ms  of skip 1")
    for skip, t in median.items():
        print(f"{skip:9}{depth + 1 - skip:8}{1000 * t:8.1f}{100 * t / median[1]:9.0f} %")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--clip-skip", action="store_true", help="time the text encoder at each clip skip")
    args = parser.parse_args()
    if args.clip_skip:
        return clip_skip(args.runs, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        one(folder, args.threads)
        seconds, megabytes = zip(*(one(folder, args.threads) for _ in range(args.runs)), strict=True)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"prompt to PNG: {statistics.median(seconds):.2f} s (median of {args.runs}, {spread})")
    print(f"peak memory:   {max(megabytes):.0f} MB resident")


if __name__ == "__main__":
    main()
