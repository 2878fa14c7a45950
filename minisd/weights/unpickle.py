"""A pickle's program, run without the pickle module: no code in a file can run, for nothing here runs code.

In: the bytes of a checkpoint's data.pkl. Out: dicts and tuples of words, numbers, `Dense` tensors yet unchecked, and
`Inert` names. A pickle is a program for a stack machine that may name any function and call it. This machine knows the
steps that build data, and to it a function is a name: the few in CALLS yield plain data, all others stay names.
https://docs.python.org/3/library/pickletools.html
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from ..config import check

MAX_STEPS = 1_000_000  # SD 1.x with its optimiser takes 150,000
MAX_NAME = 500  # letters of a tensor's name
MAX_WORD = 100  # letters kept of the name of a class


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """A class, a function or an object named in a file: its name, and what the file would have set on it."""

    name: str
    state: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A persistent id as the file has it, unchecked: kind is an Inert such as torch.FloatStorage."""

    kind: object
    key: object
    count: object


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The arguments of _rebuild_tensor_v2 as the file has them, unchecked."""

    storage: object
    offset: object
    shape: object
    stride: object


class Machine:
    """Runs a pickle's steps on a stack of words, numbers, tuples, dicts and the inert classes above.

    Lists and sets are not kept, nor items of a dict whose key is no short string: no tensor stands there.
    """

    def __init__(self) -> None:
        self.stack: list = []
        self.below: list[list] = []  # the stacks under the open marks
        self.memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        """The object that the program leaves on the stack."""
        try:
            for op, arg, _ in islice(pickletools.genops(program), MAX_STEPS):
                if op.name == "STOP":
                    return self.stack.pop()
                if op.name not in STEPS:
                    raise ValueError(f"its pickle has a step that no checkpoint needs: {op.name}")
                STEPS[op.name](self, arg)
        except LookupError as error:
            raise ValueError("damaged: its pickle takes what it has never put there") from error
        raise ValueError(f"its pickle takes more than {MAX_STEPS:,} steps")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise ValueError("damaged: its pickle takes what it has never put there")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update((key, value) for key, value in pairs if type(key) is str and len(key) <= MAX_NAME)

    def persistent(self, _: object) -> None:
        """("storage", kind, key, device, count): the numbers lie in the record data/key."""
        pid = self.stack.pop()
        known = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        self.push(Storage(pid[1], pid[2], pid[4]) if known else Inert("persistent"))

    def call(self, function: object, args: object) -> None:
        """What stands for function(*args): plain data for the few words of CALLS, else nothing but the name."""
        name = function.name if isinstance(function, Inert) else "?"
        known = name in CALLS and isinstance(args, tuple)
        self.push(CALLS[name](args) if known else Inert(name))

    def stack_global(self, _: object) -> None:
        module, name = self.pop(2)
        check(type(module) is str and type(name) is str, "damaged: its pickle names a class without a word")
        self.push(word(f"{module[:MAX_WORD]}.{name}"))

    def build(self, _: object) -> None:
        target, state = self.pop(2)
        self.push(Inert(target.name, state) if isinstance(target, Inert) else target)


def word(name: str) -> Inert:
    """The name of a class or a function: "torch FloatStorage" as the steps have it, or with a dot."""
    return Inert(name[:MAX_WORD].replace(" ", "."))


def dense(args: tuple) -> Dense:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)"""
    check(len(args) >= 4, "damaged: a tensor without a shape")
    return Dense(*args[:4])


def first(args: tuple) -> object:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)"""
    return args[0]


CALLS: dict[str, Callable[[tuple], object]] = {
    "torch._utils._rebuild_tensor": dense,
    "torch._utils._rebuild_tensor_v2": dense,
    "torch._utils._rebuild_parameter": first,
    "torch._utils._rebuild_parameter_with_state": first,
    "collections.OrderedDict": lambda args: {},
}
LIST = Inert("list")
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
STEPS: dict[str, Callable[[Machine, object], object]] = {
    **dict.fromkeys((*NUMBERS, *TEXTS, *BYTES), Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push(LIST)),
    "MARK": Machine.mark,
    "POP": lambda m, _: m.stack.pop() if m.stack else m.since_mark(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: (m.since_mark(), m.push(LIST))),
    "DICT": lambda m, _: (items := m.since_mark(), m.push({}), m.set_items(items)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "APPEND": lambda m, _: m.pop(1),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "GLOBAL": lambda m, text: m.push(word(text)),
    "STACK_GLOBAL": Machine.stack_global,
    "BINPERSID": Machine.persistent,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call(*m.pop(2))),
    "NEWOBJ_EX": lambda m, _: m.call(*m.pop(3)[:2]),
    "INST": lambda m, text: (m.since_mark(), m.push(word(text))),
    "OBJ": lambda m, _: m.push(Inert(getattr(m.since_mark()[0], "name", "?"))),
    "BUILD": Machine.build,
}
