"""python -m distsgd SUBCOMMAND: train, launch, evaluate, predict, data, plot, compare and doctor."""

from __future__ import annotations

import sys

from distsgd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
