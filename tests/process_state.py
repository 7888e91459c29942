"""What a process has set for itself: the state that a library borrows, and has to leave as it was."""

from __future__ import annotations

import faulthandler
import gc
import locale
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from distsgd.core.processes import contents


def process_state() -> dict[str, Any]:
    """All that is compared, by name."""
    mask = os.umask(0)
    os.umask(mask)
    lines = dict(line.split(":", 1) for line in contents("/proc/self/status").splitlines() if ":" in line)
    gc.collect()
    state = {
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "faulthandler": faulthandler.is_enabled(),
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "signals": [lines.get(name) for name in ("SigCgt", "SigIgn", "SigBlk")],
        "NumPy": (np.geterr(), np.geterrcall(), np.get_printoptions(), pickle.dumps(np.random.get_state())),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "folder and umask": (os.getcwd(), mask),
        "locale": locale.setlocale(locale.LC_ALL),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "path": (list(sys.path), list(sys.argv)),
        "BLAS": [(one["filepath"], one["num_threads"]) for one in threadpool_info()],
        "random": random.getstate(),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(_open_files()),
    }
    if find_spec("matplotlib") is not None:
        import matplotlib

        state["matplotlib"] = (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False))
    return state


def _open_files() -> list[str]:
    found = []
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in before if before[name] != after[name]]
