"""A plugin for pytest: a line of JSON for each test that starts, and one for what became of it, while tests run.

JUnit's XML is written when all is over, and so not where a test hangs for good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--lines", type=Path, help="the file of lines")


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers tell the process that writes
        config.pluginmanager.register(_Writer(config.getoption("--lines")))


class _Writer:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def _write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="running")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, seconds=report.duration, message=_message(report))

    def pytest_collectreport(self, report: Any) -> None:
        if not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, seconds=0.0, message=_message(report))


def _message(report: Any) -> str:
    """The reason of a skip, or the error's first line."""
    what = report.longrepr
    if isinstance(what, tuple):
        return str(what[2]).removeprefix("Skipped: ")
    crash = getattr(what, "reprcrash", None)
    return " ".join((str(what or "") if crash is None else crash.message).split())
