"""python -m distsgd.doctor: what this machine and this MPI are, what is wrong with them, and the remedy."""

from __future__ import annotations

import sys

from distsgd.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main())
