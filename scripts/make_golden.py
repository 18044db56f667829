"""Write the golden files of a release: ``python scripts/make_golden.py 0.1.0``. Files that exist stay as they are."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_golden.py VERSION")
    tests = Path(__file__).parent.parent / "tests" / "values" / "test_golden.py"
    module = runpy.run_path(str(tests), run_name="golden")
    module["write"](module["GOLDEN"] / sys.argv[1])
