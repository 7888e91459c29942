"""Hosts on this machine: network namespaces on one bridge, each with its own name, address and shared memory."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from tests.cluster.tools import end_processes_with, find_program, is_open_mpi, processes_with, wait_until

MARK = "DISTSGD_TEST_HOSTS"
_NAMESPACES = ("--net", "--uts", "--mount", "--ipc")

# Becomes a host; the interface comes later, from outside.
_HOST = """\
hostname {name} && mount -t tmpfs tmpfs /dev/shm && mount --bind {folder}/hosts /etc/hosts && mount -t sysfs sysfs /sys
ip link set lo up && touch {folder}/{name}.ready && exec sleep infinity
"""
# What mpirun takes for ssh: AGENT [options] host command
_AGENT = """\
#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1
shift
export TMPDIR={folder}/tmp.$host
exec nsenter --target "$(cat {folder}/$host.pid)" {namespaces} sh -c "cd $PWD && $*"
"""


@cache
def why_not() -> str:
    """Why there can be no hosts here, empty where there can."""
    if sys.platform != "linux":
        return f"network namespaces need Linux, and this is {platform.system()}"
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv") if find_program(name) is None]
    if missing:
        return f"there is no {', '.join(missing)}: apt-get install iproute2 util-linux"
    tried = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, timeout=20)
    if tried.returncode:
        return f"network namespaces can't be made here: {tried.stderr.strip()}"
    return ""


class Hosts:
    """h1, h2 … with the addresses 10.77.0.1, 10.77.0.2 …; they last as long as the `with` block."""

    def __init__(self, count: int) -> None:
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="distsgd-hosts-", dir="/tmp"))
        self.agent = self.folder / "agent"
        self.environment = {**os.environ, MARK: str(self.folder), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}

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
        lines = [f"10.77.0.{number} {name}\n" for number, name in enumerate(self.names, 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        self.agent.write_text(_AGENT.format(folder=self.folder, namespaces=" ".join(_NAMESPACES)))
        self.agent.chmod(0o755)
        switch = f"ip link add br0 type bridge && ip link set br0 up && touch {self.folder}/switch.ready"
        self._hold("switch", ["--net"], f"{switch} && exec sleep infinity")
        for name in self.names:
            (self.folder / f"tmp.{name}").mkdir()
            self._hold(name, _NAMESPACES, _HOST.format(name=name, folder=self.folder))
        wait_until(self._all_ready, 20, "making the hosts")
        for number, name in enumerate(self.names, 1):
            self._connect(name, f"10.77.0.{number}")

    def _hold(self, name: str, namespaces: Sequence[str], script: str) -> None:
        """A process that keeps the namespaces of a host alive; it ends with the tests, however they end."""
        line = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "sh", "-c", script]
        with (self.folder / f"{name}.out").open("wb") as output:
            holder = subprocess.Popen(
                line,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # so that Ctrl-C leaves it to those who use it
            )
        self._holders[name] = holder
        (self.folder / f"{name}.pid").write_text(str(holder.pid))

    def _all_ready(self) -> bool:
        for name, holder in self._holders.items():
            if holder.poll() is not None:
                raise RuntimeError(f"{name} ended: {(self.folder / f'{name}.out').read_text()}")
        return all((self.folder / f"{name}.ready").exists() for name in self._holders)

    def _connect(self, name: str, address: str) -> None:
        switch, host = self._holders["switch"].pid, self._holders[name].pid
        self._ip("link", "add", "eth0", "netns", str(host), "type", "veth", "peer", f"to-{name}", "netns", str(switch))
        self._ip("link", "set", f"to-{name}", "master", "br0", "up", inside="switch")
        self._ip("addr", "add", f"{address}/24", "dev", "eth0", inside=name)
        self._ip("link", "set", "eth0", "up", inside=name)

    def _ip(self, *arguments: str, inside: str | None = None) -> None:
        enter = [] if inside is None else ["nsenter", "--target", str(self._holders[inside].pid), "--net"]
        done = subprocess.run(
            [*enter, "ip", *arguments], env=self.environment, capture_output=True, text=True, timeout=20
        )
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def inside(self, name: str, folder: Path, command: Sequence[str]) -> list[str]:
        """The command that runs another one on a host, in this folder."""
        enter = ["nsenter", "--target", str(self._holders[name].pid), *_NAMESPACES]  # which leads to the root folder
        return [*enter, "env", f"--chdir={folder}", f"TMPDIR={self.folder}/tmp.{name}", *command]

    def mpirun(self, path: str, places: Mapping[str, int], folder: Path, command: Sequence[str]) -> list[str]:
        """The command that starts mpirun on h1 in this folder, with so many ranks on each host."""
        named = ",".join(f"{name}:{count}" for name, count in places.items())
        if is_open_mpi(path):
            line = [path, "--prtemca", "plm_ssh_agent", str(self.agent), "--host", named, "--bind-to", "none"]
            line += ["--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp", "--mca", "mpi_yield_when_idle", "1"]
        else:
            # Without UCX_TLS it takes hosts of one machine for one host.
            line = ["env", "UCX_TLS=tcp,self", path, "-launcher", "ssh", "-launcher-exec", str(self.agent)]
            line += ["-hosts", named]
        return self.inside("h1", folder, [*line, "-n", str(sum(places.values())), *command])

    def processes(self) -> dict[int, str]:
        """Number and command line of everything that runs on the hosts."""
        held = {holder.pid for holder in self._holders.values()}
        found = processes_with(f"{MARK}={self.folder}")
        return {number: words for number, words in found.items() if number not in held}

    def leftovers(self) -> list[str]:
        """Files in the hosts' shared memory and temporary folders."""
        folders = [self.folder / f"tmp.{name}" for name in self.names]
        folders += [Path(f"/proc/{self._holders[name].pid}/root/dev/shm") for name in self.names]
        return [str(path) for folder in folders for path in folder.iterdir()]

    def clear(self) -> None:
        """Ends what runs on the hosts."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _stop(self) -> None:
        end_processes_with(f"{MARK}={self.folder}")
        for holder in self._holders.values():
            with suppress(subprocess.TimeoutExpired):
                holder.wait(5)
        shutil.rmtree(self.folder)
