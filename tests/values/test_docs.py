"""What the pages about values say is what the code does."""

from __future__ import annotations

import importlib
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from support.distributions import install, run

from perdure import registry
from perdure.conformance import Kind, SerializerSubject, Status, run_sync
from perdure.conformance.plugin_bench import plugin_bench
from perdure.conformance.render import failure_text
from perdure.errors import DecodeError
from perdure.serializer import Limits
from perdure.serializers import declared
from perdure.values import Values

ROOT = Path(__file__).parent.parent.parent
PAGES = ["writing-a-serializer.md", "security.md", "types.md"]


def blocks(page: str) -> str:
    return "\n".join(each_block(page))


def each_block(page: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert found
    return found


@pytest.fixture
def _declared() -> Any:
    types, names = dict(declared._by_type), dict(declared._by_name)
    yield
    for held, before in ((declared._by_type, types), (declared._by_name, names)):
        held.clear()
        held.update(before)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_declared")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a module: dataclasses look their module up.
    name = f"page_{page.removesuffix('.md').replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(blocks(page))
    (tmp_path / "perdure_fraction.py").write_text(each_block("writing-a-serializer.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module(name)
    if page == "writing-a-serializer.md":
        with registry.registered(registry.CODECS, "zlib", module.ZlibCodec):
            values = Values(["data", module.FractionSerializer()], codecs=["zlib"])
            assert values.loads(values.dumps(Fraction(1, 3))) == Fraction(1, 3)
            data = values.dumps("x" * 5000)
            assert len(data) < 500
            assert values.loads(data) == "x" * 5000
        codec = module.ZlibCodec()
        encoded = b"".join(codec.encode([bytes(1 << 24)]))
        for bad in (encoded[:-1], encoded + b"x"):
            with pytest.raises(DecodeError):
                list(codec.decode([bad], Limits()))
        with pytest.raises(DecodeError):
            list(codec.decode([encoded], Limits(max_bytes=1 << 20)))


@pytest.mark.parametrize(
    ("kind", "number", "made"), [("serializer", 0, "FractionSerializer"), ("codec", 1, "ZlibCodec")]
)
def test_what_the_page_about_serializers_shows_conforms(
    kind: str, number: int, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"page_{kind}"
    (tmp_path / f"{name}.py").write_text(each_block("writing-a-serializer.md")[number])
    monkeypatch.syspath_prepend(tmp_path)
    found = getattr(importlib.import_module(name), made)
    subject = SerializerSubject(found, samples=[Fraction(-1, 3), Fraction(2**70)]) if kind == "serializer" else found
    report = run_sync(plugin_bench(Kind(kind), subject, seed=1), level="base")
    bad = [failure_text(x) for x in report.results if x.status in (Status.FAILED, Status.ERROR)]
    assert not bad, "\n".join(bad)


def test_the_table_of_types_is_what_the_code_does() -> None:
    script = ROOT / "scripts" / "types_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_written_from_the_format_page_alone_reads_a_value() -> None:
    data = Values().dumps({"a": (1, 2), "b": b"z" * 70_000}, token=bytes(range(16)))
    assert data[:4] == b"PDva"
    version, header_size = struct.unpack_from("<HH", data, 4)
    assert version == 1
    assert data[8:24] == bytes(range(16))
    assert (data[24], data[25], data[26:28]) == (1, 0, b"\0\0")
    assert data[28:40] == bytes(12)
    assert struct.unpack_from("<Q", data, 56) == (len(data),)
    assert data[40:56] == xxhash.xxh3_128(data[:40] + bytes(16) + data[56:]).digest()
    serializer, serializer_version, sizes, *codecs = msgspec.msgpack.decode(data[64 : 64 + header_size])
    assert (serializer, serializer_version, codecs) == ("data", 1, [[], [], []])
    at = 64 + header_size
    first = data[at : at + sizes[0]]
    at = -(-(at + sizes[0]) // 64) * 64
    assert data[at : at + sizes[1]] == b"z" * 70_000
    assert at + sizes[1] == len(data)
    value = msgspec.msgpack.decode(first)
    assert (value["a"].code, msgspec.msgpack.decode(value["a"].data)) == (1, [1, 2])
    assert (value["b"].code, msgspec.msgpack.decode(value["b"].data)) == (17, 1)


def test_every_extension_of_the_code_stands_on_the_format_page() -> None:
    from perdure.serializers import arrow, plain_reader

    page = (ROOT / "docs" / "format.md").read_text()
    written = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", page, re.M) for n in row.split(",")}
    assert set(plain_reader._LOADS) | set(arrow._LOADS) <= written


def test_the_example_distribution_installs_and_conforms(tmp_path: Path) -> None:
    site = install(ROOT / "examples" / "serializer-plugin-fraction", tmp_path)
    tests = str(ROOT / "examples" / "serializer-plugin-fraction" / "tests")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), tests], site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
