import tempfile

from perdure.conformance import StoreConformance


class TestSqlite(StoreConformance):
    url = f"sqlite://{tempfile.mkdtemp()}/work"
