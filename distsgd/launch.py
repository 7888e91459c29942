"""python -m distsgd.launch -n 4 -- OPTIONS: training under mpirun that is watched, restarted and cleaned up after."""

from __future__ import annotations

import sys

from distsgd.cli.launch import main

if __name__ == "__main__":
    sys.exit(main())
