"""One process of a run is killed, and the run ends as if none had been: a few of the benchmark's cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import faults
from distsgd.core.processes import can_look
from tests.cases import first_of
from tests.parallel.launch import find_mpirun

# Every moment with rank 0, the launcher and another rank; each of the other faults; and rank 0 and another rank under a
# plain mpirun, beside processes that keep the cores busy.
NUMBERS = [*range(12), *range(faults.KILLS, faults.FIRST_PLAIN, 3), faults.FIRST_PLAIN, faults.FIRST_PLAIN + 5]
LAUNCHER = next(number for number in NUMBERS if faults.case(number).who == "the launcher")
"""What no other test kills."""


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> str:
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    if not can_look():
        pytest.skip("processes are looked up in /proc")
    return faults.undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    "number",
    first_of(sorted(NUMBERS, key=lambda number: number != LAUNCHER)),
    ids=lambda number: f"{number}-{faults.case(number).how}",
)
def test_the_run_ends_with_the_same_bits_and_leaves_nothing(number: int, tmp_path: Path, wanted: str) -> None:
    found = faults.disturb(faults.case(number), tmp_path, wanted)
    assert found["problems"] == [], found


def test_the_cases_cover_everything() -> None:
    cases = [faults.case(number) for number in range(faults.KILLS)]
    covered = {(case.moment, case.who) for case in cases}
    assert covered == {(moment, who) for moment in faults.MOMENTS for who in ("rank 0", "another rank", "the launcher")}
    assert {case.how for case in cases} == {"SIGKILL"}
    assert {faults.case(number).moment for number in NUMBERS} == set(faults.MOMENTS)
    assert {faults.case(number).who for number in NUMBERS[-2:]} == {"rank 0", "another rank"}
    assert all(faults.case(number).plain == (number >= faults.FIRST_PLAIN) for number in range(faults.RUNS))
    assert {faults.case(number).how for number in NUMBERS} == {"SIGKILL", *faults.OTHER_FAULTS}
