"""A store whose lists may lag is used append-only, which is said once; NFS is one unless it is mounted well."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from perdure import keys
from perdure import records as r
from perdure.backends import local
from perdure.backends.local_mount import lagging
from perdure.chain import BASE_EVERY, CREATED, Chain, View
from perdure.errors import StoreError
from perdure.guarded_store import GuardedStore, probe
from perdure.store import open_store

CAREFUL = "rw,vers=4.2,noac,lookupcache=none,addr=10.0.0.1"
CACHING = "rw,vers=4.2,actimeo=60,lookupcache=positive,addr=10.0.0.1"


def table(options: str, kind: str = "nfs4") -> str:
    return (
        "24 1 0:22 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"31 24 0:40 / /mnt/team\\040share rw,relatime shared:9 - {kind} server:/export {options}\n"
        "40 31 0:50 / /mnt/team\\040share/scratch rw,relatime - tmpfs tmpfs rw\n"
    )


@pytest.mark.parametrize(
    ("folder", "options", "kind", "lags"),
    [
        ("/mnt/team share/perdure", CACHING, "nfs4", True),
        ("/mnt/team share", CACHING, "nfs", True),
        ("/mnt/team share/perdure", CAREFUL, "nfs4", False),
        ("/mnt/team share/perdure", "rw,actimeo=0,lookupcache=none", "nfs4", False),
        ("/mnt/team share/perdure", "rw,noac", "nfs4", True),
        ("/mnt/team share/scratch/perdure", CACHING, "nfs4", False),
        ("/mnt/team shares/perdure", CACHING, "nfs4", False),
        ("/mnt/team share/perdure", "rw", "xfs", False),
        ("/data", CACHING, "nfs4", False),
    ],
)
def test_nfs_shows_names_late_unless_it_is_mounted_without_caches(
    folder: str, options: str, kind: str, lags: bool
) -> None:
    said = lagging(folder, table(options, kind))
    assert bool(said) is lags
    assert "/mnt/team share is NFS" in said or not lags


def test_this_machines_mounts_can_be_read(tmp_path: Path) -> None:
    assert lagging(str(tmp_path)) == ""


async def test_a_folder_on_caching_nfs_is_refused_unless_it_is_append_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "lagging", lambda folder: "/mnt is NFS, mounted without noac,lookupcache=none")
    async with open_store(f"file://{tmp_path}/a") as store:
        with pytest.raises(StoreError, match="append_only=true"):
            await probe(store)
    async with open_store(f"file://{tmp_path}/a?append_only=true") as store:
        report = await probe(store)
        assert [w for w in report.warnings if "nothing is ever deleted" in w] == list(report.warnings)
        assert len(report.warnings) == 1


@pytest.mark.parametrize("append_only", [False, True])
async def test_s5_where_lists_may_lag_no_chain_is_trimmed(tmp_path: Path, append_only: bool) -> None:
    tokens = (n.to_bytes(16, "big") for n in itertools.count(1))
    async with open_store(f"file://{tmp_path}/store?append_only={str(append_only).lower()}") as store:
        guarded = GuardedStore(store)
        chain = Chain(guarded, "w/x/", "A", lambda: next(tokens), list)
        await chain.enter(CREATED, [r.Canceled(0.0)], View())
        for _ in range(4 * BASE_EVERY):
            await chain.append([r.Canceled(0.0)])
            if chain.wants_base:
                await chain.write_base()
            if chain.wants_trim:
                await chain.trim()
        assert chain.header.base > BASE_EVERY
        kept = await guarded.list_keys(keys.segments("w/x/"))
        assert (len(kept) == 4 * BASE_EVERY + 1) is append_only
        assert await guarded.delete_prefix("w/") == (0 if append_only else len(kept) + len(chain.header.parts))
