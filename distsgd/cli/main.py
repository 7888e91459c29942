"""usage: [mpirun -n R] distsgd SUBCOMMAND [--option value …]

Train on any number of MPI ranks, with the same bits on each number of them.

  train       train a model on all ranks of an MPI job, or in this process alone
  launch      start training with mpirun, supervise it, restart after failures
  evaluate    score a trained model on a data set
  predict     predict with a trained model
  data        print what is in a data file, and the command that trains on it
  plot        draw pictures of a run, or of several
  compare     print a table of runs: options, scores and times
  doctor      print what this machine and this MPI are, and what is wrong
  completion  print a script that completes these commands in bash or zsh

distsgd SUBCOMMAND --help lists its options. python -m distsgd SUBCOMMAND is the
same command.
"""

from __future__ import annotations

import sys
from importlib import import_module

from distsgd.cli.commands import launcher_rank
from distsgd.core.components import suggestion, wrong_name
from distsgd.core.output import say, say_lines, status_after_output
from distsgd.core.processes import open_closed_streams
from distsgd.core.version import __version__

SUBCOMMANDS = ("train", "launch", "evaluate", "predict", "data", "plot", "compare", "doctor", "completion")


def main() -> int:
    """The command; returns the exit status."""
    open_closed_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in SUBCOMMANDS:
        del sys.argv[1]
        return status_after_output(int(import_module(f"distsgd.cli.{name}").main()))
    known = name in ("-h", "--help", "--version")
    if launcher_rank() == 0 and known:
        say_lines(f"distsgd {__version__}" if name == "--version" else str(__doc__).rstrip())
    elif launcher_rank() == 0:
        say(f"distsgd: error: {_unknown(name)}", sys.stderr)
    return status_after_output(0 if known else 2)


def _unknown(name: str) -> str:
    """What to say where the first word is no subcommand."""
    near = suggestion(name, ("--help", "--version"))
    if near or not name.startswith("-"):
        return f"{wrong_name('subcommand', name, SUBCOMMANDS)}{near}"
    return f"expected a subcommand before {name}, as in distsgd train {name} …; distsgd --help lists them"
