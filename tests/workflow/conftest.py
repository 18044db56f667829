"""One Ray cluster for each module of these tests, and what its tests share."""

from __future__ import annotations

from support.ray_fixtures import fresh, notes, storage

__all__ = ["fresh", "notes", "storage"]
