"""The project's serializers, codecs and listeners as targets of the conformance suite.

``target(kind, name, folder)`` gives a subject where a plugin has types, sources or secrets of its own, else its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def target(kind: str, name: str, folder: Path) -> Any:
    """What the suite judges; ``folder`` is scratch, and what has a ``close`` is ended by it."""
    if (kind, name) == ("serializer", "arrow"):
        return arrow()
    if (kind, name) == ("serializer", "fraction"):
        return fraction()
    if (kind, name) == ("listener", "http"):
        from support.http_source import HttpSubject

        return HttpSubject(folder)
    return name


def fraction() -> Any:
    """The example distribution's, which has to be installed."""
    from fractions import Fraction

    from perdure_fraction import FractionSerializer  # type: ignore[import-not-found]

    from perdure.conformance.plugin_subject import SerializerSubject

    return SerializerSubject(FractionSerializer, samples=[Fraction(-1, 3), [Fraction(2**90, 7), Fraction(0)]])


def arrow() -> Any:
    import numpy
    import pandas
    import polars
    import pyarrow

    from perdure.conformance.plugin_subject import SerializerSubject
    from perdure.serializers.arrow import ArrowSerializer

    columns = {"a": [1, 2, None], "b": ["x", None, "z"]}
    table = pyarrow.table(columns)
    arrays = [numpy.arange(6, dtype="int32").reshape(2, 3), numpy.array([1.5, -0.0]), numpy.zeros(0)]
    frames = [pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}), polars.DataFrame(columns)]
    return SerializerSubject(
        ArrowSerializer,
        samples=[table, table.schema, table.column("b"), *arrays, *frames, {"t": table, "n": arrays[0]}],
    )
