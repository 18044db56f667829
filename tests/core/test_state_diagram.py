from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_diagram_in_the_docs_is_what_the_table_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "state_diagram.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
