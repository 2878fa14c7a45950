"""How long and how much memory one picture takes, from process start to the PNG on disk.

    python scripts/bench.py [--runs 5]
    python scripts/bench.py --clip-skip [sd15] [--threads 1]

Each run is a fresh process; the first one, which fills the caches, is not counted. --clip-skip: instead, how long the
text encoder of a preset (sd15, sd21, sdxl, mini) takes for a prompt and a negative prompt at each clip skip, fp32, with
random weights: processor time, of all threads together, so that other work on the machine does not count.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a large red circle to the left of a small blue square on a white background"

PRESETS = ("sd15", "sd21", "sdxl", "mini")


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


def clip_skip(preset: str, runs: int, threads: int) -> None:
    """Print a table: the median time of each skip, and what of the smallest one's it is."""
    import torch

    from minisd.config import Config
    from minisd.nn.clip import CLIPText

    if threads:
        torch.set_num_threads(threads)
    config = Config.load(Path(__file__).parent.parent / "configs" / f"{preset}.json")
    towers = [CLIPText(text).eval().requires_grad_(False) for text in config.text]
    ids = torch.full((2, config.text[0].max_length), config.text[0].eos_id)
    smallest = max(text.depth + 1 - text.layers for text in config.text)
    depth = min(text.depth for text in config.text)
    seconds: dict[int, list[float]] = {skip: [] for skip in range(smallest, depth + 1)}
    for _ in range(runs + 1):
        for skip, times in seconds.items():  # in turn: the clock of a core changes
            started = time.process_time()
            for tower in towers:
                tower(ids, skip)
            times.append(time.process_time() - started)
    median = {skip: statistics.median(times[1:]) for skip, times in seconds.items()}  # the first one warms up
    print(f"clip skip  blocks       ms  of skip {smallest}")
    for skip, t in median.items():
        print(f"{skip:9}{depth + 1 - skip:8}{1000 * t:9.2f}{100 * t / median[smallest]:9.0f} %")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    each = "time a preset's text encoder at each clip skip (default: sd15)"
    parser.add_argument("--clip-skip", nargs="?", const="sd15", choices=PRESETS, metavar="PRESET", help=each)
    args = parser.parse_args()
    if args.clip_skip:
        return clip_skip(args.clip_skip, args.runs, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        one(folder, args.threads)
        seconds, megabytes = zip(*(one(folder, args.threads) for _ in range(args.runs)), strict=True)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"prompt to PNG: {statistics.median(seconds):.2f} s (median of {args.runs}, {spread})")
    print(f"peak memory:   {max(megabytes):.0f} MB resident")


if __name__ == "__main__":
    main()
