"""`python scripts/train.py …` is `minisd train …`, from a checkout that need not be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minisd.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
