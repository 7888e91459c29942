"""What tests beside frameworks share: the fixtures that run a page."""

from __future__ import annotations

from tests.parallel.test_documentation import data, reader

__all__ = ["data", "reader"]

# Programs that mpirun starts and their models: they hold no tests, and they import frameworks that may be missing.
collect_ignore_glob = ["ranks.py", "*/models.py", "*/randoms.py", "*_on_ranks.py"]
