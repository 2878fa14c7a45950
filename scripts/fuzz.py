"""Damages model files and configs by the thousand, reads them and counts what happens. Exit 1 on any fault."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fuzz import fuzz  # tests/fuzz.py, not this file: the line above puts its folder first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="model files of each kind; a fifth as many configs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    faults = 0
    for kind, count in (("safetensors", args.count), ("ckpt", args.count), ("json", args.count // 5)):
        start = time.perf_counter()
        report = fuzz(kind, count, args.seed)
        tally = report["tally"]
        wrong = {what: n for what, n in tally.items() if what not in ("loaded", "refused")}
        faults += sum(wrong.values())
        print(
            f"{kind:12}{count:7} files, seed {args.seed}: {tally.get('loaded', 0)} loaded, "
            f"{tally.get('refused', 0)} refused, {sum(wrong.values())} wrong; {time.perf_counter() - start:.1f} s, "
            f"slowest {report['slowest']:.3f} s, memory grew {report['grown_mb']:.0f} MB to {report['peak_mb']:.0f} MB"
        )
        for what, n in wrong.items():
            print(f"{n} x {what}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
