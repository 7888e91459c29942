"""What follows launch/slurm.sbatch on sbatch's line: taken in place of the script's own options, and never twice."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from distsgd.cli.command_line import load_config
from tests.unit.project.test_structure import ROOT


@pytest.mark.parametrize(
    ("given", "dataset", "out"),
    [
        ([], "digits", "runs/slurm-7"),
        (["--dataset", "mnist", "--epochs", "50"], "mnist", "runs/slurm-7"),
        (["--out", "runs/a", "--microbatches", "8"], "digits", "runs/a"),
        (["--epochs", "3", "--out=my runs/b"], "digits", "my runs/b"),
    ],
)
def test_options(tmp_path: Path, given: list[str], dataset: str, out: str) -> None:
    for name, text in {"srun": 'printf "%s\\0" "$@" >arguments', "scontrol": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    settings = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    script = ROOT / "launch" / "slurm.sbatch"
    subprocess.run(["bash", script, *given], cwd=tmp_path, env={**os.environ, **settings}, check=True)
    arguments = (tmp_path / "arguments").read_text().split("\0")[:-1]
    config = load_config(arguments[arguments.index("distsgd.train") + 1 :])  # refuses what is given twice
    assert (config.dataset, config.out, config.microbatches) == (dataset, out, 8 if "--microbatches" in given else 4)
