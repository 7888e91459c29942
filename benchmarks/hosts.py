"""Hosts on one machine: network namespaces joined by a bridge, each link limited by a token bucket (Linux, root).

Bandwidth is real, latency is the kernel's own, and all hosts share the machine's cores. The MPI library must be MPICH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import ROOT, Unavailable, mpirun

HOST = "distsgd-host"
SWITCH = "distsgd-switch"
ADDRESS = "10.79.0"
BURST = "256kb"
"""What may pass at once: small beside a gradient, large enough for a kernel that looks a thousand times a second."""

# What mpirun calls in place of ssh: drops ssh's options and runs the rest in the namespace, under its own host name.
AGENT = """#!/bin/sh
while :; do case "$1" in -*) shift;; *) break;; esac; done
host=$1; shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; cd '{root}'; $*"
"""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")


@contextmanager
def linked_hosts(count: int, gigabits: float) -> Iterator[Path]:
    """So many namespaces with links of so many Gbit/s, while inside; the agent that starts processes in them.

    Raises Unavailable where they can't be made.
    """
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "tc", "unshare", "hostname")):
        raise Unavailable("hosts need root, ip, tc, unshare and hostname")
    made: list[str] = []

    def make(name: str) -> None:
        _run("ip", "netns", "add", name)
        made.append(name)

    try:
        make(SWITCH)
        _run("ip", "-n", SWITCH, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", SWITCH, "link", "set", "bridge0", "up")
        for number in range(1, count + 1):
            name = f"{HOST}{number}"
            make(name)
            port = f"port{number}"
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", SWITCH)
            _run("ip", "-n", SWITCH, "link", "set", port, "master", "bridge0", "up")
            _run("ip", "-n", name, "address", "add", f"{ADDRESS}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            limit = ("rate", f"{gigabits:g}gbit", "burst", BURST, "latency", "20ms")
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        with tempfile.TemporaryDirectory() as folder:
            agent = Path(folder) / "agent"
            agent.write_text(AGENT.format(root=ROOT), encoding="utf-8")
            agent.chmod(0o755)
            yield agent
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def under_hosts(agent: Path, count: int, on_each: int, command: Sequence[str], code: str | Path = ROOT) -> list[str]:
    """The command on so many ranks of each host, with the packages of the folder `code`.

    Messages take TCP, for shared memory would reach across namespaces.
    """
    where = ",".join(f"{HOST}{number}:{on_each}" for number in range(1, count + 1))
    launcher = ("-launcher", "ssh", "-launcher-exec", str(agent), "-iface", "eth0", "-hosts", where)
    start = f'hostname {HOST}1; cd "$0"; exec "$@"'
    return ["env", "UCX_TLS=tcp,self", "UCX_NET_DEVICES=eth0,lo", f"PYTHONPATH={code}", "ip", "netns", "exec",
            f"{HOST}1", "unshare", "--uts", "sh", "-c", start, str(code), mpirun(), *launcher, "-n",
            str(count * on_each), *command]  # fmt: skip
