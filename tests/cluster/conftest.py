"""SIGTERM ends these tests as Ctrl-C does, so that nothing of what they started is left."""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.default_int_handler)
