"""Model files: equal to the readers of torch and safetensors bit for bit; hostile and damaged ones refused or inert."""

import collections
import io
import os
import pickle
import random
import signal
import socket
import struct
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from fuzz import HANG, archive, damaged, forked, fuzz, pack, peak, samples, saved, unpack
from torch import Tensor

from minisd.weights.ckpt import DTYPES
from minisd.weights.tensors import MAX_HEADER, BadFile, read_header, read_tensors
from minisd.weights.unpickle import MAX_STEPS

GOOD = {"w": torch.arange(6.0).reshape(2, 3)}


def put(tmp_path: Path, data: bytes, name: str = "file.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def refused(path: Path, says: str = "") -> str:
    """The one line with which a file is refused, in a blink, by the header's reader too."""
    start = time.process_time()
    with pytest.raises(BadFile) as caught:
        read_tensors(path)
    with pytest.raises(BadFile):
        read_header(path)
    assert time.process_time() - start < 2 * HANG
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 500 and says in line, line
    return line


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit, NaN included, with the same layout."""
    as_bytes = [t.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for t in (one, other)]
    return (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride()) and torch.equal(*as_bytes)


def check_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        assert same(found[name], wanted[name]), name


# ---- equal to torch.load --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", sorted(DTYPES.values(), key=str), ids=str)
def test_every_dtype_and_layout(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    torch.manual_seed(0)
    base = (torch.randn(4, 3, 5, 2) * 50).to(dtype)
    state = {
        "plain": base,
        "transposed": base.transpose(0, 2),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "part": base[1:3, :, 2],
        "every second": base[:, :, ::2],
        "scalar": base[0, 0, 0, 0],
        "empty": torch.empty(0, 7, dtype=dtype),
        "one row, expanded": torch.arange(77).to(dtype).expand(1, -1),
    }
    if dtype.is_floating_point:
        state["parameter"] = torch.nn.Parameter(base)
        state["not finite"] = torch.tensor([float("nan"), float("inf"), -0.0]).to(dtype)
    path = put(tmp_path, saved(state, pickle_protocol=protocol))
    check_same(read_tensors(path), torch.load(path, weights_only=False))  # our own file; protocol 4 needs it
    header = read_header(path)
    assert header.kind == "ckpt"
    assert {name: (e.dtype, e.shape) for name, e in header.tensors.items()} == {
        name: (t.dtype, tuple(t.shape)) for name, t in state.items()
    }


def test_shared_storages_stay_shared_and_writing_leaves_the_file_alone(tmp_path: Path) -> None:
    base = torch.zeros(4, 4)
    path = put(tmp_path, saved({"base": base, "row": base[2], "turned": base.t()}))
    before = path.read_bytes()
    found = read_tensors(path)
    found["base"][2, 3] = 7
    assert found["row"][3] == 7 and found["turned"][3, 2] == 7
    assert path.read_bytes() == before


def test_lightning_and_numpy_objects_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks")
    for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
        made = type(name, (base,), {"__module__": module.__name__})
        setattr(module, name, made)
    state = collections.OrderedDict(a=torch.randn(3), b=torch.nn.Parameter(torch.randn(2, 2)))
    state._metadata = {"": {"version": 1}}
    callback = module.ModelCheckpoint()
    callback.best = numpy.float64(0.5)
    extras = {
        "callbacks": {module.ModelCheckpoint: callback, 3: collections.defaultdict(list, x=[1])},
        "hyper_parameters": module.AttributeDict(lr=numpy.float32(1e-4), sizes=numpy.arange(3)),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": {1, 2}}],
        "scheduler": {"lr": {"deep": [complex(1, 2), b"bytes", torch.float16, torch.Size([1])]}},
        "global_step": 470000,
        "epoch": 3,
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, module.__name__, module)
        path = put(tmp_path, saved({**extras, "state_dict": state}))
    check_same(read_tensors(path), {name: tensor.detach() for name, tensor in state.items()})
    assert read_header(path).metadata == {"global_step": "470000", "epoch": "3"}
    assert "pytorch_lightning" not in sys.modules


def test_textual_inversion_files(tmp_path: Path) -> None:
    vectors = torch.randn(2, 8)
    token = {"*": torch.tensor(265)}
    for params in ({"*": vectors}, torch.nn.ParameterDict({"*": vectors})):
        path = put(tmp_path, saved({"string_to_token": token, "string_to_param": params, "name": "cat", "step": 9}))
        found = read_tensors(path)
        assert list(found) == ["string_to_token.*", "string_to_param.*"]
        assert torch.equal(found["string_to_param.*"], vectors)
        assert read_header(path).metadata == {"name": "cat", "step": "9"}


def test_1200_tensors_are_read_fast(tmp_path: Path) -> None:
    path = put(tmp_path, saved({f"block.{i}.weight": torch.randn(3, 5) for i in range(1200)}))
    start = time.process_time()
    found = read_tensors(path)
    assert time.process_time() - start < 0.5  # 0.04 s on a 2-core Zen 4
    check_same(found, torch.load(path, weights_only=True))


def test_nothing_is_copied(tmp_path: Path) -> None:
    path = put(tmp_path, saved({"w": torch.ones(32, 1024, 1024, dtype=torch.uint8)}))  # 32 MB
    small = put(tmp_path, saved(GOOD), "small")

    def work() -> None:
        read_tensors(small)  # what the first reading takes anyhow
        before = peak()
        assert read_tensors(path)["w"].shape[0] == 32
        assert peak() - before < 4096, "reading takes memory of the file's size"

    assert forked(work) == 0


def test_tensors_off_their_alignment_and_checksums_left_out(tmp_path: Path) -> None:
    state = {"half": torch.randn(3).half(), "double": torch.randn(2, 3).double()}
    for fill in range(9):
        records = {"x" * (fill + 1): b"", **unpack(saved(state))}
        check_same(read_tensors(put(tmp_path, archive(records))), state)
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(state)
    finally:
        torch.serialization.set_crc32_options(True)
    check_same(read_tensors(put(tmp_path, data)), state)


# ---- pickles --------------------------------------------------------------------------------------------------------


def ckpt(expression: bytes = b"", state: object = GOOD) -> bytes:
    """A checkpoint of `state`; its pickle also evaluates `expression` and puts the value under "boom"."""
    records = unpack(saved(state))
    program = records["archive/data.pkl"].removesuffix(b".")
    records["archive/data.pkl"] = program + (b"X\4\0\0\0boom" + expression + b"s." if expression else b".")
    return archive(records)


def word(text: str) -> bytes:
    return b"X" + struct.pack("<L", len(text.encode())) + text.encode()


def attacks(canary: str) -> dict[str, bytes]:
    """Pickle expressions that make the folder `canary` when a real unpickler meets them."""
    code = f"__import__('os').mkdir({canary!r})"
    one = word(canary) + b"\x85"
    return {
        "reduce": b"cposix\nmkdir\n" + one + b"R",
        "eval": b"cbuiltins\neval\n" + word(code) + b"\x85R",
        "exec": b"c__builtin__\nexec\n" + word(code) + b"\x85R",
        "stack_global": word("posix") + word("mkdir") + b"\x93" + one + b"R",
        "inst": b"(" + word(canary) + b"iposix\nmkdir\n",
        "obj": b"(cposix\nmkdir\n" + word(canary) + b"o",
        "nested": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cposix\nmkdir\n(" + word(canary) + b"ttRtR",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
        + word("os")
        + b"tR"
        + word("mkdir")
        + b"tR"
        + one
        + b"R",
        "setstate": b"ctypes\nSimpleNamespace\n)\x81}"
        + word("__setstate__")
        + b"cposix\nmkdir\nsb"
        + word(canary)
        + b"b",
        "partial": b"cfunctools\npartial\n(cposix\nmkdir\n" + word(canary) + b"tR)R",
    }


@pytest.mark.parametrize("name", attacks(""))
def test_no_code_runs(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    expression = attacks(str(canary))[name]
    pickle.loads(b"\x80\x02" + expression + b".")
    assert canary.is_dir(), "the attack itself does not work, so the test would prove nothing"
    canary.rmdir()
    path = put(tmp_path, ckpt(expression))
    modules = set(sys.modules)
    check_same(read_tensors(path), GOOD)
    assert read_header(path).metadata == {}
    assert not canary.exists() and set(sys.modules) == modules
    # in the place of the tensors: no more luck
    whole = archive({"archive/data.pkl": b"\x80\x02" + expression + b"."})
    refused(put(tmp_path, whole), "something else than a dict")
    assert not canary.exists()


def test_calls_by_name_are_inert_and_odd_steps_refused(tmp_path: Path) -> None:
    for expression in (
        b"cpip\nmain\n]" + word("install") + b"a\x85R",
        b"ctorch\nload\n" + word("/etc/passwd") + b"\x85R",
        b"cminisd.weights.unpickle\nCALLS\n}" + word("x") + b"cposix\nsystem\nsb",
        b"cposix\nsystem\n}" + word("__code__") + b"Nsb",
        b"]" + b"r\xff\xff\xff\x7f",  # a huge memo index takes one place in a dict
        b")" + b"\x85" * 100_000,  # a tuple 100,000 deep
        b"]" + b"]" * 1000 + b"a" * 1000,
        b"cx\nY\n" + b"Nb" * 100_000,
        b"\x8a\xff" + b"\xff" * 255,
        b"N" + b"0N" * 1000,
        b"}(" + b")" + b"\x85" * 1000 + b"K\1u",  # a deep tuple as a key
    ):
        check_same(read_tensors(put(tmp_path, ckpt(expression))), GOOD)
    for expression in (b"\x82\1", b"\x83\1\0", b"\x97", b"\x98", b"\x96" + b"\xff" * 7 + b"\x7f", b"Pxyz\n", b"\xfe"):
        refused(put(tmp_path, ckpt(expression)))
    for expression in (
        b"R",
        b"t",
        b"s",
        b"h\x63",
        b"0" * 20,
        b"\x93",
        b"Q",
        b"I" + b"9" * 5000 + b"\n",
        b"X\xff\xff\xff\xff",
    ):
        refused(put(tmp_path, ckpt(expression)))
    refused(put(tmp_path, ckpt(b"N" + b"0N" * MAX_STEPS)), "steps")


@pytest.mark.parametrize("step", [b"}", b"(", b"(d", b")\x81"])
def test_memory_and_time_of_a_hostile_pickle_are_bounded(tmp_path: Path, step: bytes) -> None:
    path = put(tmp_path, ckpt(step * (2 * MAX_STEPS // len(step))))

    def work() -> None:
        before, start = peak(), time.process_time()
        with pytest.raises(BadFile, match="steps"):
            read_header(path)
        grown, seconds = (peak() - before) // 1024, time.process_time() - start
        assert grown < 200 and seconds < HANG, f"{grown} MB, {seconds} s"

    assert forked(work) == 0


def test_knots_of_dicts_are_refused(tmp_path: Path) -> None:
    knot: dict = dict(GOOD)
    knot["state_dict"] = knot
    refused(put(tmp_path, saved(knot)), "holds itself")
    refused(put(tmp_path, saved({"state_dict": {"state_dict": GOOD}})), "state_dict again")
    knot = dict(GOOD)
    knot["x"] = knot
    refused(put(tmp_path, saved(knot)), "holds itself")
    many = {str(i): i for i in range(3000)}
    refused(put(tmp_path, saved({**GOOD, **{str(i): many for i in range(3000)}})), "too often")
    refused(put(tmp_path, saved({"a.b": GOOD["w"], "a": {"b": GOOD["w"]}})), "two tensors")


def test_things_that_are_no_state_dict(tmp_path: Path) -> None:
    refused(put(tmp_path, saved({"state_dict": [GOOD["w"]]})), "its state_dict is not a dict")
    refused(put(tmp_path, saved([GOOD["w"]])), "something else")
    refused(put(tmp_path, saved(torch.nn.Linear(2, 2))), "something else")
    refused(put(tmp_path, saved({})), "no tensors")
    refused(put(tmp_path, saved({"state_dict": {}})), "no tensors")
    refused(put(tmp_path, saved({"a\x1b[31m\n": GOOD["w"]})), "cannot be printed")


# ---- tensors --------------------------------------------------------------------------------------------------------


class Own(Tensor):
    """A subclass of Tensor."""


KINDS = {
    "sparse": lambda plain: plain.to_sparse(),
    "csr": lambda plain: plain.to_sparse_csr(),
    "quantized": lambda plain: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
    "meta": lambda plain: plain.to("meta"),
    "subclass": lambda plain: plain.as_subclass(Own),
    "float8": lambda plain: plain.to(torch.float8_e4m3fn),
    "uint16": lambda plain: plain.to(torch.uint16),
    "complex": lambda plain: plain.to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: sparse is in beta, quantized is on its way out
@pytest.mark.parametrize("kind", KINDS)
def test_only_dense_tensors(tmp_path: Path, kind: str) -> None:
    odd = KINDS[kind](torch.arange(9.0).reshape(3, 3))
    assert "'odd'" in refused(put(tmp_path, saved({**GOOD, "odd": odd})))
    check_same(read_tensors(put(tmp_path, saved({"state_dict": GOOD, "odd": odd}))), GOOD)


def tensor(
    offset: int, shape: tuple, stride: tuple, count: object = 6, key: str = "0", kind: str = "FloatStorage"
) -> bytes:
    """A checkpoint of one tensor of 6 floats with any numbers in it."""
    shape, stride, offset, count = (pickle.dumps(n, 2)[2:-1] for n in (shape, stride, offset, count))
    pid = b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word(key) + word("cpu") + count + b"tQ"
    args = b"(" + pid + offset + shape + stride + b"\x89" + b"ccollections\nOrderedDict\n)Rt"
    program = b"\x80\x02}" + word("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"Rs."
    return archive({"a/data.pkl": program, "a/data/0": bytes(24)})


def test_a_tensor_stays_within_its_storage(tmp_path: Path) -> None:
    assert read_tensors(put(tmp_path, tensor(0, (2, 3), (3, 1))))["w"].shape == (2, 3)
    huge, big = 1 << 20, 1 << 40
    bad = {
        "blown up by stride 0": (0, (huge, huge), (0, 0)),
        "2^40": (0, (big,), (0,)),
        "a little": (0, (2, 6), (0, 1)),
        "overlapping": (0, (4, 3), (1, 1)),
        "beyond": (4, (3,), (1,)),
        "offset": (1 << 60, (1,), (1,)),
        "far stride": (0, (2,), (1 << 62,)),
        "negative stride": (5, (2,), (-1,)),
        "negative offset": (-1, (2,), (1,)),
        "negative size": (0, (-1, -6), (1, 1)),
        "wraps": (0, (1 << 32, 1 << 32), (1 << 32, 1)),
        "ranks": (0, (2, 3), (1,)),
        "many dimensions": (0, (1,) * 100, (1,) * 100),
        "float size": (0, (2.0,), (1,)),
        "flag": (0, (True,), (1,)),
        "count": (0, (2,), (1,), 7),
        "huge count": (0, (2,), (1,), 10**5000),
        "no number": (0, (2,), (1,), None),
        "no record": (0, (2,), (1,), 6, "1"),
        "out of the archive": (0, (2,), (1,), 6, "../data.pkl"),
        "no such kind": (0, (2,), (1,), 6, "0", "QInt8Storage"),
    }
    for name, arguments in bad.items():
        assert "'w'" in refused(put(tmp_path, tensor(*arguments))), name


def test_one_storage_under_many_names_is_refused(tmp_path: Path) -> None:
    base = torch.zeros(10_000)
    refused(put(tmp_path, saved({str(i): base for i in range(100)})), "would take")
    assert len(read_tensors(put(tmp_path, saved({"one": base, "tied": base})))) == 2


# ---- zip ------------------------------------------------------------------------------------------------------------


def edited(data: bytes, record: str, field: int, value: bytes) -> bytes:
    """The archive with bytes at `field` of a record's entry in the list at the end overwritten."""
    entry = data.rindex(b"PK\1\2", 0, data.rindex(record.encode()))
    return data[: entry + field] + value + data[entry + field + len(value) :]


def test_zip_attacks(tmp_path: Path) -> None:
    data, records = saved(GOOD), unpack(saved(GOOD))
    top = "archive/"
    assert refused(put(tmp_path, archive(records, zipfile.ZIP_DEFLATED)), "compressed")
    with pytest.warns(UserWarning, match="Duplicate"):
        refused(put(tmp_path, archive([*records.items(), (f"{top}data/0", bytes(24))])), "two records")
    refused(put(tmp_path, archive({k: v for k, v in records.items() if not k.endswith("data.pkl")})), "no data.pkl")
    refused(put(tmp_path, archive({**records, "b/data.pkl": records[f"{top}data.pkl"]})), "2 data.pkl")
    refused(put(tmp_path, archive({**records, f"{top}constants.pkl": b""})), "TorchScript")
    refused(put(tmp_path, archive({**records, f"{top}byteorder": b"big"})), "big-endian")
    refused(put(tmp_path, archive({"word/document.xml": b"<x/>"})), "no data.pkl")
    refused(put(tmp_path, archive({k: v for k, v in records.items() if not k.endswith("data/0")})), "missing")
    refused(put(tmp_path, archive({**records, f"{top}data/0": bytes(23)})), "23 bytes")
    four, end = b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"
    refused(put(tmp_path, edited(data, f"{top}data/0", 42, four)), "cut short")  # offset past the end
    refused(put(tmp_path, edited(data, f"{top}data/0", 20, struct.pack("<LL", 1 << 30, 1 << 30))), "overlap")
    refused(put(tmp_path, edited(data, f"{top}data/0", 42, edited(data, f"{top}data.pkl", 0, b"")[-22 + 16 :][:4])))
    refused(put(tmp_path, edited(data, f"{top}data/0", 42, bytes(4))), "another name")  # two entries, one place
    refused(put(tmp_path, edited(data, f"{top}data/0", 20, end + end)), "size")  # zip64 announced, not there
    refused(put(tmp_path, edited(data, f"{top}data/0", 8, b"\1\0")), "encrypted")
    refused(put(tmp_path, edited(data, f"{top}data.pkl", 16, b"\1\2\3\4")), "checksum")
    refused(put(tmp_path, edited(data, f"{top}data/0", 28, b"\xff\xff")), "damaged")
    refused(put(tmp_path, edited(data, f"{top}data/0", 46, b"\xff")))
    refused(put(tmp_path, data + b"more"), "follow")
    small = archive(records)  # torch writes zip64 tables at the end, Python only where they are needed
    refused(put(tmp_path, small[:-12] + b"\xff\xff" + small[-10:]), "entries")
    refused(put(tmp_path, small[:-12] + b"\x09\0" + small[-10:]), "damaged")
    refused(put(tmp_path, small[:-6] + b"\xff\xff\xff\xff" + small[-2:]), "damaged")
    refused(put(tmp_path, archive({str(i): b"" for i in range(50_001)})), "entries")
    for size in (5, 30, 100, len(data) // 2, len(data) - 1):
        refused(put(tmp_path, data[:size]), "cut short")


def test_zip64_is_read_and_its_lies_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, body in unpack(saved(GOOD)).items():
            with target.open(zipfile.ZipInfo(name), "w", force_zip64=True) as record:
                record.write(body)
    check_same(read_tensors(put(tmp_path, file.getvalue())), GOOD)
    data = archive(unpack(saved(GOOD)))
    count, size, start = struct.unpack_from("<HLL", data, len(data) - 12)
    for numbers, good in ((count, size, start), True), ((count, size, 1 << 63), False), ((1 << 62, size, start), False):
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, numbers[0], *numbers)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
        full = b"\xff" * 12
        path = put(tmp_path, data[:-22] + record + locator + b"PK\5\6" + bytes(4) + full + bytes(2))
        check_same(read_tensors(path), GOOD) if good else refused(path)


# ---- safetensors ----------------------------------------------------------------------------------------------------


def test_safetensors_equal_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(3, 5)
    types_ = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool")
    types_ += ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
    state = {name: base.to(getattr(torch, name)) for name in types_}
    state |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(3.5), "nan": torch.tensor([float("nan")])}
    path = tmp_path / "model.ckpt"  # a name says nothing
    safetensors.torch.save_file(state, path, {"format": "pt", "modelspec.title": "x"})
    found, wanted = read_tensors(path), safetensors.torch.load_file(path)
    assert set(found) == set(wanted) and all(same(found[name], wanted[name]) for name in wanted)
    header = read_header(path)
    assert (header.kind, header.metadata) == ("safetensors", {"format": "pt", "modelspec.title": "x"})
    odd = pack('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', struct.pack("<2f", 1, 2))  # off its alignment
    assert read_tensors(put(tmp_path, odd))["w"].tolist() == [1, 2]


def f32(start: object, end: object, shape: object = None, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def bad_headers() -> dict[str, bytes]:
    one = f32(0, 8)
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    return {
        "length 2^63": pack(b"{}", length=1 << 63),
        "length 2^64 - 1": pack(b"{}", length=(1 << 64) - 1),
        "200 MB": pack(b"{}", length=200 << 20),
        "longer than the file": pack({"a": one}, bytes(8), length=5000),
        "length 0": pack(b"{}", length=0),
        "bad UTF-8": pack(b'{"\xff":1}'),
        "no JSON": pack(b"{what"),
        "negative offsets": pack({"a": f32(-8, 0, [2])}, bytes(8)),
        "turned offsets": pack({"a": f32(8, 0, [2])}, bytes(8)),
        "overlapping": pack({"a": one, "b": f32(4, 12)}, bytes(12)),
        "the same place": pack({"a": one, "b": one}, bytes(8)),
        "hole": pack({"a": one, "b": f32(12, 20)}, bytes(20)),
        "hole in front": pack({"a": f32(4, 12)}, bytes(12)),
        "trailing bytes": pack({"a": one}, bytes(9)),
        "cut short": pack({"a": one}, bytes(7)),
        "overflow shape": pack({"a": f32(0, 8, [1 << 32, 1 << 32])}, bytes(8)),
        "overflow to 2": pack({"a": f32(0, 8, [(1 << 63) + 1, 2])}, bytes(8)),
        "shape and bytes differ": pack({"a": f32(0, 8, [3])}, bytes(8)),
        "unknown dtype": pack({"a": f32(0, 8, dtype="F33")}, bytes(8)),
        "dtype a list": pack({"a": f32(0, 8, dtype=["F32"])}, bytes(8)),
        "duplicate key": pack(
            '{"a":%s,"a":%s}' % (('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',) * 2), bytes(8)
        ),
        "int metadata": pack({"__metadata__": {"a": 1}, "a": one}, bytes(8)),
        "metadata a list": pack({"__metadata__": ["a"], "a": one}, bytes(8)),
        "half a surrogate pair": pack(
            b'{"__metadata__":{"a":"\\ud800"},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "shape a number": pack({"a": f32(0, 8, 2)}, bytes(8)),
        "float size": pack({"a": f32(0, 8, [2.0])}, bytes(8)),
        "flag as size": pack({"a": f32(0, 4, [True])}, bytes(4)),
        "huge number": pack('{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % ("9" * 5000), bytes(8)),
        "many dimensions": pack({"a": f32(0, 4, [1] * 1000)}, bytes(4)),
        "three offsets": pack({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, bytes(1)),
        "no offsets": pack({"a": {"dtype": "U8", "shape": [1]}}, bytes(1)),
        "a list": pack(b"{}"[:1] + b"]"),
        "deep JSON": pack(deep),
        "deep list": pack('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        "no tensors": pack({}),
        "only metadata": pack({"__metadata__": {"a": "b"}}),
        "a name with a newline": pack({"a\n\x1b[2J": one}, bytes(8)),
        "an endless name": pack({"a" * 100_000: one}, bytes(8)),
        "zero-size, but placed": pack({"a": f32(0, 8), "b": f32(0, 0, [1 << 40, 0]), "c": f32(4, 4)}, bytes(8)),
    }


@pytest.mark.parametrize("name", bad_headers())
def test_safetensors_attacks(tmp_path: Path, name: str) -> None:
    refused(put(tmp_path, bad_headers()[name], "model.safetensors"))


def test_memory_and_time_of_a_hostile_header_are_bounded(tmp_path: Path) -> None:
    room = MAX_HEADER - 100
    lists = '{"a":[' + "[]," * (room // 3) + "0]}"
    numbers = '{"a":[' + "0," * (room // 2) + "0]}"
    names = "{" + ",".join(f'"{i:07x}":0' for i in range(room // 12)) + "}"
    for header, says in ((lists, "tables"), (numbers, ""), (names, "")):
        path = put(tmp_path, pack(header))

        def work(path: Path = path, says: str = says) -> None:
            before, start = peak(), time.process_time()
            with pytest.raises(BadFile, match=says):
                read_header(path)
            grown, seconds = (peak() - before) // 1024, time.process_time() - start
            assert grown < 200 and seconds < HANG, f"{grown} MB, {seconds} s"

        assert forked(work) == 0


# ---- other kinds of file --------------------------------------------------------------------------------------------


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    for data, says in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <HTML><head>", "web page"),
        (b"\xef\xbb\xbf<!doctype html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"GGUF\3\0\0\0" + bytes(30), "GGUF"),
        (b"", "empty"),
        (bytes(5000), "zeros"),
        (b"hello, this is a README\n", "text file"),
        (b'{"weight_map": {}}', "JSON"),
        (saved(GOOD, _use_new_zipfile_serialization=False), "weights_only=True"),
        (pickle.dumps(GOOD), "bare pickle"),
        (b"PK\5\6" + bytes(18), "empty zip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x93\x88\x11\xfe" * 9, "begins with"),
        (b"\x93", "begins with"),
        (b"PK\3\4", "cut short"),
    ):
        assert says in refused(put(tmp_path, data, "model.safetensors")), data[:20]


def test_what_is_no_file_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, "folder")
    refused(tmp_path / "none.safetensors", "No such file")
    refused(tmp_path / ("x" * 300), "too long")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe or a device")
    refused(Path("/dev/zero"), "pipe or a device")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        server.bind("socket")
        refused(Path("socket"), "pipe or a device")
    path = put(tmp_path, saved(GOOD))
    path.chmod(0)
    if os.getuid():
        refused(path, "Permission denied")


def test_bad_file_is_a_value_error_and_a_header_loads_no_tensor(tmp_path: Path) -> None:
    assert issubclass(BadFile, ValueError)
    path = put(tmp_path, saved(GOOD))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "frombuffer", None)
        assert read_header(path).tensors["w"].shape == (2, 3)


# ---- by the hundred -------------------------------------------------------------------------------------------------


def test_the_harness_sees_hangs_crashes_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(path: Path) -> str:
        while True:
            pass

    def crash(path: Path) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def swell(path: Path) -> str:
        return str(len(bytearray(4 << 30)))

    monkeypatch.setattr("fuzz.HANG", 0.1)
    for fault, says in (hang, signal.SIGPROF), (crash, signal.SIGKILL), (swell, 256):
        monkeypatch.setattr("fuzz.attempt", fault)
        with pytest.raises(AssertionError, match=f"file 0 of ckpt, seed 1: .* status {int(says)}$"):
            fuzz("ckpt", 2, seed=1)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_500_damaged_files(kind: str) -> None:
    report = fuzz(kind, 500, seed=3)
    assert set(report["tally"]) == {"loaded", "refused"}, report["tally"]
    assert report["slowest"] < HANG and report["grown_mb"] < 200, report


def test_what_loads_damaged_is_what_the_library_loads(tmp_path: Path) -> None:
    good, loaded = samples()["safetensors"], 0
    for number in range(400):
        path = put(tmp_path, damaged("safetensors", good, random.Random(number)))
        try:
            found = read_tensors(path)
        except BadFile:
            continue
        loaded += 1
        wanted = safetensors.torch.load_file(path)
        assert set(found) == set(wanted) and all(same(found[name], wanted[name]) for name in wanted)
    assert loaded > 20
