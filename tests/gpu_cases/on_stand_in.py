"""`python -m distsgd.train` on a machine whose only GPU is the stand-in for one."""

from __future__ import annotations

import sys

from distsgd.core import runtime

runtime.prepare_alone()

from distsgd.cli.train import main  # noqa: E402
from tests.strict_device import StrictModule, strict_device  # noqa: E402

if __name__ == "__main__":
    with strict_device(StrictModule(), own_kernels=True):
        sys.exit(main())
