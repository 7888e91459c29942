"""The files that are generated from the options' declaration, and what a type checker says of `fit`'s keywords."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from distsgd.cli import doctor, evaluate, launch, plot, predict
from distsgd.cli.command_line import Finished, TrainOptions, parse_arguments
from distsgd.cli.main import SUBCOMMANDS
from distsgd.core.options import options_of
from tests import generated_options

USER = """
import numpy as np

import distsgd

x, y = np.zeros((10, 3)), np.zeros(10, np.int64)
distsgd.fit("mlp", (x, y), epochs=3, batch_size="full", hidden=[4, 5], loss="auto", learning_rate=1, max_time="4h30")
distsgd.fit("mlp", (x, y), epochz=3)  # unknown
distsgd.fit("mlp", (x, y), epochs="3")  # of another type
distsgd.fit("mlp", (x, y), loss="mse")  # no choice
distsgd.fit("mlp", (x, y), lr=0.1)
"""


def test_generated_files_are_those_of_the_declaration() -> None:
    for path, text in ((generated_options.KEYWORDS, generated_options.keywords()),
                       (generated_options.PAGE, generated_options.page()),
                       (generated_options.COMMANDS, generated_options.commands())):  # fmt: skip
        assert path.read_text(encoding="utf-8") == text, "run python -m tests.generated_options"


def test_each_command_of_the_page_exists() -> None:
    """`python -m` with a module that there is; what has no module is a subcommand of distsgd."""
    lines = generated_options.COMMANDS.read_text(encoding="utf-8").splitlines()
    usages = [line.strip("`").split() for line in lines if line.startswith(("`python -m", "`distsgd "))]
    modules = {words[2].removeprefix("distsgd.") for words in usages if words[0] == "python"}
    others = {words[1] for words in usages if words[0] == "distsgd"}
    assert [name for name in modules if find_spec(f"distsgd.{name}") is None] == []
    assert [name for name in others - {"SUBCOMMAND`"} if find_spec(f"distsgd.{name}") is not None] == []
    assert modules | others >= set(SUBCOMMANDS) - {"train"}


@pytest.mark.timeout(600)
def test_a_type_checker_sees_the_keywords(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "user.py")]  # with the cache of make check
    done = subprocess.run(command, cwd=generated_options.ROOT, capture_output=True, text=True)
    refused = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [int(line.split(":")[1]) for line in refused] == [8, 9, 10], done.stdout + done.stderr


DEFAULTS = {
    "decay_rate": "Default by schedule: 1 (inverse-time, inverse-sqrt).",
    "decay_epochs": "Default by schedule: 1 (inverse-time, inverse-sqrt, exponential), 10 (step).",
    "decay_factor": "Default by schedule: 0.1 (step), 0.95 (exponential).",
    "patience": "Default: 10 (epochs), 5000 (patience), 0 (none).",
}


@pytest.mark.parametrize(("name", "told"), DEFAULTS.items())
def test_help_says_defaults_that_depend_on_other_options(name: str, told: str) -> None:
    assert told in options_of(TrainOptions)[name].text


@pytest.mark.parametrize("kind", [TrainOptions, *(one.Options for one in (evaluate, predict, plot, launch, doctor))])
def test_help_names_options_as_the_command_line_does(kind: type) -> None:
    with_underscores = {name for name in options_of(TrainOptions) if "_" in name}
    for name, one in options_of(kind).items():
        assert not with_underscores & set(re.findall(r"\w+", one.text)), name


@pytest.mark.parametrize("module", [evaluate, predict, plot, launch, doctor, None])
def test_help_is_readable_at_80_columns(
    module: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    kind = TrainOptions if module is None else module.Options  # type: ignore[attr-defined]
    with pytest.raises(Finished):
        parse_arguments(kind, ["--help"], "python -m distsgd.a")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "--version" in printed
