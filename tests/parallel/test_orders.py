"""Orders by blocks, draws, folds and groups: the same bits on one to four ranks, all in one start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.parallel.launch import run_command
from tests.parallel.order_ranks import ORDERS


def test_any_number_of_ranks_has_the_same_bits(tmp_path: Path) -> None:
    program = Path(__file__).with_name("order_ranks.py")
    done = run_command(4, [sys.executable, str(program)], tmp_path)
    assert done.status == 0, done.text
    reported = [json.loads(line) for line in done.out.splitlines()]
    assert len(reported) == 4
    for name in ORDERS:
        assert len({one for found in reported for one in found[name]}) == 1, name
    assert len({reported[0][name][0] for name in ORDERS}) == len(ORDERS)
