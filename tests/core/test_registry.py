"""The plugin registry, against installed distributions made for the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import registry
from perdure.errors import PluginError
from perdure.store import open_store

GOOD = """
from perdure.backends.memory import MemoryStore
class Store(MemoryStore):
    pass
"""


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, points: dict[str, str], modules: dict[str, str], version: str = "1.0") -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups: dict[str, list[str]] = {}
        for point, value in points.items():
            group, _, entry = point.rpartition(":")
            groups.setdefault(group or "perdure.stores", []).append(f"{entry} = {value}")
        lines = [f"[{group}]\n" + "\n".join(entries) for group, entries in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, text in modules.items():
            (self.folder / f"{module}.py").write_text(text)
        registry.refresh()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    monkeypatch.undo()
    registry.refresh()


def test_names_are_listed_without_importing_anything(site: Site) -> None:
    site.install("shop", {"mine": "shop_store:Store"}, {"shop_store": "raise SystemExit('imported')"})
    assert {"file", "memory", "mine"} <= set(registry.names(registry.STORES))
    assert "shop_store" not in sys.modules


def test_a_plugins_scheme_opens_its_store(site: Site) -> None:
    site.install("shop", {"mine": "shop_store:Store"}, {"shop_store": GOOD})
    store = open_store("mine://x")
    assert (type(store).__module__, store.url) == ("shop_store", "mine://x")


def test_two_owners_of_one_scheme_are_refused_naming_both(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("shop", {"mine": "shop_store:Store"}, {"shop_store": GOOD})
    site.install("other-shop", {"mine": "other_store:Store"}, {"other_store": GOOD}, version="2.5")
    with pytest.raises(PluginError) as caught:
        open_store("mine://x")
    assert "shop 1.0" in str(caught.value)
    assert "other-shop 2.5" in str(caught.value)
    health = {(p.distribution, p.health) for p in registry.plugins() if p.name == "mine"}
    assert health == {("shop", "conflict"), ("other-shop", "conflict")}
    monkeypatch.setenv("PERDURE_DISABLE_PLUGINS", "other-shop")
    assert type(open_store("mine://x")).__module__ == "shop_store"


def test_nobody_can_take_over_a_scheme_of_ours(site: Site) -> None:
    site.install("thief", {"file": "thief_store:Store"}, {"thief_store": GOOD})
    with pytest.raises(PluginError, match="thief"):
        open_store("file:///tmp/x")


def test_a_broken_plugin_is_reported_with_its_error_and_stops_no_other(site: Site) -> None:
    site.install(
        "shop",
        {"broken": "shop_broken:Store", "gone": "shop_gone:Store", "mine": "shop_store:Store"},
        {"shop_broken": "raise RuntimeError('no licence')", "shop_store": GOOD},
    )
    with pytest.raises(PluginError, match="no licence"):
        open_store("broken://x")
    assert open_store("mine://x").url == "mine://x"
    lines = {p.name: p for p in registry.plugins() if p.distribution == "shop"}
    assert (lines["mine"].health, lines["mine"].version, lines["mine"].error) == ("ok", "1.0", None)
    assert lines["broken"].health == "broken"
    assert "no licence" in str(lines["broken"].error)
    assert "shop_gone" in str(lines["gone"].error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class Store: pass", "make"),
        ("from perdure.store import Store as S\nclass Store(S):\n  pass", "_create"),
        (GOOD + "    async def _get(self, key): ...\n", r"_get must take \(key, start, end\), but takes \(key\)"),
        (GOOD + "    _stat = 5\n", "'_stat' is not a method but int"),
    ],
    ids=["nothing", "abstract", "argument", "no method"],
)
def test_a_plugin_that_does_not_fit_is_refused_saying_what(site: Site, text: str, expected: str) -> None:
    site.install("shop", {"mine": "shop_store:Store"}, {"shop_store": text})
    with pytest.raises(PluginError, match=expected):
        open_store("mine://x")


def test_plugins_can_be_turned_off_but_ours_stay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("shop", {"mine": "shop_store:Store"}, {"shop_store": GOOD})
    for switch in ("1", "all", "mine", "shop", "perdure.stores:mine"):
        monkeypatch.setenv("PERDURE_DISABLE_PLUGINS", switch)
        assert "mine" not in registry.names(registry.STORES)
        assert "memory" in registry.names(registry.STORES)
        with pytest.raises(PluginError):
            open_store("mine://x")
    assert {p.health for p in registry.plugins() if p.name == "mine"} == {"disabled"}
    monkeypatch.setenv("PERDURE_DISABLE_PLUGINS", "other")
    assert "mine" in registry.names(registry.STORES)


def test_an_unknown_scheme_names_those_installed_and_the_extra(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"ftp://.*installed: file, .*memory"):
        open_store("ftp://x")
    monkeypatch.setattr(registry, "names", lambda group: ("file", "memory"))
    with pytest.raises(PluginError, match=r"pip install 'perdure\[s3\]'"):
        open_store("s3://bucket")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "perdure.backends.gcs", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    registry.refresh()
    try:
        with pytest.raises(PluginError, match=r"pip install 'perdure\[gcs\]'"):
            open_store("gs://bucket")
    finally:
        registry.refresh()


def test_plugins_can_be_registered_in_the_process() -> None:
    class Mine:
        id, version, runs_code = "mine", 1, False

        def accepts(self, obj: object) -> bool:
            return True

        def dump(self, obj: object) -> list[bytes]:
            return []

        def load(self, buffers: object, limits: object) -> object:
            return None

    with registry.registered(registry.SERIALIZERS, "mine", Mine):
        assert registry.load(registry.SERIALIZERS, "mine") is Mine
        with pytest.raises(PluginError, match="already registered"):
            registry.register(registry.SERIALIZERS, "mine", object.__new__(Mine))
    with pytest.raises(PluginError, match="no serializer named 'mine'"):
        registry.load(registry.SERIALIZERS, "mine")
    with pytest.raises(PluginError, match=r"'accepts'|'id'"):
        registry.register(registry.SERIALIZERS, "bad", object())


def test_every_plugin_of_ours_is_healthy() -> None:
    lines = [p for p in registry.plugins() if p.distribution == "perdure"]
    assert {p.name for p in lines if p.group == registry.STORES} == {
        "file",
        "memory",
        "s3",
        "gs",
        "redis",
        "rediss",
        "fsspec+",
    }
    assert [(p.name, p.error) for p in lines if p.health != "ok"] == []
