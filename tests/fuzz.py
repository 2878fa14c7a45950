"""Damaged model files, made by the thousand and read in a child process that can crash, hang or swell by itself."""

import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from minisd.weights.tensors import BadFile, read_header, read_tensors

HANG = 2.0  # seconds of CPU time for one file
BLOCKED = 60.0  # seconds of any time for one file: machines are busy
MEMORY = 1 << 30  # bytes of address space that a child may add to its own
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
STEPS = [b"R", b"b", b"Q", b"\x93", b"(", b"t", b"\x85", b"\x86", b"0", b"2", b"}", b"]", b"s", b"u", b"o", b"\x81"]
WORDS = [
    b"cos\nsystem\n",
    b"X\x04\0\0\0boom",
    b"r\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 8,
    b"h\0",
    b"q\0",
    b"K\x01",
]


def archive(records: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of records, as Python writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, body in records.items() if isinstance(records, dict) else records:
            target.writestr(zipfile.ZipInfo(name), body, method)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The records of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return {name: source.read(name) for name in source.namelist()}


def pack(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file: the header as JSON, or as bytes or text just as it is."""
    text = header if isinstance(header, bytes | str) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def saved(value: object, **options: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def samples() -> dict[str, bytes]:
    """One small good file of each kind; the checkpoint has views, a shared storage and Lightning's wrapping."""
    from safetensors.torch import save

    base = torch.arange(24.0).reshape(4, 6)
    state = {"a.weight": base, "a.t": base.t(), "half": base.half(), "flag": base > 3, "n": torch.tensor(7)}
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    whole = {"epoch": 3, "state_dict": state, "callbacks": {Counter: [1, 2.5, None, True]}, "name": "sample"}
    return {"safetensors": save(plain, {"format": "pt"}), "ckpt": saved(whole)}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four wounds: bits, bytes, numbers, pieces cut, doubled, moved or filled, and steps of a pickle."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 32, 200)))
        kind = rng.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = (rng.choice(EDGES) + rng.randrange(-2, 3)) % (1 << 8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif kind == 5:
            other = rng.randrange(len(data) + 1)
            data[other:other] = data[at:end]
        elif kind == 6:
            data[at:end] = bytes([rng.choice((0, 32, 255))]) * (end - at)
        elif kind == 7:
            data[at:at] = rng.choice(STEPS + WORDS)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def damaged(kind: str, good: bytes, rng: random.Random) -> bytes:
    """A mutated file. Half the time the wound lies inside, and the outer lengths and checksums fit it."""
    if rng.random() < 0.5:
        return mutate(good, rng)
    if kind == "ckpt":
        return archive({name: mutate(b, rng) if name.endswith("data.pkl") else b for name, b in unpack(good).items()})
    length = struct.unpack_from("<Q", good)[0]
    return pack(mutate(good[8 : 8 + length], rng), good[8 + length :])


def attempt(path: Path) -> str:
    """Read one file: "loaded", "refused", or what went wrong. All that loads is touched."""
    try:
        header = read_header(path)
        tensors = read_tensors(path)
        good = all(tensor.clone().shape == header.tensors[name].shape for name, tensor in tensors.items())
        return "loaded" if good else "wrong: header and tensors differ"
    except BadFile as error:
        line = str(error)
        return "refused" if line.isprintable() and str(path) in line and len(line) < 600 else f"wrong: {line!r}"
    except Exception:  # the whole point: whatever else a file can raise is a fault of the reader
        return f"wrong: {traceback.format_exc()}"


def victims(kind: str, folder: Path) -> Callable[[random.Random], tuple[Path, bytes, Callable[[Path], str]]]:
    """How to write one damaged file: where it then lies, its good bytes, and how to read it."""
    if kind == "json":
        import fuzz_json

        files = {path: path.read_bytes() for path in fuzz_json.write_folders(folder)}
    else:
        files = {folder / f"fuzz.{kind}": samples()[kind]}

    def wound(rng: random.Random) -> tuple[Path, bytes, Callable[[Path], str]]:
        path = rng.choice(list(files))
        path.write_bytes(fuzz_json.damage(files[path], rng) if kind == "json" else damaged(kind, files[path], rng))
        return path, files[path], fuzz_json.attempt if kind == "json" else attempt

    return wound


def child(kind: str, count: int, seed: int, folder: Path) -> None:
    """Read `count` damaged files under limits; write the tally, and before each file its number."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (60 + count // 10, 60 + count // 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for alarm in (signal.SIGPROF, signal.SIGALRM):  # they kill, whatever pytest-timeout has set
        signal.signal(alarm, signal.SIG_DFL)
    wounded, tally, slowest = victims(kind, folder), Counter(), 0.0
    start = peak()
    for number in range(count):
        (folder / "number").write_text(str(number))
        path, good, read = wounded(random.Random(f"{kind} {seed} {number}"))
        signal.setitimer(signal.ITIMER_PROF, HANG)
        signal.setitimer(signal.ITIMER_REAL, BLOCKED)
        begin = time.process_time()
        tally[read(path)] += 1
        slowest = max(slowest, time.process_time() - begin)
        path.write_bytes(good)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (peak() - start) / 1024
    result = {"tally": tally, "slowest": slowest, "grown_mb": grown, "peak_mb": peak() / 1024}
    (folder / "result.json").write_text(json.dumps(result))


def peak() -> int:
    """The largest memory of this process so far, kB."""
    return int(next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")).split()[1])


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child process; its wait status, 0 when it ended well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def fuzz(kind: str, count: int, seed: int) -> dict:
    """Read `count` damaged files in a child: tally of outcomes, slowest (CPU seconds), memory growth and peak (MB)."""
    with tempfile.TemporaryDirectory() as folder:
        status = forked(lambda: child(kind, count, seed, Path(folder)))
        if status:
            number = (Path(folder) / "number").read_text()
            raise AssertionError(f"file {number} of {kind}, seed {seed}: the child ended with wait status {status}")
        return json.loads((Path(folder) / "result.json").read_text())
