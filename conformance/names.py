"""Key names that stores get wrong, in groups. Pure data: the cases say what has to happen with them."""

from __future__ import annotations

import random
import unicodedata

PLAIN = [
    "a", "b", "z", "A", "Z", "0", "9", "10", "a1", "abc", "a/b", "a1/b2/c3", "run/1", "run/10", "w/x/j/1",
    "w/x/j/00000000000000000002", "long-name-with-dashes", "under_score", "dot.name", "name.json", "name.tar.gz",
    "UPPER", "MiXed", "x" * 60, "d/" * 20 + "end", "q/1/2/3/4/5/6/7/8/9", "e2e", "file~1", "v1.0.0", "a.b.c.d",
    "key-with-0-digits-9", "tmp", "data", "index", "lock", "meta", "c0ffee", "deadbeef" * 4, "year=2026/month=01",
    "t" * 120,
]  # fmt: skip

EMPTY_PARTS = ["", "/", "/a", "a/", "a//b", "//", "a/b/", "/a/b", "a///b", "a//"]
DOT_PARTS = [".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b", "../../etc/passwd", "a/../../b"]
DOT_NAMES = ["...", ".a", "a.", "a..b", "..a", "a..", "x/...", "x/.a/y", "....", "x/..a"]

ODD = [
    " ", " a", "a ", "a b", "  ", "a%2Fb", "a%2fb", "%", "%00", "%25", "%2E%2E", "a+b", "+", "a?b", "?x=1", "a#b",
    "#", "a&b", "a=b", "a*b", "*", "[a]", "{a,b}", "a\\b", "\\", "..\\a", "'a'", '"a"', "`a`", ";--", "a;b",
    "$HOME", "${x}", "~", "~root", "-rf", "--help", "CON", "nul.txt", ".tmp", ".lock", "__pycache__", "a:b",
    "a|b", "<a>", "a@b", "a,b", "!a", "^", "x.tmp", "@", "%s%n",
]  # fmt: skip

SCRIPTS = [
    "\u00e9t\u00e9", "\u00fcber", "\u0141\u00f3d\u017a", "\u041c\u043e\u0441\u043a\u0432\u0430",
    "\u0391\u03b8\u03ae\u03bd\u03b1", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u4f60\u597d",
    "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155", "\u10d2\u10d0\u10db\u10d0", "\u12a0\u121b\u122d",
    "\U0001f600", "\U0001f469\u200d\U0001f680", "\U0001f1e9\U0001f1ea", "a\u200bb", "a\u200db", "a\u202eb",
    "\u2028x", "\ufeffx", "\u00a0", "\u00adx", "\U00010348", "\ue000", "\uff61", "x\u0301\u0302\u0303",
]  # fmt: skip

NORMAL_FORMS = [
    ("caf\u00e9", "cafe\u0301"),
    ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
    ("\u1e69", "s\u0323\u0307"),
    ("\uac00", "\u1100\u1161"),
    ("\u212b", "\u00c5"),
    ("\u03a9", "\u2126"),
    ("\ufb01", "fi"),
]
CASES = [
    ("abc", "ABC"),
    ("Run", "run"),
    ("stra\u00dfe", "strasse"),
    ("stra\u00dfe", "STRASSE"),
    ("\u0131", "i"),
    ("\u0130", "i"),
    ("I", "\u0131"),
    ("\u03c3", "\u03c2"),
    ("\u0416", "\u0436"),
    ("\u017f", "s"),
    ("k", "\u212a"),
]

CONTROLS = [chr(c) for c in range(0x20)] + ["\x7f"]
SURROGATES = ["\ud800", "a\udfff", "\udc80b"]
WRONG_TYPES = [b"a", 1, None, 1.5, ["a"], ("a",)]

ASCII_ORDER = ["a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0"]
BORDERS = [
    "a", "~", "\u0080", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uff61", "\ufffd", "\U00010000", "\U0001f600",
    "\U0010fffd",
]  # fmt: skip


def utf8(text: str) -> bytes:
    return text.encode()


def in_order(names: list[str] | set[str]) -> list[str]:
    """The order of L3: by UTF-8 bytes of the whole key."""
    return sorted(names, key=utf8)


def valid(key: str) -> bool:
    """The domain of K1, without the length. Written apart from the product's own check."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return all(part not in ("", ".", "..") for part in key.split("/")) and not any(
        ord(c) < 0x20 or ord(c) == 0x7F for c in key
    )


def with_length(size: int, ending: str = "", segment: int = 100) -> str:
    """A key of exactly ``size`` UTF-8 bytes in segments of at most ``segment``, with this ending."""
    body = size - len(ending.encode())
    parts = []
    while body > segment:
        parts.append("k" * (segment - 1))
        body -= segment
    if body == 0 and parts:
        parts[-1] = parts[-1][:-1]
        body = 1
    return "/".join([*parts, "k" * body]) + ending


def generated(rng: random.Random, count: int) -> list[str]:
    """Distinct valid keys with an eye for trouble: neighbours in case, form, escape and order."""
    alphabet = "aAbz09-_.~ %+?#&*[]\\'\"\u00e9e\u0301\u00df\u0130\uff61\U0001f600\u4f60"
    keys: set[str] = set()
    while len(keys) < count:
        segments = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
        key = "/".join(segments)
        for variant in (key, key.swapcase(), unicodedata.normalize("NFC", key), unicodedata.normalize("NFD", key)):
            if valid(variant) and len(keys) < count:
                keys.add(variant)
    # A key may not be a folder of another one here: not every store can hold both (K5).
    return [k for k in sorted(keys) if not any(other.startswith(k + "/") for other in keys)]
