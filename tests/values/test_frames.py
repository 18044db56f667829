"""pandas and polars by Arrow, where they are installed."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from perdure.errors import EncodeError
from perdure.values import Values

values = Values()


def frames() -> list[Any]:
    pd = pytest.importorskip("pandas")
    return [
        pd.DataFrame({"i": [1, 2], "f": [1.5, None], "s": ["a", "ä"]}),
        pd.DataFrame({"a": [1]}, index=["x"]),
        pd.DataFrame({"a": [1, 2]}, index=pd.Index([3, 5], name="n")),
        pd.DataFrame({"t": pd.date_range("2026", periods=3, tz="UTC")}),
        pd.DataFrame({"c": pd.Categorical(["a", "b", "a"])}),
        pd.DataFrame({"n": pd.array([1, None], dtype="Int64")}),
        pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "a"), (2, "b")])),
        pd.DataFrame(),
        pd.DataFrame({"o": [b"a", None]}, dtype=object),
    ]


def test_frames_of_pandas_come_back_equal_with_types_and_index() -> None:
    pd = pytest.importorskip("pandas")
    kept = 0
    for frame in frames():
        dumped = values.dump([frame])
        back = values.load(dumped.join())[0]
        pd.testing.assert_frame_equal(back, frame)
        kept += dumped.serializer == "arrow"
    assert kept >= 6


def test_series_of_pandas_keep_name_and_type() -> None:
    pd = pytest.importorskip("pandas")
    for series in (
        pd.Series([1, 2], name="x"),
        pd.Series(["a", "b"]),
        pd.Series([1.5], name=("a", 1)),
        pd.Series([1], index=["q"]),
    ):
        dumped = values.dump(series)
        assert dumped.serializer == "arrow"
        pd.testing.assert_series_equal(values.load(dumped.join()), series)


def test_frames_of_pandas_that_arrow_would_change_are_left_to_pickle() -> None:
    pd = pytest.importorskip("pandas")
    noted = pd.DataFrame({"a": [1]})
    noted.attrs["k"] = 1
    for frame in (
        pd.DataFrame({"o": [object(), 1]}),
        pd.DataFrame({"o": [(1, 2), [3]]}),
        pd.DataFrame({1: [1], "a": [2]}),
        pd.DataFrame({"o": [dt.date(2026, 1, 1), 1]}),
        noted,
        pd.DataFrame({"o": [{"a": 1}, {"b": 2}]}),
    ):
        assert values.dump(frame).serializer == "pickle"


def test_frames_and_series_of_polars_come_back_equal() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "i": [1, None],
            "s": ["a", "ä"],
            "l": [[1], []],
            "d": [dt.date(2026, 1, 1), None],
            "t": [{"a": 1}, {"a": 2}],
            "c": pl.Series(["x", "y"], dtype=pl.Categorical),
        }
    )
    for value in (frame, frame["s"], frame["i"], pl.DataFrame(), pl.Series("e", [], dtype=pl.Int8)):
        dumped = values.dump({"v": value})
        assert dumped.serializer == "arrow"
        back = values.load(dumped.join())["v"]
        assert type(back) is type(value)
        assert back.equals(value)
        assert getattr(back, "schema", None) == getattr(value, "schema", None)
    with pytest.raises(EncodeError, match="PyDataFrame"):
        values.dump(pl.DataFrame({"o": [object()]}))
