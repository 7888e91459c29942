"""What pyproject.toml states: extras that messages name, lowest versions, and README as a package index shows it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from distsgd.core.errors import pip_install
from tests.unit.project.test_structure import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
NVIDIA = "nvidia-nccl"
"""Its lowest version is CuPy's to say."""


def texts() -> dict[Path, str]:
    """All files that may name an extra to a user."""
    folders = [path for name in ("distsgd", "docs", "examples", "launch") for path in (ROOT / name).rglob("*")]
    found = [path for path in folders if path.suffix in {".py", ".md", ".sh", ".sbatch", ".toml", ".yaml"}]
    return {path: path.read_text(encoding="utf-8") for path in [*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]}


def test_extras_that_are_named_exist() -> None:
    named = {
        extra.strip()
        for text in texts().values()
        for match in re.findall(r"(?:distsgd|install (?:-e )?'?\.)\\?\[([a-z0-9, ]+)\\?\]|pip_install\('(\w+)'\)", text)
        for extra in "".join(match).split(",")
    }
    assert {"mpich", "plot", "download", "cuda13"} <= named
    assert named <= set(EXTRAS)


def test_commands_install_from_the_checkout() -> None:
    """No index of packages has distsgd; by its name pip finds extras alone, where distsgd is installed."""
    for path, text in texts().items():
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            assert not re.search(r"pip install .*\bdistsgd\b", block), path


def test_one_function_words_how_to_install() -> None:
    wording = [
        path.relative_to(ROOT).as_posix()
        for path, text in texts().items()
        if "distsgd" in path.relative_to(ROOT).parts
        and path.suffix == ".py"
        and re.search(r"pip install|\} install", text)
    ]
    assert wording == ["distsgd/core/errors.py"]


def test_how_to_install_with_pip_beside_python_and_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "my environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    pip = python.with_name("pip")
    pip.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", os.pathsep.join([str(python.parent), os.environ["PATH"]]))
    assert pip_install("plot") == "pip install 'distsgd[plot]'"
    pip.unlink()
    words = shlex.split(pip_install("plot"))
    assert words == [str(python), "-m", "pip", "install", "distsgd[plot]"]


def test_how_to_install_where_distsgd_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert shlex.split(pip_install("plot"))[-3:] == ["install", "-e", f"{ROOT}[plot]"]


def test_every_dependency_has_a_lowest_version() -> None:
    stated = [one for group in [PROJECT["project"]["dependencies"], *EXTRAS.values()] for one in group]
    assert not [one for one in stated if not one.startswith(("distsgd[", NVIDIA)) and ">=" not in one.partition(";")[0]]


def long_description() -> str:
    """README.md after the substitutions that the build makes, which are Python's regular expressions."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    return text


def test_the_long_description_has_no_link_into_the_checkout() -> None:
    text = long_description()
    targets = re.findall(
        r"\]\(([^)\s]+)\)|<(?:a|img)[^>]+(?:href|src)=\"([^\"]+)\"|^\[[^\]]+\]: (\S+)", text, re.MULTILINE
    )
    assert not [one for one in map("".join, targets) if not one.startswith(("https://", "http://", "#"))]
    assert "docs/" in text, "the files' names stay"
    assert "```" in text
