"""The files that are generated from the options' declaration, and what the help says."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from distsgd.cli import doctor, evaluate, launch, plot, predict
from distsgd.cli.command_line import Finished, TrainOptions, parse_arguments
from distsgd.cli.main import SUBCOMMANDS
from distsgd.core.options import options_of
from tests import generated_options


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
    found = {name: find_spec(f"distsgd.{name}") for name in others - {"SUBCOMMAND`"}}
    assert [name for name, one in found.items() if one and one.submodule_search_locations is None] == []
    assert modules | others >= set(SUBCOMMANDS) - {"train"}


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
