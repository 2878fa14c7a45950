"""The pictures of the README, each by the very command that stands beside it there.

python scripts/gallery.py            # writes docs/images/*.png and prints the README's table
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path("docs/images")
SEED = "2"
PROMPTS = {
    "first": "a large red circle to the left of a small blue square on a white background",
    "heart": "a large pink heart on a cyan background",
    "star": "a large yellow star on a dark blue background",
    "held-out": "a large green star on a brown background",
    "rings": "a small blue ring above a large orange square on a cream background",
    "black": "a large black diamond to the right of a small red circle on a gray background",
    "cross": "a small purple cross below a large green circle on a white background",
    "words": "on a cream background, a large purple triangle with a small green square to its left",
}


def main() -> None:
    """Draw each picture with the command line and print a Markdown table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("| picture | command |\n|---|---|")
    for name, prompt in PROMPTS.items():
        path = FOLDER / f"{name}.png"
        command = ["generate", prompt, "--seed", SEED, "-o", str(path), "--overwrite", "-q"]
        subprocess.run([sys.executable, "-m", "minisd", *command], check=True, capture_output=True)
        print(f'| <img src="{path}" width="128"> | `minisd generate "{prompt}" --seed {SEED}` |')


if __name__ == "__main__":
    main()
