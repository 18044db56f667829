"""A list folder by folder becomes one of keys in bytewise order, with as little held back as can be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.backends.s3 import _spell
from perdure.backends.s3_order import KeyOrder
from perdure.errors import StoreError
from perdure.store import is_key

PARTS = st.text('ab!-./0= "\\é~', min_size=1, max_size=3) | st.sampled_from(
    ["a" * 199, "a" * 240, "a" * 300, "a" * 239]
)
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(is_key)


def as_listed(keys: list[str], below: str = "") -> list[tuple[str, str]]:
    """Names and keys in the order of a walk through folders."""
    names = [(f"{_spell(key)}!", key) for key in keys if key.startswith(below)]
    return sorted(((name[len(_spell(below)) :], key) for name, key in names), key=lambda item: item[0].split("/"))


def ordered(listed: list[tuple[str, str]]) -> list[str]:
    order = KeyOrder()
    out = [key for name, key in listed for key, _ in order.take(name, key, 1)]
    return out + [key for key, _ in order.rest()]


@settings(max_examples=1000, deadline=None)
@given(st.sets(KEYS, max_size=12), st.sampled_from(["", "a/"]))
def test_s5_any_keys_come_in_bytewise_order(keys: set[str], below: str) -> None:
    wanted = sorted((key for key in keys if key.startswith(below)), key=str.encode)
    assert ordered(as_listed(list(keys), below)) == wanted


def test_s5_a_folder_waits_only_for_what_may_stand_before_it() -> None:
    order = KeyOrder()
    listed = as_listed(["a/1", "a/2", "a-b", "a", "b/1", "c"])
    assert [key for _, key in listed] == ["a/1", "a/2", "a", "a-b", "b/1", "c"]
    out = [[found for found, _ in order.take(name, key, 1)] for name, key in listed]
    assert out == [[], [], ["a"], ["a-b"], ["a/1", "a/2"], ["b/1", "c"]]


def test_s5_what_has_no_folder_is_not_held_at_all() -> None:
    order = KeyOrder()
    for number in range(1000):
        assert list(order.take(f"{number:04}!", f"{number:04}", 1)) == [(f"{number:04}", 1)]


def test_s5_a_list_in_no_order_is_refused() -> None:
    order = KeyOrder()
    list(order.take("b!", "b", 1))
    with pytest.raises(StoreError, match="out of order: 'a' came after 'b'"):
        list(order.take("a!", "a", 1))
