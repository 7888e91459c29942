"""A reader that goes away early, as in `… --help | head -1`, is no error: nothing is printed about it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distsgd.cli.main import SUBCOMMANDS
from tests.unit.project.test_structure import ROOT

COMMANDS = [[], ["--version"], *([name, "--help"] for name in SUBCOMMANDS), ["train", "--dry-run"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_standard_output_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "distsgd", *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
