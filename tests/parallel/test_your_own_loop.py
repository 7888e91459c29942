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


def test_both_learn_and_ranks_agree(folder: Path) -> None:
    alone = run_command(None, [sys.executable, "before.py"], folder)
    assert alone.status == 0, alone.text
    ends = [alone.out.splitlines()[-1]]
    with (folder / "after.py").open("a") as file:
        file.write(
            "import hashlib\narrays = b''.join(array.tobytes() for array in net.params.values())\n"
            "if distsgd.is_root():\n    print(distsgd.size(), hashlib.sha256(arrays).hexdigest(), loss)\n"
        )
    found = set()
    for ranks in (None, 2, 4):
        done = run_command(ranks, [sys.executable, "after.py"], folder)
        assert (done.status, done.err) == (0, ""), done.text
        size, _, result = done.out.splitlines()[-1].partition(" ")
        assert size == str(ranks or 1)
        found.add(result)
        ends.append(done.out.splitlines()[-2])
    assert len(found) == 1
    assert all(float(line.split()[-1]) > 0.85 for line in ends), ends


def test_it_is_killed_and_resumes_with_the_same_bits(folder: Path) -> None:
    whole = run_command(None, [sys.executable, "resumed.py"], folder)
    assert whole.status == 0, whole.text
    shutil.rmtree(folder / "runs")
    text = (folder / "resumed.py").read_text()
    dies = "        if dp.steps == 37:\n            import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    (folder / "dies.py").write_text(text.replace("        if dp.steps % 10", dies + "        if dp.steps % 10"))
    died = run_command(2, [sys.executable, "dies.py"], folder)
    assert died.status != 0
    names = sorted(path.name for path in (folder / "runs" / "spirals" / "checkpoints").iterdir())
    assert names == ["last.safetensors", "step-10.safetensors", "step-20.safetensors", "step-30.safetensors"]
    done = run_command(4, [sys.executable, "resumed.py"], folder)
    assert (done.status, done.out) == (0, whole.out), done.text
