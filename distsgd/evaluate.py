"""python -m distsgd.evaluate RUN --dataset …: score a trained model, on one rank or many."""

from __future__ import annotations

import sys

from distsgd.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
