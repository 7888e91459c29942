"""python -m distsgd.plot RUN …: pictures of a run, or of several runs over each other."""

from __future__ import annotations

import sys

from distsgd.cli.plot import main

if __name__ == "__main__":
    sys.exit(main())
