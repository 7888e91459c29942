"""The check of a machine with a GPU: its rehearsal on the CPU, what it prints, and that nothing outlasts its limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import check_gpu, gpu_findings, side_by_side
from benchmarks.children.gpu_look import look
from benchmarks.processes import under_mpirun
from distsgd.core.device_options import PRECISIONS
from distsgd.core.processes import can_look, stat
from tests.unit.benchmarks.test_benchmarks import NOWHERE, ROOT, has_mpirun
from tests.waiting import LIMIT, wait_until

REHEARSAL = ("--device", "cpu", "--quick", "--torch-python", NOWHERE)


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.check_gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def of_device(device: str, out: Path, data_dir: Path | None = None) -> check_gpu.Check:
    return check_gpu.Check(device, True, out, data_dir, NOWHERE, ("two-layer",), 2)


@pytest.mark.long
@pytest.mark.skipif(not has_mpirun(), reason="there is no mpirun")
def test_rehearsal(tmp_path: Path) -> None:
    done = called(*REHEARSAL, "--workload", "two-layer", "--out", str(tmp_path), "--limit", str(LIMIT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout) < 12_000
    assert re.findall(r"^(\w+): right, ", done.stdout, re.MULTILINE) == list(check_gpu.PHASES)
    assert re.search(r"^float32: an update right .*, a sum right \d", done.stdout, re.MULTILINE)
    assert "device         auto is cpu" in done.stdout
    assert re.search(r"^0 passed, 0 failed, \d+ skipped\nskipped \d+×: .*CuPy", done.stdout, re.MULTILINE)
    assert "digits: one parameters_sha256 in 4 of 4 trainings\n" in done.stdout
    assert re.search(r"^## two-layer: .*\n\| \| examples/s .*\n\| distsgd, M=1 \| ", done.stdout, re.MULTILINE)
    assert re.search(r"^\| two-layer( \| [\d,]+){6} \|$", done.stdout, re.MULTILINE)  # the parts of a step
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(report) == list(check_gpu.PHASES)
    trained = report["same"]["data"]["trainings"]
    assert {one["run"]["ranks"] for one in trained.values()} == {1, 2}
    assert {one["parameters_sha256"] for one in trained.values()} == {trained["digits on the CPU"]["parameters_sha256"]}
    assert {path.name.split("-20")[0] for path in (tmp_path / "results").iterdir()} == {
        "gpu-two-layer",
        "gpu_where-two-layer",
    }


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    """`look` says why in one sentence, and nothing else is run."""
    done = called("--device", "gpu:7777", "--out", str(tmp_path), "--limit", str(LIMIT))
    assert done.returncode == 1
    assert re.search(r"^self checks: exit status 1 after .* s: device gpu:7777: ", done.stdout, re.MULTILINE)
    assert "look: NOT RIGHT, " in done.stdout
    assert "left out: tests, same, bench; mend look first\n" in done.stdout
    assert list(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))) == ["look"]


def test_looking_at_the_cpu() -> None:
    found = look("cpu")
    assert found["right"]
    assert [(one["precision"], one["right"], one["error"]) for one in found["checks"]] == [("float32", True, None)] * 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["warm"], "expected phases of look, tests, same, bench, got warm"),
        (["--limit", "5"], "--limit: expected at least 10 seconds, got 5"),
        (["--data-dir", "/nowhere"], "--data-dir: MNIST's .gz files are not in /nowhere"),
        (["--workload", "large"], "argument --workload: invalid choice: 'large'"),
    ],
)
def test_what_is_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        check_gpu.options(arguments)
    assert sentence in capsys.readouterr().err


def test_phases_share_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their weights, what is left over goes on, and the whole ends with the time that ending takes to spare."""
    given = []

    def phase(name: str, found: check_gpu.Found) -> None:
        def run(check: check_gpu.Check, until: float) -> check_gpu.Found:
            given.append((name, until))
            return found

        monkeypatch.setitem(check_gpu.PHASES, name, run)

    phase("tests", check_gpu.Found(False, ["3 failed"]))
    phase("same", check_gpu.Found(True, ["one"], go_on=False))
    phase("bench", check_gpu.Found(True, []))
    deadline = time.monotonic() + 1007.0
    assert not check_gpu.run_phases(of_device("cpu", tmp_path), ["tests", "same", "bench"], deadline)
    assert [name for name, _ in given] == ["tests", "same"]  # the digits didn't train: nothing is measured
    assert given[0][1] - (deadline - 1007) == pytest.approx(1000 * 170 / 440, rel=0.1)
    assert given[1][1] - (deadline - 1007) == pytest.approx(1000 * 90 / 270, rel=0.1)  # tests took no time
    assert "left out: bench; mend same first" in capsys.readouterr().out
    assert not check_gpu.run_phases(of_device("cpu", tmp_path), ["bench"], time.monotonic() + 12)
    assert capsys.readouterr().out.endswith("bench: left out, no time\n")
    assert check_gpu.run_phases(of_device("cpu", tmp_path), ["bench"], deadline)
    assert given[-1][1] == pytest.approx(deadline - 7)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_gpu.missing() == []

    def version(name: str) -> str:
        if name in ("tomli-w", "pytest-xdist"):
            raise check_gpu.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(check_gpu, "version", version)
    found = check_gpu.look(of_device("cpu", tmp_path), time.monotonic() + LIMIT)
    assert (found.right, found.go_on) == (False, False)
    assert found.lines == ["this environment lacks tomli-w: install what is missing"]
    found = check_gpu.tests(of_device("cpu", tmp_path), time.monotonic() + LIMIT)
    assert found.lines == ["this environment lacks pytest-xdist: install what is missing"]


def test_trainings(tmp_path: Path) -> None:
    found = check_gpu.trainings(of_device("gpu", tmp_path, tmp_path))
    names = ["first", "again", "2 ranks", "no graphs", "on the CPU", *PRECISIONS[1:]]
    assert [name for name in found if name.startswith("digits ")] == [f"digits {name}" for name in names]
    assert [name for name in found if name.startswith("mnist ")] == [f"mnist {name}" for name in names]
    assert {name.split(" ", 1)[1] for name, (_, _, alike) in found.items() if alike} == set(names[:4])
    assert {name for name, (ranks, _, _) in found.items() if ranks > 1} == {
        f"{of} 2 ranks" for of in ("digits", "mnist", "mnist-conv")
    }


def test_bits_that_differ_are_told() -> None:
    same = {"ab" * 32: ["digits first", "digits again"]}
    assert gpu_findings.bits_words("digits", same, 4) == "digits: one parameters_sha256 in 2 of 4 trainings"
    assert gpu_findings.bits_words("digits", {**same, "cd" * 32: ["digits 2 ranks"]}, 4) == (
        "digits: DIFFERENT parameters_sha256: abababababab: digits first, digits again; cdcdcdcdcdcd: digits 2 ranks"
    )


TESTS = """
import os
import pytest

@pytest.mark.parametrize("n", range(3))
def test_fails(n):
    assert 1 == 2, "as it must"

@pytest.fixture
def broken():
    raise OSError("no card")

def test_with_an_error(broken):
    pass

def test_skipped():
    pytest.skip("one GPU")

def test_passes():
    pass

def test_hangs():
    os._exit(3)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
def test_results_of_tests(workers: list[str], tmp_path: Path) -> None:
    """Read from what pytest itself calls, whether or not it comes to its end."""
    (tmp_path / "test_gpu.py").write_text(TESTS)
    (tmp_path / "test_first.py").write_text("import pytest\npytest.skip('no NCCL', allow_module_level=True)\n")
    written = tmp_path / "found.jsonl"
    own = ("-p", "benchmarks.children.pytest_lines", f"--lines={written}", *workers)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *own], capture_output=True, cwd=tmp_path, env=environment, check=False)
    lines, counts = gpu_findings.test_lines(check_gpu.read_lines(written))
    crash = 1 if workers else 0  # a worker that ends is a failure of its test
    assert dict(counts) == {"passed": 1, "failed": 4 + crash, "skipped": 2, "running": 1 - crash}
    assert lines[0] == f"1 passed, {4 + crash} failed, 2 skipped"
    assert ("did not end: test_hangs" in lines) != bool(crash)
    assert any(line.startswith("  3× AssertionError: as it must") for line in lines)
    assert any(line.endswith("OSError: no card") for line in lines)
    assert {"failed:", "  test_fails[0]", "skipped 1×: one GPU", "skipped 1×: no NCCL"} <= set(lines)


def test_what_is_printed_has_a_limit(tmp_path: Path) -> None:
    lines = [f"{number} " + "x" * (number % 400) for number in range(2000)]
    shown = {name: gpu_findings.shortened(lines, most, tmp_path) for name, most in check_gpu.CHARACTERS.items()}
    assert sum(len("\n".join(one)) for one in shown.values()) < 11_600
    for one in shown.values():
        assert max(map(len, one[:-1])) <= gpu_findings.WIDEST
        assert one[-1] == f"… {2000 - len(one) + 1} more lines in {tmp_path}"
    assert gpu_findings.shortened(lines[:5], 1000, tmp_path) == lines[:5]


GRANDCHILD = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(999)
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {GRANDCHILD!r}], start_new_session=True)
"""


@pytest.mark.skipif(not can_look(), reason="this system has no /proc")
def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    running = side_by_side.Running("hangs", [sys.executable, "-c", PARENT], tmp_path)
    wait_until(lambda: running.log.read_text().endswith("\n"), "the number of the process")
    grandchild = int(running.log.read_text())
    assert stat(grandchild) is not None
    ended = running.wait(time.monotonic())
    assert (ended.status, ended.right) == (None, False)
    assert str(ended).startswith("ended at its limit, after ")
    wait_until(lambda: (found := stat(grandchild)) is None or found.ended, "the end of the process")


@pytest.mark.skipif(not can_look(), reason="this system has no /proc")
def test_what_others_have_started_goes_on(tmp_path: Path) -> None:
    """What an earlier check has left that had this one's process number, or one in a container, is not its own."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks.side_by_side import Running\nsys.stdin.readline()\n"
        "Running('ends', [sys.executable, '-c', ''], Path(sys.argv[1])).end()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as check:
        tagged = {**os.environ, "DESCENDS_FROM_COMMAND": f"{check.pid}-1"}
        waits = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
        with subprocess.Popen(waits, env=tagged, stdin=subprocess.PIPE, text=True) as other:
            check.communicate("go on\n", timeout=LIMIT)
            assert other.poll() is None
            other.communicate("end\n", timeout=LIMIT)
    assert (check.returncode, other.returncode) == (0, 0)


def test_commands_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other one's file, so that one after the other they would not end."""
    code = (
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\nprint('met')"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    commands = {
        "one": [sys.executable, "-c", code, a, b],
        "two": [sys.executable, "-c", code, b, a],
        "none": [NOWHERE],
        "fails": [sys.executable, "-c", "import sys; sys.exit('so')"],
    }
    ended = side_by_side.side_by_side(commands, tmp_path, time.monotonic() + LIMIT, 2)
    assert [(name, one.status, one.text) for name, one in ended.items()] == [
        ("one", 0, "met\n"),
        ("two", 0, "met\n"),
        ("none", 127, f"{NOWHERE}: No such file or directory\n"),
        ("fails", 1, "so\n"),
    ]
    late = side_by_side.side_by_side({"one": commands["one"]}, tmp_path, time.monotonic() - 1, 2)["one"]
    assert str(late) == "no time was left for it"


@pytest.mark.skipif(not has_mpirun(), reason="there is no mpirun")
def test_a_rank_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    code = "import os, signal; print('CUDA error: so', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    command = under_mpirun(1, [sys.executable, "-c", code])
    ended = side_by_side.side_by_side({"dies": command}, tmp_path, time.monotonic() + LIMIT, 1)["dies"]
    assert ended.status not in (0, None)
    if "BAD TERMINATION" in ended.text:  # MPICH
        assert ended.last_line == "CUDA error: so"
    assert "CUDA error: so" in ended.text
