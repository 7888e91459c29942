"""`distsgd SUBCOMMAND` and `python -m distsgd SUBCOMMAND` start what `python -m distsgd.SUBCOMMAND` does."""

from __future__ import annotations

import sys
import tomllib
from importlib import import_module

import pytest

import distsgd
from distsgd.cli import main as command
from tests.unit.project.test_structure import ENTRIES, ROOT


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["distsgd", *arguments])
    return command.main()


def test_the_script_of_the_package_is_this_command() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = document["project"]["scripts"]["distsgd"].partition(":")
    assert getattr(import_module(module), function) is command.main


def test_help_lists_every_subcommand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert run(monkeypatch, *arguments) == 0
        printed = capsys.readouterr().out
        assert all(f"\n  {name} " in printed for name in ENTRIES if name != "__main__")
        assert max(map(len, printed.splitlines())) <= 80
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"distsgd {distsgd.__version__}\n"


def test_a_subcommand_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("distsgd.cli.predict.main", lambda: seen.append(sys.argv[1:]) or 75)
    assert run(monkeypatch, "predict", "runs/a", "-o", "b") == 75
    assert seen == [["runs/a", "-o", "b"]]


def test_no_subcommand_of_that_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "trian") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distsgd: error: subcommand: expected one of train, launch, ")
    assert line.endswith(", got 'trian'; did you mean train?")
    for word, near in {"fit": "train", "help": "--help", "version": "--version", "-V": "--version"}.items():
        assert run(monkeypatch, word, "train") == 2
        assert capsys.readouterr().err.endswith(f"got {word!r}; did you mean {near}?\n")
    assert run(monkeypatch, "--epochs", "3") == 2
    assert "expected a subcommand before --epochs, as in distsgd train --epochs …" in capsys.readouterr().err
    monkeypatch.setenv("PMI_RANK", "1")
    assert run(monkeypatch, "trian") == 2
    assert capsys.readouterr() == ("", "")
