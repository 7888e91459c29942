"""The version of distsgd, which checkpoints, summaries and `--version` report."""

__version__ = "0.1.0"
