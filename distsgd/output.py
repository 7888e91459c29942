"""Printing that a run survives: a closed pipe or a full disk behind stdout doesn't end training."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line at once, to stdout by default. Where that is no longer to be had, nothing is printed any more."""
    stream = sys.stdout if file is None else file
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # ValueError where the stream is closed
        silence(stream)


def silence(stream: TextIO) -> None:
    """Sends what is still to come, Python's own last flush too, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # a stream without a descriptor has no last flush that could fail
