"""The mpirun of this environment or cluster: its MPI implementation, and the command that starts ranks with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from distsgd.core.errors import ConfigurationError, LauncherError, pip_install

_NAMES = ("mpirun", "mpiexec")
_ASK_SECONDS = 20.0
_VERSIONS = (
    ("openmpi", r"\(?Open ?(?:MPI|RTE)\)? +v?(\d[\w.]*)"),
    ("mpich", r"HYDRA build details:\s+Version: +(\S+)"),
    ("mpich", r"Intel\(R\) MPI Library.* Version +(\S+)"),
)
_LOCAL = {"localhost", "127.0.0.1"}


@dataclass(frozen=True)
class Mpirun:
    """A launcher. `kind` is mpich (and other launchers built on Hydra), openmpi, or other."""

    path: str
    kind: str
    version: str = ""

    @property
    def major(self) -> int:
        """The major version, 0 where it isn't known."""
        found = re.match(r"\d+", self.version)
        return int(found[0]) if found else 0


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it takes; None for an equal share."""

    name: str
    slots: int | None = None


def find_mpirun(chosen: str | None = None) -> Mpirun:
    """The chosen mpirun, or the one beside this interpreter, or the one on PATH. Raises LauncherError."""
    path = _path_of(chosen)
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"{path} --version didn't answer ({error}); name another launcher with --mpirun") from None
    return recognize(path, done.stdout + done.stderr)


def _path_of(chosen: str | None) -> str:
    if chosen is not None:
        found = shutil.which(chosen)
        if found is None:
            raise LauncherError(f"mpirun: there is no program {chosen} that can be run")
        return found
    beside = (str(Path(sys.executable).with_name(name)) for name in _NAMES)
    found = next(filter(None, map(shutil.which, (*beside, *_NAMES))), None)
    if found is not None:
        return found
    raise LauncherError(
        "there is no mpirun beside this Python or on PATH; load the cluster's MPI module, or install one with: "
        f"{pip_install('mpich')}"
    )


def recognize(path: str, version_text: str) -> Mpirun:
    """The launcher at `path` by what its --version prints."""
    for kind, pattern in _VERSIONS:
        found = re.search(pattern, version_text)
        if found:
            return Mpirun(path, kind, found[1])
    return Mpirun(path, "other")


def parse_hosts(texts: Sequence[str]) -> tuple[Host, ...]:
    """Hosts of `a b:2` or `a,b:2`. Raises ConfigurationError."""
    hosts = []
    for text in ",".join(texts).split(","):
        name, colon, count = text.strip().partition(":")
        if not re.fullmatch(r"\w[\w.-]*", name) or (colon and not (count.isdecimal() and int(count) > 0)):
            raise ConfigurationError(f"hosts: expected names such as node1 or node1:4, for 4 ranks on it, got {text!r}")
        hosts.append(Host(name, int(count) if colon else None))
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"hosts: each is named once, got {', '.join(names)}")
    return tuple(hosts)


def with_shares(hosts: Sequence[Host], ranks: int | None) -> tuple[Host, ...]:
    """The hosts with enough slots for all ranks; a host without a number takes an equal share."""
    open_hosts = [host for host in hosts if host.slots is None]
    left = max((ranks or len(hosts)) - sum(host.slots or 0 for host in hosts), len(open_hosts))
    share = -(-left // len(open_hosts)) if open_hosts else 0
    return tuple(Host(host.name, share if host.slots is None else host.slots) for host in hosts)


def command(
    mpirun: Mpirun, ranks: int, hosts: Sequence[Host], program: Sequence[str], passed: Sequence[str]
) -> list[str]:
    """The command that runs `program` on `ranks` ranks; `passed` names environment variables for other hosts."""
    line = [mpirun.path, "-n", str(ranks)]
    named = ",".join(host.name if host.slots is None else f"{host.name}:{host.slots}" for host in hosts)
    if mpirun.kind == "openmpi":
        # Allow root, and more ranks than cores; bind no rank to one core, which its threads would have to share.
        line += ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
        line += [part for name in passed for part in ("-x", name)]
        line += ["--host", named] if hosts else []
    elif hosts:
        line += ["-hosts", named]
    return [*line, *program]


def environment(mpirun: Mpirun, one_host: bool, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with what this launcher needs; a user's own settings stay."""
    settings = dict(base)
    if mpirun.kind == "openmpi":
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        chosen = any(name.startswith(("OMPI_MCA_pml", "OMPI_MCA_btl")) for name in base)
        if one_host and mpirun.major >= 5 and not chosen:
            # Without them it searches for fast networks for a second, and uses none of them on one host.
            settings |= {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}
    return settings


def this_host(name: str) -> bool:
    """Whether a host's name is this host's."""
    own = platform.node()
    return name in _LOCAL or name == own or name.partition(".")[0] == own.partition(".")[0]


def still_there(mpirun: Mpirun, hosts: Sequence[Host], settings: Mapping[str, str], seconds: float) -> list[Host]:
    """The hosts on which mpirun can still start a process, all tried at the same time."""

    def answers(host: Host) -> bool:
        if this_host(host.name):
            return True
        line = command(mpirun, 1, [Host(host.name, 1)], ["true"], ())
        # A process group of its own: a start that hangs has started ssh.
        process = subprocess.Popen(
            line,
            env=dict(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return False

    with ThreadPoolExecutor(len(hosts)) as pool:
        return [host for host, there in zip(hosts, pool.map(answers, hosts), strict=True) if there]


def allocated_hosts(settings: Mapping[str, str]) -> tuple[Host, ...]:
    """The hosts that the batch system gave this job; empty where it isn't known."""
    names: list[str] = []
    try:
        if settings.get("SLURM_JOB_NODELIST"):
            asked = ["scontrol", "show", "hostnames", settings["SLURM_JOB_NODELIST"]]
            names = subprocess.run(asked, capture_output=True, text=True, timeout=_ASK_SECONDS).stdout.split()
        for variable in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE"):
            if not names and settings.get(variable):
                names = Path(settings[variable]).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return ()
    return tuple(Host(name) for name in dict.fromkeys(names))
