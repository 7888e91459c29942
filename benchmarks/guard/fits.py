"""Trains with `distsgd.fit`, and what is recorded of it."""

from __future__ import annotations

from typing import Any

import distsgd
from benchmarks.guard import adapter, configurations, recording


def arrays(name: str | None) -> Any:
    """The data set of this name."""
    return None if name is None else configurations.data(name)


def fit(options: dict[str, Any]) -> Any:
    """distsgd.fit, with the names of data and models resolved."""
    options = configurations.own_objects(adapter.options(options))
    train, validation, test = (arrays(options.pop(name, None)) for name in ("data", "validation", "test"))
    return distsgd.fit(options.pop("model"), train, validation, test=test, **options)


def entry(result: Any) -> dict[str, Any]:
    """What is recorded of a training, on rank 0."""
    return {
        "parameters": recording.of_arrays(result.params),
        "state": recording.of_arrays(result.state),
        "metrics": recording.of_records(result.history),
        "summary": recording.of_summary(result.summary),
    }
