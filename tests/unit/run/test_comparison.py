"""`distsgd compare`: what its table and its CSV hold, of whole, unfinished and damaged runs, and of hostile names."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsgd.cli.compare import Options, compared, write
from distsgd.core.errors import ConfigurationError, DistsgdError, RunFolderError
from distsgd.core.output import columns
from distsgd.plots.curves import CurveOptions, draw_curves
from distsgd.run.comparison import compare
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.config_file import to_toml
from distsgd.run.picture_material import read_run
from tests.unit.cli.test_main import run as distsgd

WHOLE: dict[str, Any] = {
    "status": "completed", "epochs": 2, "steps": 20, "train_loss": 0.25, "validation_loss": 0.5,
    "validation_accuracy": 0.75, "validation_error": 0.25, "test_accuracy": 0.625, "best_epoch": 1,
    "run": {"ranks": 2, "wall_seconds": 12.5, "examples_per_second": 1000.0},
}  # fmt: skip


def make(folder: Path, summary: Any = None, records: str = "", **options: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(resolved(replace(TrainConfig(), **options))))
    (folder / "metrics.jsonl").write_text(records)
    if summary is not None:
        (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    return str(folder)


def rows_of(*arguments: str, options: Options | None = None) -> list[dict[str, str]]:
    found = compare(arguments) if options is None else compared(options)
    return list(csv.DictReader(io.StringIO(found.csv())))


def test_options_that_differ_scores_and_times(tmp_path: Path) -> None:
    one = make(tmp_path / "one", WHOLE, learning_rate=0.5, hidden=(8, 4))
    two = make(tmp_path / "two", WHOLE | {"test_accuracy": 0.5, "validation_loss": None}, learning_rate=0.25)
    first, second = rows_of(one, two)
    assert first == {
        "run": "one", "status": "completed", "hidden": "8 4", "learning_rate": "0.5", "train_loss": "0.25",
        "validation_loss": "0.5", "validation_accuracy": "0.75", "validation_error": "0.25", "test_accuracy": "0.625",
        "best_epoch": "1", "steps": "20", "ranks": "2", "seconds": "12.5", "examples_per_second": "1000.0",
    }  # fmt: skip
    assert (second["learning_rate"], second["validation_loss"], second["test_accuracy"]) == ("0.25", "", "0.5")
    text = "\n".join(compare([one, two]).table(200))
    assert "error" not in text  # accuracy says the same
    assert re.search(r"^one +completed +8 4 +0.5 +0.2500 +0.5000 +0.7500 ", text, re.MULTILINE)


def test_what_follows_from_the_optimizer_is_left_out(tmp_path: Path) -> None:
    paths = [make(tmp_path / name, WHOLE, optimizer=name) for name in ("adam", "momentum")]
    assert [name for name in rows_of(*paths)[0] if "beta" in name or name == "momentum"] == []
    paths.append(make(tmp_path / "other", WHOLE, optimizer="adam", beta1=0.5))
    assert [row["beta1"] for row in rows_of(*paths)] == ["0.9", "", "0.5"]


def test_unfinished_and_damaged_runs(tmp_path: Path) -> None:
    losses = {1: 0.75, 2: 0.25, 3: 0.5}
    records: list[dict[str, Any]] = [{"step": step, "epoch": step, "validation_loss": losses[step]} for step in losses]
    records[1]["best"] = True
    lines = "".join(json.dumps(record) + "\n" for record in records)
    paths = [
        make(tmp_path / "whole", WHOLE), make(tmp_path / "going", None, lines), make(tmp_path / "begun"),
        make(tmp_path / "failed", {"status": "failed", "steps": 7, "error": "no"}), make(tmp_path / "cut", '{"sta'),
        make(tmp_path / "text", WHOLE, "nonsense\n"), make(tmp_path / "config", WHOLE), make(tmp_path / "list", "[1]"),
    ]  # fmt: skip
    (tmp_path / "config" / "config.toml").write_text("epochs = [")
    found = compare(paths)
    by_name = {row["run"]: row for row in csv.DictReader(io.StringIO(found.csv()))}
    assert {name: row["status"] for name, row in by_name.items()} == {
        "whole": "completed", "going": "unfinished", "begun": "unfinished", "failed": "failed", "cut": "damaged",
        "text": "damaged", "config": "damaged", "list": "damaged",
    }  # fmt: skip
    assert len(found.notes) == 4
    going = by_name["going"]
    assert (going["validation_loss"], going["best_epoch"], going["steps"]) == ("0.25", "2", "3")  # of the best so far
    assert by_name["config"]["validation_loss"] == "0.5"
    assert by_name["failed"]["steps"] == "7"


def test_sorting(tmp_path: Path) -> None:
    values = {"a": 0.5, "b": None, "c": 0.75, "d": 0.25}
    paths = tuple(
        make(tmp_path / name, WHOLE | {"test_accuracy": value, "test_own": value}, seed=seed)
        for seed, (name, value) in enumerate(values.items())
    )

    def order(sort: str | None, order: str = "best") -> str:
        return "".join(row["run"] for row in rows_of(options=Options(paths, sort, order)))

    assert order(None) == "abcd"
    assert order("test-accuracy") == "cadb"
    assert order("test_accuracy", "ascending") == "dacb"  # missing values last either way
    assert order("seed", "descending") == "dcba"
    assert order("test_own", "descending") == "cadb"
    for sort, way, words in (("test_own", "best", "add --order ascending or descending"),
                             ("test_accurcy", "best", "did you mean test_accuracy"),
                             (None, "ascending", "is for --sort")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=words):
            order(sort, way)


def test_the_table_fits_the_terminal(tmp_path: Path) -> None:
    names = ["a" * 90, "模型" * 30, "short"]
    paths = [make(tmp_path / name, WHOLE, seed=seed, hidden=(seed + 1,) * 40) for seed, name in enumerate(names)]
    for width in (40, 80, 200):
        lines = compare(paths).table(width)
        assert max(map(columns, lines)) <= width
        assert sum(line.startswith("short ") for line in lines) == sum(line.startswith("run ") for line in lines)
    assert "test_accuracy" in "\n".join(compare(paths).table(40))


def test_names_from_others_do_no_harm(tmp_path: Path) -> None:
    names = ["=1+2", "-3", "@x", "+y", "red\x1b[31m\nline", "plain"]
    metric = "validation_\x1b[2J=z"
    paths = [make(tmp_path / name, WHOLE | {metric: -1.5}, seed=seed) for seed, name in enumerate(names)]
    paths.append(make(tmp_path / "huge", '{"status": "completed", "steps": ' + "9" * 4000 + ', "train_loss": 1e999}'))
    found = compare(paths)
    assert all(line.isprintable() for line in found.table(80))
    rows = list(csv.reader(io.StringIO(found.csv())))
    assert [row[0] for row in rows[1:6]] == ["'=1+2", "'-3", "'@x", "'+y", "red\\x1b[31m\\nline"]
    assert "-1.5" in rows[1]  # a number stays one
    assert all(cell.isprintable() for row in rows for cell in row)


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["."]])
def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "run", WHOLE)
    with pytest.raises(DistsgdError, match=r"no run|expected the folders of runs") as caught:
        compared(Options(tuple([*arguments, "run"] if arguments else [])))
    assert caught.value.exit_status == 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    one, two = make(tmp_path / "one", WHOLE), make(tmp_path / "two", "{", seed=1)
    assert distsgd(monkeypatch, "compare", one, two, "--sort", "test_accuracy") == 0
    done = capsys.readouterr()
    assert done.out.startswith("run  status")
    assert done.err.startswith(f"warning: {tmp_path / 'two' / 'summary.json'} is no summary")
    assert distsgd(monkeypatch, "compare", one, "--csv", "-") == 0
    assert capsys.readouterr().out.startswith("run,status,")
    assert distsgd(monkeypatch, "compare", one, two, "--csv", str(tmp_path / "x.csv")) == 0
    assert (tmp_path / "x.csv").read_text() == compare([one, two]).csv()
    with pytest.raises(RunFolderError, match="choose another file with --csv"):
        write("a\n", str(tmp_path / "no" / "x.csv"))


def test_thirty_runs_in_a_picture(tmp_path: Path) -> None:
    """The seven best have a colour and a line of the legend each; the others share a line."""
    pytest.importorskip("matplotlib")
    runs = []
    for place in range(30):
        loss = 1.0 + (place * 7 % 30)
        record = {"step": 5, "epoch": 1, "train_loss": 1.0, "validation_loss": loss, "best": True}
        runs.append(read_run(Path(make(tmp_path / f"run{place}", None, json.dumps(record) + "\n", seed=place))))
    figure = draw_curves(runs, CurveOptions())
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    best = sorted(range(30), key=lambda place: place * 7 % 30)[:7]
    assert entries == [*(f"run{place}: seed {place}" for place in best), "23 more runs, worse than these"]
    assert len({handle.get_color() for handle in figure.legends[0].get_lines()}) == 8
