"""How long and how much memory one picture takes, from process start to the PNG on disk.

    python scripts/bench.py [--runs 5]

Each run is a fresh process; the first one, which fills the caches, is not counted.
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


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one(folder, args.threads)
        seconds, megabytes = zip(*(one(folder, args.threads) for _ in range(args.runs)), strict=True)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"prompt to PNG: {statistics.median(seconds):.2f} s (median of {args.runs}, {spread})")
    print(f"peak memory:   {max(megabytes):.0f} MB resident")


if __name__ == "__main__":
    main()
