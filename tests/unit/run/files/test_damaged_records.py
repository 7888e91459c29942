"""A flipped bit or a missing line in metrics.jsonl is noticed, reported and kept aside, never cut silently."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import RunFolderError
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import encode
from distsgd.run.picture_material import read_records

LINES = 6


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    folder.cut_metrics(0)
    for step in range(1, LINES + 1):
        folder.add_metrics({"step": step, "epoch": 0, "loss": 1 / step, "run": {"seconds": step / 7}})
    return folder


def steps(folder: RunFolder) -> list[int]:
    return [record["step"] for record in folder.read_metrics()]


def kept_aside(folder: RunFolder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.path.glob("metrics.jsonl.damaged-*"))]


def test_a_checksum_is_that_of_the_line_before_it(folder: RunFolder) -> None:
    """As documented, by other means than the module's own."""
    for number, line in enumerate(folder.metrics.read_bytes().splitlines(), 1):
        record = json.loads(line)
        crc = record["run"]["crc"]
        assert record["run"]["line"] == number
        assert line.endswith(f'"crc": "{crc}"}}}}'.encode())
        assert zlib.crc32(line[: line.rindex(crc.encode())]) == int(crc, 16)


def test_what_equal_runs_have_in_common_is_unchanged() -> None:
    line = json.loads(encode({"step": 1, "best": True, "run": {"seconds": 0.5}}, 3))
    assert list(line) == ["step", "best", "run"]
    assert line["run"].pop("crc") is not None
    assert line == {"step": 1, "best": True, "run": {"seconds": 0.5, "line": 3}}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.long)])
def test_every_flipped_bit_is_noticed_reported_and_kept_aside(every: int, folder: RunFolder) -> None:
    """But for one in the last line's end, which leaves half a line, as a power cut does: it is reported, too."""
    data = folder.metrics.read_bytes()
    for position in range((len(data) - 1) % every, len(data), every):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        folder.metrics.write_bytes(damaged)
        text = folder.cut_metrics(LINES)
        if position == len(data) - 1:
            assert "cut short" in text
            assert steps(folder) == list(range(1, LINES))
            continue
        assert "is damaged: line " in text, (position, text)
        assert kept_aside(folder) == [damaged]
        lost = data.count(b"\n", 0, position) + 1  # a flipped line end joins two lines
        expected = [step for step in range(1, LINES + 1) if step not in (lost, lost + (data[position] == 10))]
        assert steps(folder) == expected, position
        assert folder.cut_metrics(LINES) == "", "what is kept is whole"
        folder.path.joinpath("metrics.jsonl.damaged-1").unlink()


@pytest.mark.parametrize(
    ("order", "words", "left"),
    [
        ([2, 3, 4, 5, 6], "1 line before line 1 is missing", [2, 3, 4, 5, 6]),
        ([1, 2, 5, 6], "2 lines before line 3 are missing", [1, 2, 5, 6]),
        ([1, 2, 3, 4], "2 lines at the end, of 6 are missing", [1, 2, 3, 4]),
        ([], "6 lines at the end, of 6 are missing", []),
        ([1, 2, 2, 3, 4, 5, 6], "line 3 is out of its place or there twice", [1, 2, 3, 4, 5, 6]),
        ([1, 3, 2, 4, 5, 6], "line 3 is out of its place or there twice", [1, 2, 3, 4, 5, 6]),
        ([1, 6], "4 lines before line 2 are missing", [1, 6]),
    ],
)
def test_missing_swapped_and_doubled_lines_are_noticed(
    folder: RunFolder, order: list[int], words: str, left: list[int]
) -> None:
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    damaged = b"".join(lines[number - 1] for number in order)
    folder.metrics.write_bytes(damaged)
    text = folder.cut_metrics(LINES, expected=LINES)
    assert words in text
    assert "\n" not in text
    assert "kept as metrics.jsonl.damaged-1" in text
    assert kept_aside(folder) == [damaged]
    assert steps(folder) == left
    folder.add_metrics({"step": 7, "run": {}})
    assert folder.cut_metrics(7, len(left) + 1) == ""


def test_a_file_that_is_gone_is_reported(folder: RunFolder) -> None:
    folder.metrics.unlink()
    assert "6 lines at the end, of 6 are missing; there was no file" in folder.cut_metrics(LINES, LINES)
    assert kept_aside(folder) == []


def test_a_second_damage_takes_the_next_name(folder: RunFolder) -> None:
    for number in (1, 2):
        with folder.metrics.open("ab") as file:
            file.write(b"damage\n")
        assert f"damaged-{number}" in folder.cut_metrics(LINES)
    assert len(kept_aside(folder)) == 2


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_reported_and_repaired(folder: RunFolder, cut: int) -> None:
    whole = folder.metrics.read_bytes()
    folder.metrics.write_bytes(whole[: -1 - cut])
    text = folder.cut_metrics(LINES)
    assert "the last line of" in text
    assert "cut short" in text
    assert kept_aside(folder) == []
    assert steps(folder) == [1, 2, 3, 4, 5]


def test_what_is_beyond_the_checkpoint_is_no_damage(folder: RunFolder) -> None:
    before = folder.metrics.read_bytes().splitlines(keepends=True)
    assert folder.cut_metrics(4, expected=4) == ""
    assert folder.metrics.read_bytes() == b"".join(before[:4]), "what stays keeps its bytes"
    folder.add_metrics({"step": 5, "epoch": 0, "loss": 1 / 5, "run": {"seconds": 5 / 7}})
    assert folder.metrics.read_bytes() == b"".join(before[:5]), "the same line again"


def test_records_of_an_older_version_are_read_and_continued(folder: RunFolder) -> None:
    old = b"".join(b'{"step": %d, "epoch": 0, "run": {"seconds": 0.5}}\n' % step for step in (1, 2, 3))
    folder.metrics.write_bytes(old)
    assert folder.cut_metrics(3) == ""
    folder.add_metrics({"step": 4, "epoch": 0, "run": {}})
    assert folder.metrics.read_bytes().startswith(old)
    assert folder.cut_metrics(4, 4) == ""
    folder.metrics.write_bytes(old[old.index(b"\n") + 1 :] + folder.metrics.read_bytes()[len(old) :])
    assert "1 line before line 3 is missing" in folder.cut_metrics(4)


def test_a_folder_that_was_removed_begins_its_records_anew(folder: RunFolder) -> None:
    written = folder.written_lines()
    shutil.rmtree(folder.path)
    assert folder.make_again()
    folder.add_metrics({"step": 7, "epoch": 0, "run": {}})
    assert (folder.lines_until(written), folder.lines_until(folder.written_lines())) == (0, 1)
    assert folder.cut_metrics(7, 1) == ""
    assert steps(folder) == [7]


def test_plot_refuses_changed_lines_and_reports_missing_ones(folder: RunFolder) -> None:
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    records, damage = read_records(folder.metrics)
    assert (len(records), damage) == (LINES, "")
    folder.metrics.write_bytes(b"".join([*lines[:2], lines[2].replace(b"0.333", b"0.233"), *lines[3:]]))
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: line 3 was changed; .*remove such lines"):
        read_records(folder.metrics)
    folder.metrics.write_bytes(b"".join(lines[:2] + lines[3:]))
    records, damage = read_records(folder.metrics)
    assert [record["step"] for record in records] == [1, 2, 4, 5, 6]
    assert "1 line before line 3 is missing" in damage


def fit(out: Path, **options: Any) -> distsgd.Result:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    given: dict[str, Any] = {"epochs": 4, "batch_size": 20, "log_every": 1, "out": str(out), **options}
    return distsgd.fit("softmax", (x, np.arange(60) % 3), **given)


def test_resume_notices_what_is_missing_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint counts the records; parameters don't depend on them."""
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "run", max_steps=5)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    again = fit(tmp_path / "run")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "warning: " in text
    assert "2 lines at the end, of 5 are missing; it is kept as metrics.jsonl.damaged-1" in text
    assert again.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    fit(tmp_path / "run")
    assert capsys.readouterr().err == ""


def test_equal_runs_have_equal_checkpoints_and_records(tmp_path: Path) -> None:
    """Whether or not they were stopped: what differs between them is under `run`."""
    fit(tmp_path / "whole")
    for steps in (3, 5, None):
        fit(tmp_path / "parts", max_steps=steps)
    found = []
    for name in ("whole", "parts"):
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        numbers = [record.pop("run")["line"] for record in records]
        assert numbers == list(range(1, len(records) + 1))
        found.append((records, (tmp_path / name / "checkpoints" / "last.safetensors").read_bytes()))
    assert found[0] == found[1]
