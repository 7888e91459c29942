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
    defaults = {"validation_fraction": 0.1 if validation is None else 0.0, "early_stopping": "epochs"}
    model = options.pop("model")
    return distsgd.fit(model, train, validation=validation, test=test, **{**defaults, **options})


def entry(result: Any) -> dict[str, Any]:
    """What is recorded of a training, on rank 0."""
    found = adapter.contents(result)
    return {
        **{name: recording.of_arrays(found[name]) for name in ("parameters", "state")},
        "metrics": recording.of_records(found["metrics"]),
        "summary": recording.of_summary(found["summary"]),
    }
