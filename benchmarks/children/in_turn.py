"""Runs commands one after the other, each whatever became of those before it."""

from __future__ import annotations

import subprocess

from benchmarks.children.protocol import settings

for command in settings()["commands"]:
    subprocess.run(command, check=False)
