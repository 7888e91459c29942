"""python -m distsgd.train: train a model on all ranks of an MPI job, or in this process alone."""

from __future__ import annotations

import sys

from distsgd.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
