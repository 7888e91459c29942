"""python -m distsgd.predict RUN INPUT -o OUT.npz: what a trained model says of new examples."""

from __future__ import annotations

import sys

from distsgd.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
