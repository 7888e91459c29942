"""Every name of a loss, a metric and so on is in `distsgd train --help`; pages say what losses and metrics are."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import pytest

from distsgd.cli.command_line import Finished, TrainOptions, parse_arguments
from distsgd.core.options import options_of
from distsgd.data.named.datasets import DATASETS
from distsgd.nn.initializers import INITIALIZERS
from distsgd.nn.layers import ACTIVATIONS
from distsgd.nn.losses import LOSSES
from distsgd.nn.models import MODELS
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import SCHEDULES
from distsgd.training.metrics import METRICS

DOCS = Path(__file__).parents[3] / "docs"
REGISTRIES: dict[str, Collection[str]] = {
    "dataset": DATASETS,
    "model": MODELS,
    "activation": ACTIVATIONS,
    "weight_initializer": INITIALIZERS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "metric": METRICS,
}


@pytest.mark.parametrize("option", REGISTRIES)
def test_help_of_an_option_has_all_names(option: str) -> None:
    words = re.findall(r"[\w-]+", options_of(TrainOptions)[option].text)
    assert sorted(set(REGISTRIES[option]) - set(words)) == []


def test_a_user_reads_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(Finished):
        parse_arguments(TrainOptions, ["--help"], "distsgd train")
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert sorted({*LOSSES, *METRICS} - words) == []


@pytest.mark.parametrize(
    ("page", "heading", "names"), [("models.md", "Losses", LOSSES), ("conventions.md", "Metrics", METRICS)]
)
def test_a_page_says_what_each_one_is(page: str, heading: str, names: Collection[str]) -> None:
    """A row of the table below the heading has the name, and a cell with a sentence or formula."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r" (?<!\\)\| ", row[2:]) for row in section.splitlines() if row.startswith("| `")]
    found = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(found) == sorted(names)
    column = {"Losses": 1, "Metrics": 2}[heading]
    assert [row[0] for row in rows if len(row[column]) < 10] == []
