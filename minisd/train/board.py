"""The log and the grids in TensorBoard, for those who watch many runs: `tensorboard --logdir runs`.

In: rows of a log and grids. Out: an events file under <run>/tensorboard/<stage>. The JSONL log is written all the same,
and it alone is exact; a run that goes on after a crash hides here what it does again.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL.Image import Image


class Board:
    """One stage's figures and pictures; needs the package tensorboard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def write(self, row: Mapping[str, float]) -> None:
        """Every figure of a row of the log."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def show(self, grid: Image, step: int) -> None:
        """A grid of pictures."""
        self.writer.add_image("grid", np.asarray(grid), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
