"""distsgd completion SHELL: prints the script with which a shell completes distsgd's subcommands and options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from distsgd.cli.commands import launcher_rank, report
from distsgd.core.errors import ConfigurationError, DistsgdError, pip_install
from distsgd.core.options import REQUIRED, Option, option, options_of
from distsgd.core.output import say_lines


@dataclass(frozen=True)
class Options:
    """Print a script that completes distsgd's subcommands, options, choices and paths with the Tab key.

    bash: add  eval "$(distsgd completion bash)"  to ~/.bashrc. zsh: add  eval "$(distsgd completion zsh)"  to ~/.zshrc,
    after compinit. Needs shtab (distsgd[completion]).
    """

    shell: str = option(REQUIRED, "The shell.", positional=True, choices=("bash", "zsh"))


def main() -> int:
    """The command; returns the exit status."""
    from distsgd.cli.command_line import parse_arguments

    try:
        script = script_of(parse_arguments(Options, sys.argv[1:], "distsgd completion").shell)
    except DistsgdError as error:
        if launcher_rank() == 0:
            report(error)
        return error.exit_status
    if launcher_rank() == 0:
        say_lines(script)
    return 0


def script_of(shell: str) -> str:
    """The script for this shell. Raises ConfigurationError where shtab isn't installed."""
    if find_spec("shtab") is None:
        raise ConfigurationError(
            f"completion: the script is made by shtab, which is not installed; {pip_install('completion')}"
        )
    shtab = import_module("shtab")
    return str(shtab.complete(command_parser(), shell)).rstrip()


def command_parser() -> argparse.ArgumentParser:
    """One parser of the command with all its subcommands."""
    from distsgd.cli.command_line import TrainOptions, add_options
    from distsgd.cli.main import SUBCOMMANDS

    parser = argparse.ArgumentParser("distsgd", description="Train on any number of MPI ranks.")
    subcommands, words = parser.add_subparsers(), _words()
    for name in SUBCOMMANDS:
        kind = TrainOptions if name == "train" else import_module(f"distsgd.cli.{name}").Options
        about = " ".join(str(kind.__doc__).split())
        one = subcommands.add_parser(name, help=about.partition(". ")[0], description=about, add_help=False)
        for option_name, action in add_options(one, kind).items():
            _complete(action, options_of(kind)[option_name], words)
    return parser


def _words() -> Mapping[str, Iterable[str]]:
    """The words that an option without declared choices may have, by its name; most take others, too."""
    from distsgd.data.named.datasets import DATASETS
    from distsgd.nn.initializers import INITIALIZERS
    from distsgd.nn.layers import ACTIVATIONS
    from distsgd.nn.models import MODELS
    from distsgd.optim.registry import OPTIMIZERS
    from distsgd.optim.schedules import SCHEDULES
    from distsgd.training.metrics import METRICS

    return {
        "dataset": DATASETS, "model": MODELS, "activation": ACTIVATIONS, "output_activation": ("linear", "sigmoid"),
        "weight_initializer": INITIALIZERS, "bias_initializer": INITIALIZERS, "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES, "metric": METRICS, "resume": ("auto", "never"), "batch_size": ("full",),
        "device": ("auto", "cpu", "gpu"), "split": ("test", "validation", "train"), "augment": ("crop", "flip"),
        "max_time": ("auto", "never"), "validate_every": ("1epoch",), "checkpoint_every": ("1epoch",),
        "penalize": ("weights",),
    }  # fmt: skip


def _complete(action: Any, declared: Option, words: Mapping[str, Iterable[str]]) -> None:
    """Gives argparse's object of an option what shtab reads: `choices`, or `complete` with a shell's own functions."""
    known = list(declared.choices or words.get(declared.name, ()))
    if declared.path and known:
        # shtab has bash quote what a function completes, and end folders with /, only where its name contains _file
        listed, function = " ".join(known), f"_distsgd_file_{declared.name}"
        bash = f'compgen -W \'{listed}\' -- "$1"; compgen -f -- "$1"'
        zsh = f"_alternative 'names:name:({listed})' 'files:file:_files'"
        preamble = {"bash": f"{function}() {{ {bash}; }}", "zsh": f"{function}() {{ {zsh} }}"}
        action.complete = {"bash": function, "zsh": function, "preamble": preamble}
    elif declared.path:
        action.complete = import_module("shtab").FILE
    elif known:
        action.choices = known
