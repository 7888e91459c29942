"""The doctor: what it says of a healthy machine, and of ranks, hosts and libraries that don't fit together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distsgd.cli import doctor
from distsgd.gpu import report
from distsgd.launching.doctor import library, machine
from distsgd.launching.doctor.library import Library
from distsgd.launching.doctor.machine import Look
from distsgd.launching.doctor.problems import find_problems
from distsgd.launching.doctor.speed import LARGE, Speed
from distsgd.parallel import launchers
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[3]
MPICH = "MPICH Version:      4.3.2\nMPICH Release date: Mon Oct  6\nMPICH ABI:          17:2:5\n"
OPEN_MPI = "Open MPI v5.0.8, package: Open MPI builder@host Distribution, ident: 5.0.8, repo rev: v5.0.8, 2025\0"
INTEL = "Intel(R) MPI Library 2021.14 for Linux* OS\n"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "distsgd.doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False)


def test_alone_it_names_what_computes() -> None:
    done = run(OPENBLAS_CORETYPE="Haswell")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    problems = [line for line in lines if line.startswith("problem ")]
    assert done.returncode == (1 if problems else 0)
    assert lines[-1] == (f"{len(problems)} problem(s) found" if problems else "no problem found")
    metadata = {line.split()[0] for line in lines}
    assert {
        "distsgd",
        "python",
        "numpy",
        "blas",
        "mpi",
        "gpu",
        "device",
        "ranks",
        "memory",
        "shared",
        "reduction",
    } <= metadata
    assert "1 thread(s), OPENBLAS_CORETYPE=Haswell" in done.stdout  # as the user forced it
    assert "start doctor with mpirun to time it" in done.stdout


def test_arguments_are_refused() -> None:
    done = run("--fast")
    assert done.returncode == 2
    assert "unknown option --fast" in done.stderr


def rank(processor: int, **changes: Any) -> Look:
    versions = {"numpy": "2.4.6", "python": "3.11.7"}
    return Look(**{"processors": (processor,), "versions": versions, "shared": (1 << 30, 1 << 29), **changes})


SLOW = Speed(1e-3, 4 * LARGE / 1e8)
FAST = Speed(1e-5, 4 * LARGE / 1e10)
MB = 1 << 20
FAMILIES = {
    0: {"probe": "a", "kernels": "avx512", "families": ("avx512", "avx2")},
    1: {"probe": "b", "kernels": "avx2", "families": ("avx2",)},
}


@pytest.mark.parametrize(
    ("hosts", "changes", "speed", "words"),
    [
        ("aab", {}, FAST, []),
        ("aab", {1: {"gemm_seconds": 1.6}}, FAST, ["slow ranks: 1 on a;"]),
        ("ab", {1: {"gemm_seconds": 1.6}}, FAST, ["slow ranks: 1 on b;"]),
        ("aab", {2: {"probe": "b"}}, FAST, ["b compute other bits than a, with the same kernels; use one version of"]),
        ("ab", FAMILIES, FAST, ["different kernels, which compute other bits (a avx512, b avx2); start training with"]),
        ("aab", {1: {"processors": (0,)}}, FAST, ["a: 2 ranks are bound to 1 processor(s); start fewer"]),
        ("aaa", {k: {"processors": (0, 1)} for k in range(3)}, FAST, ["a: 3 ranks wait for each other on 2"]),
        (
            "aab",
            {2: {"versions": {"numpy": "2.0.2", "python": "3.11.7"}}},
            FAST,
            ["numpy is 2.4.6 on a, but 2.0.2 on b"],
        ),
        ("aab", {0: {"blas_threads": 4}}, FAST, ["BLAS runs with several threads on ranks 0,"]),
        ("aab", {0: {"shares": False}}, FAST, ["a: the ranks can't share memory"]),
        ("aab", {2: {"shares": False}}, FAST, []),  # it has no one to share with
        ("aab", {0: {"shared": (64 * MB, 20 * MB)}}, FAST, ["a: 21 MB are free in /dev/shm"]),
        ("aab", {2: {"memory": 100 * MB}}, FAST, ["b: 105 MB of memory are left"]),
        ("aab", {}, SLOW, ["reductions between hosts get through 100 MB/s"]),
        ("aaa", {}, SLOW, []),
        ("a", {}, None, []),
    ],
)
def test_problems(hosts: str, changes: dict[int, dict[str, Any]], speed: Speed | None, words: list[str]) -> None:
    looks = [(host, rank(number, **changes.get(number, {}))) for number, host in enumerate(hosts)]
    problems = find_problems(looks, speed)
    assert len(problems) == len(words), problems
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_problems_are_printed_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([("a", "b")], ["c; do d"])
    assert capsys.readouterr().out == "a              b\nproblem        c; do d\n1 problem(s) found\n"


@pytest.mark.parametrize(
    ("text", "family", "short"),
    [
        (MPICH, "MPICH", "MPICH 4.3.2"),
        (OPEN_MPI, "Open MPI", "Open MPI v5.0.8"),
        (INTEL, "Intel MPI", "Intel(R) MPI Library 2021.14 for Linux* OS"),
        ("MVAPICH2 Version      :	2.3.7\n", "MVAPICH", "MVAPICH2 Version      :	2.3.7"),
        ("", None, "an MPI library without a name"),
    ],
)
def test_libraries_have_short_names(text: str, family: str | None, short: str) -> None:
    assert launchers.family(text) == family
    assert launchers.short_version(text) == short


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0"}, "Open MPI's mpirun"),
        ({"SLURM_STEP_ID": "0", "PMI_SIZE": "2"}, "Slurm's srun"),
        ({"PMI_SIZE": "2"}, "Hydra, the mpirun of MPICH and Intel MPI"),
    ],
)
def test_launchers_have_names(environment: Mapping[str, str], name: str | None) -> None:
    assert launchers.launcher_name(environment) == name


def test_a_library_is_found_with_its_mpirun(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").touch()
    path = tmp_path / "lib" / "libmpi.so.12"
    assert launchers.mpirun_of(path) == tmp_path / "bin" / "mpirun"
    assert launchers.mpirun_of(None) is None
    reported = launchers.mismatch(3, 1, MPICH, path, {"OMPI_COMM_WORLD_SIZE": "3"})
    assert reported.startswith("the launcher started 3 processes, but MPI sees 1: this is Open MPI's mpirun")
    assert f"MPICH 4.3.2 ({path}); start with {tmp_path}/bin/mpirun, or " in reported
    assert "start with the mpirun of that library" in launchers.mismatch(3, 1, OPEN_MPI, None, {})


@pytest.mark.parametrize(
    ("reported", "version", "problem"),
    [
        ("HYDRA build details:\n    Version: 4.3.2", "MPICH 4.3.2", None),
        ("mpirun (Open MPI) 5.0.8", "Open MPI v5.0.8", None),
        ("HYDRA build details", "Intel(R) MPI Library 2021.14", None),  # they speak one language
        ("a launcher of its own", "MPICH 4.3.2", None),
        ("mpirun (Open MPI) 5.0.8", "MPICH 4.3.2", "belongs to Open MPI, and mpi4py loads MPICH 4.3.2"),
        ("HYDRA build details", "Open MPI v5.0.8", "belongs to MPICH, and mpi4py loads Open MPI v5.0.8"),
    ],
)
def test_an_mpirun_of_another_mpi_is_a_problem(
    tmp_path: Path, reported: str, version: str, problem: str | None
) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text(f"#!/bin/sh\necho '{reported}'\n")
    launcher.chmod(0o755)
    metadata, problems = library.describe_alone(Library(version, None), str(launcher))
    assert [name for name, _ in metadata] == ["mpi", "launcher"]
    assert (problem in problems[0]) if problem else (problems == [])


@pytest.mark.parametrize("reason", ["no libmpi", "ModuleNotFoundError: No module named 'mpi4py'"])
@pytest.mark.parametrize("launcher", [None, "/usr/bin/mpirun"])
def test_no_mpi_is_a_problem_with_a_remedy(reason: str, launcher: str | None) -> None:
    metadata, problems = library.describe_alone(Library(None, None, reason), launcher)
    assert [name for name, _ in metadata] == ["mpi", "launcher"]
    assert len(problems) == 1
    assert f"there is no MPI that mpi4py can load ({reason})" in problems[0]
    assert "pip install" in problems[0]
    assert "mpich" in problems[0]


def test_no_launcher_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    _, problems = library.describe_alone(Library("MPICH 4.3.2", tmp_path / "lib" / "libmpi.so"), None)
    assert len(problems) == 1
    assert "there is no mpirun, mpiexec or srun on the path to start ranks of MPICH 4.3.2; add" in problems[0]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").touch()
    metadata, problems = library.describe_alone(Library("MPICH 4.3.2", tmp_path / "lib" / "libmpi.so"), None)
    assert (problems, metadata[1][1]) == (
        [],
        f"{tmp_path}/bin/mpirun, which belongs to that library; it is not on the path",
    )


def test_a_doctor_without_mpi_has_a_problem_to_report(tmp_path: Path) -> None:
    """As a user runs it, on a machine without mpi4py."""
    (tmp_path / "mpi4py.py").write_text("raise ModuleNotFoundError(\"No module named 'mpi4py'\", name='mpi4py')\n")
    done = run(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "problem        there is no MPI that mpi4py can load (ModuleNotFoundError: " in done.stdout
    assert done.stderr == ""


def test_gpus_are_counted_and_left_alone(tmp_path: Path) -> None:
    assert report.gpus(tmp_path) == ""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert report.gpus(tmp_path) == "2 of NVIDIA"
    assert report.describe_gpus("", None) == "none on these hosts"
    assert report.describe_gpus("2 of NVIDIA", False).endswith("MPI doesn't take GPU memory")


def test_files_of_killed_jobs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpich_shm_1_0").write_bytes(bytes(8192))
    (tmp_path / "mine").write_bytes(bytes(8192))
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert machine.abandoned() == (1, 8192)
    assert machine.shared_space() is not None
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.abandoned() == (0, 0)
    assert machine.shared_space() is None
