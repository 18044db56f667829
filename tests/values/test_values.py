"""The door: choice of serializer, refs, trust, errors."""

from __future__ import annotations

import datetime as dt
import math
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from uuid import UUID

import pytest
import ray

from perdure import references
from perdure.errors import CorruptedError, DecodeError, EncodeError
from perdure.serializer import AdaptedSerializer
from perdure.values import Values

values = Values()

PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**63) - 1,
    2**4096,
    -(2**4096),
    1.5,
    -0.0,
    math.inf,
    "",
    "a\0b",
    "\U0001f600",
    "\ud800x",
    b"",
    b"\xff" * 70_000,
    bytearray(b"ab"),
    [],
    [1, [2, (3, [4])]],
    (),
    (1,),
    ((1, 2), [3]),
    {},
    {"a": 1, "b": [1, 2]},
    {1: "a", (1, 2): "b", None: "c", b"x": 1, 1.5: 2, "s": 3, False: 4, frozenset([1]): 5},
    {"\ud800": 2**70, "x": [2**70, "\udfff"]},
    {1, 2, 3},
    frozenset({2, (1, 2)}),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC, fold=1),
    dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, microseconds=3), "X")),
    dt.date(2026, 1, 2),
    dt.time(1, 2, 3, 4, fold=1),
    dt.time(1, tzinfo=dt.UTC),
    dt.timedelta(-3, 5, 7),
    Decimal("1.10"),
    Decimal("-Infinity"),
    Decimal("1E+999999"),
    UUID(int=5),
    1 + 2j,
    range(3),
    range(0, 2**80, 7),
]


def same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))  # type: ignore[attr-defined]
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, (dt.datetime, dt.time)):
        return repr(a) == repr(b)
    return a == b


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: repr(v)[:40])
def test_plain_values_come_back_with_value_and_type_through_data(value: object) -> None:
    dumped = values.dump(value, serializer="data")
    assert dumped.size == len(dumped.join())
    assert same(values.load(dumped.join()), value)


def test_nan_and_decimal_nan_come_back() -> None:
    assert math.isnan(values.loads(values.dumps(math.nan)))
    assert str(values.loads(values.dumps(Decimal("sNaN123")))) == "sNaN123"


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value", [Colour.RED, Point(1, 2), OrderedDict(a=1), [Colour.RED], {"a": Point(1, 2)}, object], ids=repr
)
def test_subclasses_of_plain_types_keep_their_type_through_pickle(value: object) -> None:
    dumped = values.dump(value)
    assert dumped.serializer == "pickle"
    assert same(values.load(dumped.join()), value)


def test_a_value_that_contains_itself_is_refused_by_data_and_kept_by_pickle() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="contains itself"):
        values.dump(loop, serializer="data")
    back = values.loads(values.dumps(loop))
    assert back[0] is back


def test_shared_parts_that_explode_when_copied_are_refused_by_data() -> None:
    tree: list[object] = [1]
    for _ in range(60):
        tree = [tree, tree]
    with pytest.raises(EncodeError):
        values.dump(tree, serializer="data")


def test_equal_sets_give_equal_bytes_in_processes_with_other_hash_seeds() -> None:
    code = "from perdure.values import Values; print(Values().dumps({'a', 'b', 'c', ('d', 1)}).hex())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_importing_and_using_plain_values_imports_nothing_heavy() -> None:
    code = (
        "import sys; from perdure.values import Values; v = Values(); v.loads(v.dumps({'a': [1, (2,)]})); "
        "print(sorted({'ray', 'numpy', 'pyarrow', 'pandas', 'cryptography'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_refs_are_collected_once_each_and_restored_by_index() -> None:
    a, b = ray.ObjectRef(b"a" * 28), ray.ObjectRef(b"b" * 28)
    dumped = values.dump([a, {"x": b}, (a,)])
    assert dumped.serializer == "data"
    assert dumped.refs == [a, b]
    assert values.load(dumped.join(), refs=[b, a]) == [b, {"x": a}, (b,)]


class Opaque:
    def __init__(self, ref: object) -> None:
        self.inner = [ref]


def test_refs_hidden_in_opaque_objects_are_found_by_pickle() -> None:
    ref = ray.ObjectRef(b"a" * 28)
    dumped = values.dump({"o": Opaque(ref), "f": lambda: ref, "r": ref})
    assert (dumped.serializer, dumped.refs) == ("pickle", [ref])
    other = ray.ObjectRef(b"b" * 28)
    back = values.load(dumped.join(), refs=[other])
    assert (back["o"].inner, back["f"](), back["r"]) == ([other], other, other)


def test_a_ref_outside_a_dump_is_refused() -> None:
    with pytest.raises(EncodeError, match="lost with its cluster"):
        references.collect(ray.ObjectRef(b"a" * 28))
    with pytest.raises(EncodeError, match="can't carry"):
        values.dumps([ray.ObjectRef(b"a" * 28)])


def test_a_ref_index_without_a_ref_is_refused() -> None:
    dumped = values.dump([ray.ObjectRef(b"a" * 28)])
    with pytest.raises(DecodeError, match="ObjectRef number 0"):
        values.load(dumped.join())


def test_collecting_yields_the_refs_and_ends() -> None:
    ref = ray.ObjectRef(b"a" * 28)
    with references.collecting() as found:
        assert (references.collect(ref), references.collect(ref)) == (0, 0)
    assert found.refs == [ref]
    with references.restoring([ref]):
        assert references.restore(0) == ref
    with pytest.raises(DecodeError):
        references.restore(0)


class Holder:
    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_cant_be_stored_is_named_with_task_path_type_and_serializers() -> None:
    with pytest.raises(EncodeError) as caught:
        values.dump({"a": [1, 2, 3, Holder()]}, where="task 'load'")
    text = str(caught.value)
    assert caught.value.path == "result['a'][3].lock"
    assert "task 'load'" in text
    assert "_thread.lock" in text
    assert "data, arrow, pickle" in text
    assert pickle.loads(pickle.dumps(caught.value)).path == caught.value.path


def test_the_path_leads_into_closures_and_names_the_smallest_part_a_serializer_lacks() -> None:
    lock = threading.Lock()
    with pytest.raises(EncodeError) as caught:
        values.dump([lambda: lock], root="argument 0")
    assert caught.value.path == "argument 0[0].<closure lock>"
    with pytest.raises(EncodeError) as caught:
        Values(["data"]).dump({"p": (1, Point(1, 2))})
    assert caught.value.path == "result['p'][1]"


def test_trust_data_refuses_a_pickle_before_it_is_called(tmp_path: object) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (exec, ("raise SystemExit('ran')",))

    data = values.dumps(Bomb())
    with pytest.raises(DecodeError, match="trust"):
        Values(trust="data").loads(data)


def test_an_unknown_serializer_is_named() -> None:
    from perdure.envelope import pack

    with pytest.raises(DecodeError, match="'martian'"):
        values.load(b"".join(pack([b"x"], serializer="martian")), where="task 3's result")


def test_damage_is_named_with_the_place() -> None:
    data = bytearray(values.dumps("hello"))
    data[-1] ^= 1
    with pytest.raises(CorruptedError, match="task 3"):
        values.load(data, where="task 3's result")


def test_functions_of_main_are_stored_by_value(tmp_path: object) -> None:
    script = f"{tmp_path}/script.py"
    with open(script, "w") as file:
        file.write(
            "import sys; from perdure.values import Values\n"
            "def f(x): return x + 1\n"
            "sys.stdout.buffer.write(Values().dumps(f))\n"
        )
    data = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    assert values.loads(data)(1) == 2


def test_values_survive_pickling_of_the_door() -> None:
    again = pickle.loads(pickle.dumps(Values(["data"], trust="data")))
    assert again.trust == "data"
    assert again.loads(values.dumps([1])) == [1]


def test_a_missing_module_is_named() -> None:
    stream = b"\x80\x05cno_such_module_x\nthing\n."
    from perdure.envelope import pack

    with pytest.raises(DecodeError, match="no_such_module_x"):
        values.load(b"".join(pack([stream], serializer="pickle")))


def test_refs_met_by_a_serializer_that_gave_up_are_forgotten() -> None:
    class Keeping:
        """A serializer that leaves the ref out."""

        id, version, runs_code = "keeping", 1, False

        def accepts(self, obj: object) -> bool:
            return True

        def dump(self, obj: object) -> list[bytes]:
            return [b"x"]

        def load(self, buffers: object, limits: object) -> object:
            return None

    door = Values(["data", AdaptedSerializer(Keeping())])
    dumped = door.dump([ray.ObjectRef(b"a" * 28), object()])
    assert (dumped.serializer, dumped.refs) == ("keeping", [])


def test_eight_threads_dump_and_load_at_once() -> None:
    door = Values()
    wrong: list[object] = []

    def work(number: int) -> None:
        ref = ray.ObjectRef(bytes([number]) * 28)
        for i in range(200):
            value = {"n": number, "i": (i, [ref]), "f": Opaque(ref) if i % 2 else 0}
            dumped = door.dump(value)
            back = door.load(dumped.join(), refs=dumped.refs)
            if dumped.refs != [ref] or back["i"] != (i, [ref]) or back["n"] != number:
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mapped_file_is_read_in_place(tmp_path: object) -> None:
    import mmap

    import numpy as np

    path = f"{tmp_path}/value"
    array = np.arange(100_000)
    with open(path, "wb") as file:
        for buffer in values.dump({"a": array}).buffers:
            file.write(buffer)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    back = values.load(mapped)["a"]
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    assert start <= back.__array_interface__["data"][0] < start + len(mapped)
    assert back.flags.aligned
    assert back.ctypes.data % 64 == 0
    assert (back == array).all()


@pytest.mark.parametrize("make", ["np.arange(n // 8)", "pa.table({'x': np.arange(n // 8)})"])
def test_dump_and_load_of_a_large_value_take_little_memory_beyond_it(make: str, tmp_path: object) -> None:
    code = f"""
import mmap, resource, sys
import numpy as np, pyarrow as pa
from perdure.values import Values
values, n, path = Values(), 128 << 20, sys.argv[1]
values.loads(values.dumps([np.arange(9), pa.table({{"x": [1]}})]))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if sys.argv[2] == "dump":
    idle = peak()
    value = {make}
    with open(path, "wb") as file:
        for buffer in values.dump({{"v": value}}).buffers:
            file.write(buffer)
else:
    file = open(path, "rb")
    idle = peak()
    back = values.load(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))["v"]
    assert back.nbytes == n
print((peak() - idle) / n)
"""
    for step in ("dump", "load"):
        done = subprocess.run(
            [sys.executable, "-c", code, f"{tmp_path}/value", step], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 1.15
