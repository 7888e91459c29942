"""What a run has held out, in every way of splitting, is what evaluate scores; and what files are asked for then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import DataError, fit
from distsgd.cli.evaluate import evaluate
from distsgd.cli.train import train
from distsgd.core.errors import ConfigurationError
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.signals import Signals

N = 5000
"""More than are looked at of inputs in files."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 3)).round(3)
    columns = [*x.T.tolist(), x.argmax(axis=1).tolist(), rng.integers(0, 40, N).tolist(), (x[:, 0] ** 2 + 1).tolist()]
    path = tmp_path_factory.mktemp("held") / "t.csv"
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(["a,b,c,y,site,w", *rows]) + "\n")
    return path


def trained(*words: object) -> None:
    signals = Signals(as_guest=True)
    try:
        assert train(SerialCommunicator(), [*map(str, words), "--quiet"], signals) == 0
    finally:
        signals.give_back()


def scores(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate(SerialCommunicator(), [*map(str, words)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


WAYS = {
    "fraction": ["--validation-fraction", "0.2", "--split-seed", "3"],
    "last": ["--validation-last", "700"],
    "fold": ["--fold", "2/3"],
    "group": ["--group", "site"],
    "fold of groups": ["--group", "site", "--fold", "2/3"],
    "blocks": ["--shuffle-buffer", "40KB", "--order-block", "64"],
    "fold of blocks": ["--shuffle-buffer", "40KB", "--order-block", "64", "--fold", "2/3"],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_held_out_is_scored(way: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = tmp_path / "run", ["--weights", "w", "--model", "softmax", "--epochs", "1", "--batch-size", "500"]
    features = ["--x", "a", "b", "c"]
    trained("--dataset", table, *features, *options, *WAYS[way], "--out", run)
    summary = json.loads((run / "summary.json").read_text())
    for words in ([run], [run, "--dataset", table], [run, "--split", "validation"]):
        found = scores(capsys, *words)
        assert found["split"] == "validation"
        assert found["loss"] == summary["validation_loss"]
        assert found["accuracy"] == summary["validation_accuracy"]
    assert found["examples"] + scores(capsys, run, "--split", "train")["examples"] == N
    assert scores(capsys, run, "--split", "all")["examples"] == N

    rows = table.read_text().splitlines()
    (other := tmp_path / "other.csv").write_text("\n".join([*rows[:-1], rows[1]]) + "\n")
    assert scores(capsys, run, "--dataset", other)["split"] == "all"
    with pytest.raises(ConfigurationError, match="this run was trained on other data"):
        scores(capsys, run, "--dataset", other, "--split", "validation")
    assert (
        scores(capsys, run, "--weights", "", "--split", "all")["loss"] != scores(capsys, run, "--split", "all")["loss"]
    )


def test_groups_and_a_file_that_has_validation_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups of a program are known by the run's folder alone; and --fold holds out others than the file does."""
    rng = np.random.default_rng(1)
    x, path = rng.standard_normal((N, 3)), tmp_path / "d.npz"
    y, groups = x.argmax(axis=1), rng.integers(0, 40, N)
    np.savez(path, x_train=x, y_train=y, x_validation=x[:90], y_validation=y[:90])
    run = tmp_path / "run"
    found = fit("softmax", x, y, group=groups, fold="2/3", epochs=1, out=run)
    expected = found.summary["validation_loss"]
    assert scores(capsys, run, "--dataset", path, "--split", "validation")["loss"] == expected
    assert scores(capsys, run / "checkpoints" / "best.safetensors", "--dataset", path)["loss"] == expected
    (run / "validation_rows.npy").unlink()
    with pytest.raises(ConfigurationError, match=r"only its run folder says \(validation_rows.npy\)"):
        scores(capsys, run, "--dataset", path, "--split", "validation")
    with pytest.raises(ConfigurationError, match="was trained on arrays of a program; give --dataset PATH"):
        scores(capsys, run)

    given = fit("softmax", x, y, validation=(x[:90], y[:90]), epochs=1, out=tmp_path / "given")
    one = scores(capsys, tmp_path / "given", "--dataset", path)
    assert (one["split"], one["loss"]) == ("validation", given.summary["validation_loss"])


def test_what_is_asked_of_a_new_file(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What training asked for, but for what is given; '' is for no weights."""
    lines = [line.split(",") for line in table.read_text().splitlines()]
    (tmp_path / "less.csv").write_text("\n".join(",".join(line[:4]) for line in lines) + "\n")
    (tmp_path / "named.csv").write_text("\n".join(",".join(line) for line in lines).replace("site,w", "site,weights"))
    options = ["--x", "a,b,c", "--model", "softmax", "--epochs", "1", "--validation-fraction", "0"]
    for name, more in (("t", ["--weights", "w"]), ("named", [])):
        path = table if name == "t" else tmp_path / "named.csv"
        trained("--dataset", path, *options, *more, "--out", tmp_path / name)
    run, named = tmp_path / "t", tmp_path / "named"
    weighted = scores(capsys, run)
    assert scores(capsys, named)["loss"] == weighted["loss"]  # the column weights counts where no option says another
    plain = scores(capsys, run, "--weights", "")["loss"]
    assert plain == scores(capsys, named, "--weights", "")["loss"] != weighted["loss"]
    assert plain == scores(capsys, run, "--dataset", tmp_path / "less.csv", "--weights", "")["loss"]
    with pytest.raises(ConfigurationError, match="no column is named 'w'"):
        scores(capsys, run, "--dataset", tmp_path / "less.csv")
    with pytest.raises(ConfigurationError, match="x: the model takes the columns that it was trained on"):
        scores(capsys, run, "--x", "a,b,site")
    (tmp_path / "none.csv").write_text("a,b,y,w\n1,2,0,1\n")
    with pytest.raises(DataError, match="there is no c"):
        scores(capsys, run, "--dataset", tmp_path / "none.csv")


def test_an_axis_that_is_given_counts_also_if_it_is_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py")
    x = np.random.default_rng(0).standard_normal((4, 4))
    for name, array in (("turned", x.T), ("straight", x)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"], file["y"] = array, np.arange(4) % 2
    run = tmp_path / "run"
    options = ["--axis", "1", "--model", "softmax", "--epochs", "1", "--validation-fraction", "0"]
    trained("--dataset", tmp_path / "turned.h5", *options, "--out", run)
    straight = scores(capsys, run, "--dataset", tmp_path / "straight.h5", "--axis", "0")["loss"]
    assert straight == scores(capsys, run, "--split", "all")["loss"]


def test_damaged_rows_are_computed_again(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    trained("--dataset", table, "--model", "softmax", "--epochs", 1, "--weights", "w", "--x", "a,b,c", "--out", run)
    before, rows = scores(capsys, run), run / "validation_rows.npy"
    header = np.lib.format.magic(1, 0)
    promised = b"{'descr': '<i8', 'fortran_order': False, 'shape': (9000000000000,), }".ljust(117) + b"\n"
    for content in (b"", header, header + len(promised).to_bytes(2, "little") + promised):
        rows.write_bytes(content)
        assert scores(capsys, run) == before
