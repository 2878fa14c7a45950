"""`kill -9` inside three saves: the run goes on as if nothing had been. `make kill` does it fifty times."""

import subprocess
import sys
from pathlib import Path

import kills


def test_a_run_killed_three_times_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """In a process of its own: one that has trained already cannot fork."""
    done = subprocess.run([sys.executable, kills.__file__, tmp_path], capture_output=True, text=True)
    assert done.stdout == "[0, -9, -9, -9, 0] []\n", done.stdout + done.stderr
