"""One family of kernels on all hosts: the same bits on any number of ranks and any CPU that can run it, or refused."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.kernel_family import this_host
from tests.cases import first_of
from tests.parallel.launch import Done, ends_with, module, run_command, summary, train

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or bool(this_host().lacks("avx2")), reason="forces kernels of x86-64-v3"
)
SMALL = ("--epochs", 2, "--batch-size", 128, "--max-steps", 6, "--hidden", 128, "--quiet")  # ranks share a block
PROGRAM = Path(__file__).with_name("kernel_ranks.py")


def pretend(ranks: int | None, kinds: str, command: str, folder: Path, *arguments: object, **keywords: Any) -> Done:
    """A command whose ranks are on hosts with such CPUs."""
    line = [sys.executable, str(PROGRAM), command, kinds, *map(str, arguments)]
    return run_command(ranks, line, folder, **keywords)


def sha256(out: Path) -> str:
    return str(summary(out)["parameters_sha256"])


def family(out: Path) -> str:
    found = re.search(r'^kernels = "(.*)"$', (out / "config.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process comes to, by family."""
    place = tmp_path_factory.mktemp("alone")
    for name in ("sse42", "avx2"):
        train(None, place / name, *SMALL, "--kernels", name)
        assert family(place / name) == name
    return {name: sha256(place / name) for name in ("sse42", "avx2")}


def test_families_compute_other_bits(alone: dict[str, str]) -> None:
    """Or the tests below would show nothing."""
    assert alone["sse42"] != alone["avx2"]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["sse42", "avx2"])
def test_one_family_has_the_same_bits_on_any_number_of_ranks(
    tmp_path: Path, alone: dict[str, str], name: str, ranks: int
) -> None:
    train(ranks, tmp_path / "a", *SMALL, "--kernels", name)
    assert sha256(tmp_path / "a") == alone[name]


@pytest.mark.parametrize(
    ("kinds", "chosen"), [("avx512,avx2", "avx2"), pytest.param("avx2,sse42", "sse42", marks=pytest.mark.long)]
)
def test_hosts_of_different_cpus_take_what_all_can_run(
    tmp_path: Path, alone: dict[str, str], kinds: str, chosen: str
) -> None:
    done = pretend(2, kinds, "train", tmp_path, *SMALL, "--out", "a")
    assert set(done.statuses.values()) == {0}, done.text
    assert family(tmp_path / "a") == chosen
    assert sha256(tmp_path / "a") == alone[chosen]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_host_that_cannot_is_named_and_refused(tmp_path: Path, ranks: int) -> None:
    kinds = "sse42" if ranks == 1 else "avx2,avx2,sse42"
    done = pretend(ranks, kinds, "train", tmp_path, *SMALL, "--kernels", "avx2", "--out", "a")
    ends_with(done, f"avx2 is asked for, which can't run on host-{ranks - 1} (lacks ")
    ends_with(done, "all hosts can run sse42: give --kernels sse42, or leave it out")
    assert set(done.statuses.values()) == {2}
    assert len(done.statuses) == ranks
    assert not (tmp_path / "a").exists()


def test_a_cpu_without_avx512_refuses_it(tmp_path: Path) -> None:
    if not this_host().lacks("avx512"):
        train(None, tmp_path / "a", *SMALL, "--kernels", "avx512")
        assert family(tmp_path / "a") == "avx512"
        return
    for extra, words in (
        ({}, "kernels: avx512 is asked for, which can't run on"),
        ({"OPENBLAS_CORETYPE": "SKYLAKEX"}, "OPENBLAS_CORETYPE is SKYLAKEX, which can't run on"),  # it would crash
    ):
        more = () if extra else ("--kernels", "avx512")
        ends_with(train(None, tmp_path / "a", *SMALL, *more, status=2, extra=extra), words)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    ends_with(
        train(None, tmp_path / "a", *SMALL, "--kernels", "avx3", status=2), "kernels: expected one of auto, avx512"
    )


@pytest.mark.long
def test_resume_takes_the_recorded_family_under_another_default(tmp_path: Path, alone: dict[str, str]) -> None:
    """As on another machine: what a new run would choose there is avx2."""
    out = tmp_path / "a"
    train(None, out, *SMALL, "--max-steps", 3, "--kernels", "sse42")
    kept = pretend(2, "avx512,avx2", "train", tmp_path, *SMALL, "--out", "a")
    assert set(kept.statuses.values()) == {0}, kept.text
    assert family(out) == "sse42"
    assert sha256(out) == alone["sse42"]


def test_resume_with_another_family_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a"
    train(None, out, *SMALL, "--max-steps", 3, "--kernels", "sse42")
    done = train(2, out, *SMALL, "--kernels", "avx2", status=2)
    ends_with(done, "holds a run with sse42, and avx2 is asked for; leave --kernels out to continue it")
    (out / "config.toml").write_text("")  # the checkpoint says it too
    done = train(None, out, *SMALL, status=2)
    ends_with(done, "(distsgd train takes --kernels sse42)")
    train(None, out, *SMALL, "--kernels", "sse42")


@pytest.mark.long
def test_resume_where_the_cpu_cannot_is_refused(tmp_path: Path) -> None:
    train(None, tmp_path / "a", *SMALL, "--max-steps", 3, "--kernels", "avx2")
    done = pretend(1, "sse42", "train", tmp_path, *SMALL, "--out", "a")
    ends_with(done, "a was computed with the kernels avx2, which can't run on host-0 (lacks abm, avx, avx2); use hosts")
    assert set(done.statuses.values()) == {2}


@pytest.mark.long
def test_scores_have_the_bits_of_the_runs_own_family(tmp_path: Path) -> None:
    """And where the CPU can't run it, they come with a warning."""
    losses = {}
    for name in ("sse42", "avx2"):
        train(None, tmp_path / name, *SMALL, "--kernels", name, "--epochs", 1)
        done = module(None, "evaluate", tmp_path, name, "--dataset", "digits")
        assert (done.status, done.err) == (0, "")
        losses[name] = json.loads(done.out)["loss"]
        assert losses[name] == summary(tmp_path / name)["validation_loss"]
    done = pretend(None, "sse42", "evaluate", tmp_path, "avx2", "--dataset", "digits")
    assert done.status == 0
    assert done.err.count("\n") == 1
    assert done.err.startswith("warning: avx2 was computed with the kernels avx2, which can't run on host-0")


@pytest.mark.long
def test_the_users_own_choice_is_honoured(tmp_path: Path, alone: dict[str, str]) -> None:
    out = tmp_path / "a"
    train(None, out, *SMALL, extra={"OPENBLAS_CORETYPE": "nehalem"})
    assert family(out) == "sse42"
    assert sha256(out) == alone["sse42"]
    done = train(None, tmp_path / "b", *SMALL, "--kernels", "avx2", status=2, extra={"OPENBLAS_CORETYPE": "nehalem"})
    ends_with(done, "OPENBLAS_CORETYPE is nehalem, which is sse42; unset that variable")
    train(None, tmp_path / "c", *SMALL, extra={"OPENBLAS_CORETYPE": "Sandybridge"})
    assert family(tmp_path / "c").startswith("sandybridge+numpy-")  # which NumPy's own loops take by the CPU


FIT = """
import sys
import numpy as np
import distsgd
x = np.random.default_rng(0).random((64, 8), np.float32)
options = dict(option.split("=") for option in sys.argv[1:])
result = distsgd.fit("mlp", (x, np.arange(64) % 3), epochs=2, batch_size=32, validation_fraction=0, **options)
if distsgd.is_root():
    print(result.summary["parameters_sha256"])
"""


def fit(ranks: int | None, folder: Path, *options: str, **extra: str) -> Done:
    return run_command(ranks, [sys.executable, "-c", FIT, *options], folder, extra=extra)


def remedy_of(done: Done) -> dict[str, str]:
    """The variables that the sentence says to start Python with."""
    found = {name: quoted or word for name, quoted, word in re.findall(r"([A-Z_]+)=(?:'([^']*)'|(\w+))", done.err)}
    assert set(found) == {"OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"}, done.err
    return found


@pytest.mark.parametrize("ranks", first_of([2, None]))
def test_fit_after_numpy_refuses_another_family_and_its_remedy_works(tmp_path: Path, ranks: int | None) -> None:
    refused = fit(ranks, tmp_path, "kernels=sse42")
    assert refused.status
    assert "kernels: sse42 is asked for, and NumPy has loaded with" in refused.err
    assert refused.err.count("start Python with") == 1
    done = fit(ranks, tmp_path, "kernels=sse42", **remedy_of(refused))
    assert done.status == 0, done.err
    assert done.out == fit(None, tmp_path, **remedy_of(refused)).out


def test_fit_continues_with_the_recorded_family_or_not_at_all(tmp_path: Path) -> None:
    variables = remedy_of(fit(None, tmp_path, "kernels=sse42"))
    assert fit(None, tmp_path, "out=a", **variables).status == 0
    assert family(tmp_path / "a") == "sse42"
    refused = fit(None, tmp_path, "out=a")
    assert refused.status
    assert "a holds a run with the kernels sse42, and NumPy has loaded with" in refused.err
    assert fit(None, tmp_path, "out=a", **remedy_of(refused)).status == 0


def test_fit_on_hosts_that_have_loaded_different_kernels_is_refused(tmp_path: Path) -> None:
    code = "import os, distsgd.cli.commands\n"
    code += "if distsgd.cli.commands.launcher_rank() == 1: os.environ['OPENBLAS_CORETYPE'] = 'Nehalem'\n"
    named = "import platform\nplatform.node = lambda: f'host-{distsgd.cli.commands.launcher_rank()}'\n"
    done = run_command(2, [sys.executable, "-c", code + named + FIT], tmp_path)
    assert done.status == 2, done.text
    assert "on host-0, sse42+numpy-" in done.err
    assert "on host-1, which compute other bits; start all with OPENBLAS_CORETYPE=" in done.err


def test_the_doctor_names_the_families(tmp_path: Path) -> None:
    done = pretend(2, "avx2,sse42", "doctor", tmp_path)
    assert "kernels        sse42; --kernels can choose sse42 on all hosts" in done.out
    assert "fastest        avx2 on host-0, sse42 on host-1" in done.out
    assert "problem        " not in "".join(line for line in done.out.splitlines() if "kernels" in line)
