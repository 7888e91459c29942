"""Measurements against peers and against the machine's limits; each runs as `python -m benchmarks.NAME`."""
