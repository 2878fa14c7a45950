"""Peak memory of loading a single SD 1.x file in fp16, over the size of the file.

    python scripts/memory.py [--dir FOLDER]

A file of the true size, 2.1 GB, is written with random numbers; a fresh process loads it for each dtype and reports
its peak (resident, the file's mapped pages, Python and torch included). What the same process takes before it loads
is told as well. Exit 1 where fp16 takes more than 1.3 times the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 1.3
WORDS = "words"  # the tokenizer's folder
DTYPES = ("fp16", "bf16", "fp32")


def main() -> int:
    """Write the file, load it in processes of their own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where the file is written, and removed again")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(peak(Path(args.load[0]), args.load[1])))
        return 0
    with tempfile.TemporaryDirectory(dir=args.dir) as home:
        file = write(Path(home))
        size = file.stat().st_size
        print(f"the file: {size / 1e9:.2f} GB of fp16")
        ratios = {}
        for dtype in DTYPES:
            command = [sys.executable, __file__, "--load", str(file), dtype]
            before, after = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            ratios[dtype] = after / size
            said = f"{after / 1e9:.2f} GB at most, {ratios[dtype]:.2f} x the file ({before / 1e9:.2f} GB before)"
            print(f"{dtype}: {said}")
    return int(ratios["fp16"] > LIMIT)


def write(home: Path) -> Path:
    """A single file of SD 1.5's tensors in fp16, and beside it a tokenizer of its size."""
    import torch
    from parity import write_vocabulary

    from minisd.config import Config
    from minisd.weights.folder import modules
    from minisd.weights.ldm import to_file
    from minisd.weights.write import write_tensors

    config = Config.load(Path(__file__).parent.parent / "configs" / "sd15.json")
    write_vocabulary(home / WORDS, config.text[0].vocab_size)
    with torch.device("meta"):
        like = modules(config).state_dict()
    tensors = {name: torch.randn(t.shape).half() for name, t in like.items()}
    write_tensors(home / "model.safetensors", to_file(tensors, config), {"format": "pt"}, None)
    return home / "model.safetensors"


def peak(file: Path, dtype: str) -> tuple[int, int]:
    """Bytes resident at most before and after loading. The CPU draws in no fp16, but it can hold a model in it."""
    import torch

    from minisd.runtime import DTYPES as KINDS
    from minisd.runtime import Runtime
    from minisd.weights import single

    single.pick = lambda *_: Runtime(torch.device("cpu"), KINDS[dtype], "measured")
    before = resident()
    model = single.assemble(single.read_single(file, file.parent / WORDS))
    assert model.unet.conv_in.weight.dtype == KINDS[dtype]
    return before, resident()


def resident() -> int:
    """Bytes this process held at most so far. getrusage would count what the process that started it held."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    sys.exit(main())
