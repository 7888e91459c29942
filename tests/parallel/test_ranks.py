"""What a script under mpirun asks about its ranks: distsgd.rank, size and is_root."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.parallel.launch import run_command

PROGRAM = """
from pathlib import Path

import numpy as np

import distsgd

x, y = np.eye(4, dtype=np.float32), np.arange(4)
rank = distsgd.rank()  # before fit, which uses the same communicator
result = distsgd.fit("softmax", (x, y), epochs=1, batch_size=4, validation_fraction=0)
text = f"{rank} {distsgd.size()} {distsgd.is_root()} {result.summary['parameters_sha256']}"
Path(f"said-{rank}").write_text(text)  # standard output would mix what ranks print at the same time
"""


def test_ranks_under_mpirun(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_command(3, [sys.executable, "program.py"], tmp_path)
    assert done.status == 0, done.err
    lines = sorted(path.read_text().split() for path in tmp_path.glob("said-*"))
    assert [line[:3] for line in lines] == [["0", "3", "True"], ["1", "3", "False"], ["2", "3", "False"]]
    assert len({line[3] for line in lines}) == 1
