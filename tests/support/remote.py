"""What the tests of the durable core on real servers share."""

from __future__ import annotations

import servers

KINDS = {
    "s3": lambda: servers.Ministack(),
    "gs": lambda: servers.FakeGcs(),
    "redis": lambda: servers.Redis(),
}
LEASE = 3.0
ENVIRONMENT: dict[str, str | None] = {"PERDURE_TRUST": "all"}
"""For clusters and drivers: functions and values of these tests are pickled."""
