"""A real Slurm of several nodes on this machine: on the loopback, in a folder of its own, and gone without a trace."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.cluster.tools import end_processes_with, find_program, processes_with, wait_until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo", "setpriv")

# cred_expire is also what a requeued job waits for; Slurm takes nothing below 5 seconds.
_CONFIGURATION = """\
ClusterName=distsgd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
JobRequeue=1
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no Slurm here, empty where there can."""
    if sys.platform != "linux":
        return f"this Slurm needs Linux, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "a Slurm that starts jobs needs root"
    missing = [name for name in _PROGRAMS if find_program(name) is None]
    if missing:
        packages = " ".join(PACKAGES)
        return f"there is no {', '.join(missing)}: apt-get install --no-install-recommends {packages}"
    return ""


class Slurm:
    """Runs while its `with` block does. `folder` holds all of it, `temporary` is its jobs' TMPDIR."""

    def __init__(self, nodes: int = 4) -> None:
        # Sockets lie in the folder, and a socket's path ends after 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="distsgd-slurm-", dir="/tmp"))
        self.temporary = self.folder / "tmp"
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._inside: list[str] = []
        self.watched = {"$TMPDIR": self.temporary}
        """Where a job may leave files that are its own for certain: what it calls the folder -> what it is here."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environment = {**others, "SLURM_CONF": f"{self.folder}/slurm.conf", "TMPDIR": str(self.temporary)}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        for name in self.names:
            (self.folder / "spool" / name).mkdir(parents=True)
        (self.folder / "state").mkdir()
        self.temporary.mkdir()
        self._make_own_shared_memory()
        self._configure()
        self._start_munge()
        self._daemon("slurmctld", "-D")
        for name in self.names:
            self._daemon("slurmd", "-D", "-N", name)
        everyone = str(len(self.names))
        wait_until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == everyone, 30, "Slurm's start")

    def _make_own_shared_memory(self) -> None:
        """A /dev/shm for the jobs alone where that may be had, so that what is left in it is theirs."""
        ready = self.folder / "ready"
        mount = f"mount -t tmpfs tmpfs /dev/shm && touch {ready} && exec sleep infinity"
        holder = self._daemon("unshare", "--mount", "sh", "-c", mount)
        wait_until(lambda: ready.exists() or holder.poll() is not None, 10, "unshare")
        if ready.exists():
            self._inside = ["nsenter", "--mount", "--target", str(holder.pid)]
            self.watched["/dev/shm"] = Path(f"/proc/{holder.pid}/root/dev/shm")

    def _configure(self) -> None:
        host = platform.node().partition(".")[0]
        ctld, *ports = _free_ports(1 + len(self.names))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        )
        text = _CONFIGURATION.format(host=host, port=ctld, folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(text)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]
        # --force, for munge wants its folder open to all users
        self._daemon("munged", "--foreground", "--force", *options)
        wait_until((self.folder / "munge.socket").is_socket, 10, "munge's start")

    def _daemon(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        path = find_program(name)
        assert path is not None
        with (self.folder / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                # It ends with the tests, however they end.
                ["setpriv", "--pdeathsig", "KILL", *self._inside, path, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # so that Ctrl-C leaves it to end the jobs first
            )
        self._daemons.append(daemon)
        return daemon

    def clear(self) -> None:
        """Cancels all jobs, and removes what they left."""
        self.ask("scancel", "--user=root")
        wait_until(lambda: not self.ask("squeue", "-h"), 20, "the jobs' end")
        for path in self.leftovers():
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()

    def _stop(self) -> None:
        with suppress(OSError, subprocess.SubprocessError, TimeoutError):
            self.clear()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        end_processes_with(f"SLURM_CONF={self.folder}/slurm.conf")
        shutil.rmtree(self.folder)

    def run(self, *command: str, folder: Path | None = None, extra: Mapping[str, str] | None = None) -> str:
        """What one of Slurm's commands prints. Raises RuntimeError where it fails."""
        done = subprocess.run(
            command,
            env={**self.environment, **(extra or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} left with {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def ask(self, *command: str) -> str:
        """As `run`, but empty where it fails."""
        try:
            return self.run(*command)
        except RuntimeError:
            return ""

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED …"""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return next((word.removeprefix("JobState=") for word in words if word.startswith("JobState=")), "")

    def processes(self, job: str) -> dict[int, str]:
        """Number and command line of everything that runs for this job."""
        found = processes_with(f"SLURM_CONF={self.folder}/slurm.conf", f"SLURM_JOB_ID={job}")
        steps = processes_with(f"SLURM_CONF={self.folder}/slurm.conf")
        return found | {number: words for number, words in steps.items() if words.startswith(f"slurmstepd: [{job}.")}

    def leftovers(self) -> list[str]:
        """Files in the watched folders."""
        return [str(path) for folder in self.watched.values() for path in folder.iterdir()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
