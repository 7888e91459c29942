"""Families of kernels: what a CPU can run, what NumPy is asked for, and what it then reports."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distsgd.core import kernel_family
from distsgd.core.kernel_family import Host, best_of, exports, family_of_core, is_name, settings, this_host
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[3]
V2 = "fpu sse2 ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
V3 = f"{V2} avx f16c fma movbe abm avx2 bmi1 bmi2"
V4 = f"{V3} avx512f avx512dq avx512cd avx512bw avx512vl"
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="forces kernels of x86-64 CPUs")


def cpuinfo(flags: str) -> str:
    """Two CPUs, as Linux shows them."""
    one = f"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: a: CPU\nflags\t\t: {flags}\nbugs\t\t: none\n"
    return f"{one}\n{one}"


@pytest.mark.parametrize(
    ("machine", "text", "families"),
    [
        ("x86_64", cpuinfo(f"{V4} avx512_vnni"), ["avx512", "avx2", "sse42"]),
        ("x86_64", cpuinfo(V4.replace("avx512vl", "")), ["avx2", "sse42"]),
        ("x86_64", cpuinfo(V3), ["avx2", "sse42"]),
        ("x86_64", cpuinfo(V3.replace("fma", "")), ["sse42"]),
        ("x86_64", cpuinfo("fpu sse2"), []),
        ("aarch64", "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\n", ["arm64"]),
        ("riscv64", "processor\t: 0\nisa\t: rv64imafdc\n", []),
        ("x86_64", "", []),
        ("x86_64", "no colon at all\n:\n::\n", []),
    ],
)
def test_what_a_cpu_can_run(
    machine: str, text: str, families: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(kernel_family, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert this_host().families() == families


def test_families_that_all_hosts_can_run() -> None:
    hosts = [Host(machine="x86_64", flags=frozenset(flags.split())) for flags in (V4, V3, V4)]
    assert best_of(hosts) == ["avx2", "sse42"]
    assert best_of([*hosts, Host(machine="aarch64", flags=frozenset({"asimd"}))]) == []
    assert best_of([*hosts, Host(machine="x86_64")]) == [], "of one host nothing is known"


@pytest.mark.parametrize(
    ("version", "family", "core", "without"),
    [
        ("2.4.0", "avx512", "SkylakeX", {"AVX512_ICL", "AVX512_SPR"}),
        ("2.5.1", "avx2", "Haswell", {"X86_V4", "AVX512_ICL", "AVX512_SPR"}),
        ("2.10.0", "sse42", "Nehalem", {"X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"}),
        ("2.0.0", "avx512", "SkylakeX", {"AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR"}),
        ("2.0.0", "avx2+numpy-avx512", "Haswell", {"AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR"}),
    ],
)
def test_what_numpy_is_asked_for(
    version: str, family: str, core: str, without: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_family, "numpy_version", lambda: version)
    found = settings(family)
    assert found["OPENBLAS_CORETYPE"] == core
    assert set(found["NPY_DISABLE_CPU_FEATURES"].split()) == without


def test_names() -> None:
    assert [family_of_core(core) for core in ("HASWELL", "Zen", "Cooperlake", "Neoversev1")] == [
        "avx2", "avx2", "avx512", "neoversev1",
    ]  # fmt: skip
    assert all(map(is_name, ("avx512", "arm64", "avx2+numpy-avx512", "mkl+numpy-avx2")))
    assert not any(map(is_name, ("avx3", "auto", "", "mkl", "+numpy-avx2", "avx2+numpy-")))
    assert "OPENBLAS_CORETYPE" not in exports("mkl+numpy-avx2"), "MKL's kernels can't be chosen"


def in_a_process(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


APPLIED = """
from distsgd.core import deferred_numpy, kernel_family
deferred_numpy.defer_numpy()
import numpy as np
assert not deferred_numpy.numpy_is_loaded()
kernel_family.apply({family!r})
assert deferred_numpy.numpy_is_loaded() and np.exp(np.zeros(1))[0] == 1
print(kernel_family.loaded_family())
"""


@needs_x86
@pytest.mark.parametrize("family", ["sse42", "avx2", "avx512", "sandybridge+numpy-sse42"])
def test_numpy_loads_with_the_family_and_warns_of_nothing(family: str) -> None:
    if this_host().lacks(family) or (family.startswith("sandybridge") and this_host().lacks("avx2")):
        pytest.skip(f"this CPU can't run {family}")
    assert in_a_process(APPLIED.format(family=family)) == family


@needs_x86
def test_what_the_user_has_set_stays() -> None:
    assert in_a_process(APPLIED.format(family="sse42"), NPY_DISABLE_CPU_FEATURES="") != "sse42"
    assert in_a_process(APPLIED.format(family="avx2"), OPENBLAS_CORETYPE="Nehalem").startswith("sse42+numpy-")


def test_a_child_chooses_anew() -> None:
    """What a parent of distsgd's has set in the environment is not the user's."""
    code = """
import subprocess, sys
from distsgd.core import kernel_family
kernel_family.apply(kernel_family.this_host().families()[-1])
code = "from distsgd.core import kernel_family; print(repr(kernel_family.this_host().core))"
print(subprocess.check_output([sys.executable, "-c", code], text=True))
"""
    assert in_a_process(code) == "''"


def test_numpy_that_cannot_be_limited_is_refused_in_one_sentence() -> None:
    """Built for newer CPUs alone: here NumPy's own baseline stands for a feature that the family hasn't."""
    code = """
from distsgd.core import deferred_numpy, kernel_family
deferred_numpy.defer_numpy()
kernel_family.settings = lambda name: {"NPY_DISABLE_CPU_FEATURES": BASELINE}
try:
    kernel_family.apply("any")
except Exception as error:
    print(type(error).__name__, error)
"""
    import numpy as np

    baseline = np._core._multiarray_umath.__cpu_baseline__  # type: ignore[attr-defined]
    if not baseline:
        pytest.skip("this NumPy has no baseline")
    reported = in_a_process(f"BASELINE = {baseline[-1]!r}\n{code}")
    assert reported.startswith("ConfigurationError kernels: this NumPy is built for newer CPUs alone")
    assert "\n" not in reported
    assert re.search(r"export NPY_DISABLE_CPU_FEATURES=", reported)


def test_deferred_numpy_is_numpy() -> None:
    """And no module that a command may import before the kernels are chosen loads it."""
    packages = ("core", "nn", "optim", "data", "parallel", "training", "run", "launching", "cli")
    code = """
import sys
from distsgd.core.deferred_numpy import defer_numpy, numpy_is_loaded
defer_numpy()
import numpy, pkgutil
from importlib import import_module
import distsgd
for _, name, _ in pkgutil.walk_packages(distsgd.__path__, "distsgd."):
    if name.partition(".")[2].partition(".")[0] in {names}:
        import_module(name)
print(numpy_is_loaded(), end=" ")
from numpy.typing import NDArray
print(numpy_is_loaded(), type(numpy).__name__, sys.modules["numpy"] is numpy, numpy.arange(3).sum())
"""
    assert in_a_process(code.replace("{names}", repr(packages))) == "False True module True 3"


def test_threads_wait_for_the_one_that_loads_numpy() -> None:
    code = """
import threading
from distsgd.core.deferred_numpy import defer_numpy
defer_numpy()
import numpy
barrier, found = threading.Barrier(6), []
def first():
    barrier.wait(60)
    try:
        found.append(int(numpy.zeros(3).size))
    except Exception as error:
        found.append(str(error))
threads = [threading.Thread(target=first) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
print(found, type(numpy).__name__, sorted(name for name in vars(numpy) if "distsgd" in name))
"""
    assert in_a_process(code) == "[3, 3, 3, 3, 3, 3] module []"


CHOSEN = """
from distsgd.core.deferred_numpy import defer_numpy
defer_numpy()
from distsgd.core.errors import ConfigurationError
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.kernels import choose
try:
    print(choose(SerialCommunicator(), required={required})[1])
except ConfigurationError as error:
    print("refused:", error)
"""


@needs_x86
@pytest.mark.parametrize("required", [True, False])
def test_a_core_that_openblas_ignores_is_refused(required: bool) -> None:
    """Or named, for a command whose results are right all the same."""
    code = CHOSEN.format(required=required)
    found = in_a_process(code, OPENBLAS_CORETYPE="Foo")
    assert found.startswith(("refused: " if required else "") + "OPENBLAS_CORETYPE is Foo, which this OpenBLAS doesn't")
    assert in_a_process(code, OPENBLAS_CORETYPE="nehalem") == "None"
    assert in_a_process(code, OPENBLAS_CORETYPE="") == "None"
