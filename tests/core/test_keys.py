from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import keys

ODD_IDS = [
    ".",
    "..",
    "...",
    "a/b",
    "a~2Fb",
    "~",
    "~2E",
    "~2E.",
    " ",
    "a b",
    "A",
    "a",
    "%",
    "a%2Fb",
    "ü",
    "文" * 200,
    "文" * 199 + "字",
    "x" * 200,
    "x" * 199 + "y",
    "-",
    "_",
    "CON",
    "a.",
    ".a",
    "a\u0301",
    "á",
    "𝕏" * 200,
]


def test_ids_of_200_wide_characters_make_one_file_name_each() -> None:
    encoded = [keys.encode_id(i) for i in ODD_IDS]
    assert len(set(encoded)) == len(ODD_IDS)
    for name in encoded:
        assert len(name.encode()) <= 150
        assert set(name) <= set(string.ascii_letters + string.digits + "._~-")
        assert name.strip("."), "a name of dots alone means another folder"
        assert "/" not in name


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_distinct_ids_give_distinct_segments(a: str, b: str) -> None:
    try:
        a.encode(), b.encode()
    except UnicodeEncodeError:
        return
    assert (a == b) == (keys.encode_id(a) == keys.encode_id(b))


@given(st.text(min_size=1, max_size=200))
def test_an_id_is_read_back_from_its_chain_unless_only_its_hash_is_there(text: str) -> None:
    try:
        chain = keys.workflow_chain(text)
    except UnicodeEncodeError:
        return
    assert keys.id_of_chain(chain) == (None if "~h" in chain else text)


@pytest.mark.parametrize("good", ["a", "a/b", ".", "文" * 200, "x y", "🙂"])
def test_printable_text_of_up_to_200_characters_is_an_id(good: str) -> None:
    assert keys.check_workflow_id(good) == good


@pytest.mark.parametrize("bad", ["", "x" * 201, "a\n", "a\0b", "\u200b", "a\tb", "\ud800"])
def test_another_id_is_refused_with_the_rule(bad: str) -> None:
    with pytest.raises(ValueError) as error:
        keys.check_workflow_id(bad)
    assert "1 to 200 printable" in str(error.value)


@pytest.mark.parametrize("bad", [None, 7, b"a", ["a"]])
def test_an_id_that_is_no_text_is_a_type_error(bad: object) -> None:
    with pytest.raises(TypeError):
        keys.check_workflow_id(bad)


@given(st.integers(0, 10**19), st.integers(0, 10**19))
def test_segment_keys_sort_by_number_and_give_it_back(a: int, b: int) -> None:
    chain = keys.workflow_chain("a/b")
    assert keys.segment_number(keys.segment(chain, a)) == a
    assert (a < b) == (keys.segment(chain, a) < keys.segment(chain, b))
    assert keys.part_number(keys.part(chain, a, "00" * 16)) == a


@pytest.mark.parametrize("name", ["w/a/j/1", "w/a/j/" + "1" * 21, "w/a/j/" + "x" * 20, "w/a/j/" + "²" * 20, "w/a/j/"])
def test_a_foreign_name_is_no_segment(name: str) -> None:
    assert keys.segment_number(name) is None


def test_one_chain_is_never_a_prefix_of_another() -> None:
    a, b = keys.workflow_chain("a"), keys.workflow_chain("ab")
    assert not b.startswith(a)
    assert not keys.inbox("a", 1).startswith(keys.inbox("a", 11))
    assert not keys.inbox("a", 11).startswith(keys.inbox("a", 1))


def test_an_inbox_slot_names_its_life() -> None:
    assert keys.inbox_birth(keys.inbox_slot("a/b", 17, 3)) == 17


def test_the_coordinator_of_a_key() -> None:
    assert keys.coordinator_of(keys.segment(keys.coordinator_chain("c0ffee"), 3)) == "c0ffee"
