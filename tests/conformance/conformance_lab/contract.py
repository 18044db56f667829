"""Argument checks of the contract, written once more, apart from the product's."""

from __future__ import annotations

from typing import Any


def check_key(key: Any, limit: int) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError("a key has no lone surrogates") from None
    if size > limit:
        raise ValueError(f"a key has at most {limit} bytes, this one has {size}")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{key!r}: a segment is not empty, '.' or '..'")
    if any(ord(c) < 0x20 or c == "\x7f" for c in key):
        raise ValueError(f"{key!r}: no control characters")
    return key


def check_data(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data is bytes-like, not {type(data).__name__}")
    return bytes(data)


def check_range(start: Any, end: Any) -> tuple[int, int | None]:
    for x in (start, end):
        if x is not None and (not isinstance(x, int) or isinstance(x, bool)):
            raise TypeError(f"a range has ints, not {type(x).__name__}")
    first = 0 if start is None else start
    if first < 0 or (end is not None and (end < 0 or first > end)):
        raise ValueError(f"range [{start}:{end}] is not a slice with non-negative ends in order")
    return first, end


def check_list(prefix: Any, start_after: Any, limit: Any) -> None:
    if not isinstance(prefix, str) or not (start_after is None or isinstance(start_after, str)):
        raise TypeError("prefix and start_after are str")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise TypeError("limit is an int")
    if limit is not None and limit < 0:
        raise ValueError("limit is not negative")
