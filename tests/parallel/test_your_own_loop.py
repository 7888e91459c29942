"""docs/your-own-loop.md: how much of a course's loop changes, and what comes of it on 1, 2 and 4 ranks."""

from __future__ import annotations

import difflib
import shutil
import sys
from pathlib import Path

import pytest

from tests.parallel.launch import run_command
from tests.parallel.pages import PAGES, blocks_of

PAGE = "docs/your-own-loop.md"
MOST = 6


@pytest.fixture(scope="module")
def programs() -> dict[str, str]:
    """The page's files by name."""
    blocks = [block.text for block in blocks_of(PAGE, PAGES[PAGE].read_text(encoding="utf-8"))]
    return {text.split("\n")[0][2:]: text for text in blocks if text.startswith("# ") and ".py\n" in text}


@pytest.fixture
def folder(programs: dict[str, str], tmp_path: Path) -> Path:
    for name, text in programs.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_at_most_six_lines_are_written_anew(programs: dict[str, str]) -> None:
    before, after = (programs[name].splitlines()[1:] for name in ("before.py", "after.py"))
    written = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert 0 < len(written) <= MOST, written
    assert len(after) <= len(before)


def test_both_learn(folder: Path) -> None:
    ends = []
    for name in ("before.py", "after.py"):
        done = run_command(None, [sys.executable, name], folder)
        assert (done.status, done.err) == (0, ""), done.text
        ends.append(done.out.splitlines()[-1])
    assert all(float(line.split()[-1]) > 0.85 for line in ends), ends


@pytest.mark.long
def test_ranks_agree(folder: Path) -> None:
    text = (folder / "after.py").read_text().replace("epochs=200", "epochs=20")
    (folder / "short.py").write_text(
        f"{text}import hashlib\narrays = b''.join(array.tobytes() for array in net.params.values())\n"
        "if distsgd.is_root():\n    print(distsgd.size(), hashlib.sha256(arrays).hexdigest(), loss)\n"
    )
    found = set()
    for ranks in (None, 2, 3, 4):
        done = run_command(ranks, [sys.executable, "short.py"], folder)
        assert (done.status, done.err) == (0, ""), done.text
        size, _, result = done.out.splitlines()[-1].partition(" ")
        assert size == str(ranks or 1)
        found.add(result)
    assert len(found) == 1


def dies_at_step(folder: Path, step: int) -> None:
    """Writes dies.py: resumed.py, which is killed after a step."""
    text = (folder / "resumed.py").read_text()
    dies = f"        if dp.steps == {step}:\n            import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    (folder / "dies.py").write_text(text.replace("        if dp.steps % 10", dies + "        if dp.steps % 10"))


def test_it_is_killed_and_resumes_with_the_same_bits(folder: Path) -> None:
    whole = run_command(None, [sys.executable, "resumed.py"], folder)
    assert whole.status == 0, whole.text
    shutil.rmtree(folder / "runs")
    dies_at_step(folder, 37)
    died = run_command(2, [sys.executable, "dies.py"], folder)
    assert died.status != 0
    names = sorted(path.name for path in (folder / "runs" / "spirals" / "checkpoints").iterdir())
    assert names == ["last.safetensors", "step-10.safetensors", "step-20.safetensors", "step-30.safetensors"]
    done = run_command(None, [sys.executable, "resumed.py"], folder)
    assert (done.status, done.out) == (0, whole.out), done.text


@pytest.mark.long
def test_it_resumes_on_more_ranks(folder: Path) -> None:
    dies_at_step(folder, 13)
    for ranks in (None, 3):
        assert run_command(ranks, [sys.executable, "dies.py"], folder).status != 0
        dies_at_step(folder, 44)
    done = run_command(4, [sys.executable, "resumed.py"], folder)
    assert done.status == 0, done.text
    shutil.rmtree(folder / "runs")
    assert run_command(None, [sys.executable, "resumed.py"], folder).out == done.out
