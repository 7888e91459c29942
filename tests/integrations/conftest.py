"""What tests beside frameworks share: the fixtures that run a page."""

from __future__ import annotations

from tests.parallel.test_documentation import data, reader

__all__ = ["data", "reader"]
