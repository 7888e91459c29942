"""Two hosts on one machine: network namespaces joined by a bridge, each link limited by a token bucket (Linux, root).

Bandwidth is real, latency is the kernel's own, and both hosts share the machine's cores. The MPI library must be MPICH.
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

NAMES = ("distsgd-host1", "distsgd-host2")
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
def two_hosts(gigabits: float) -> Iterator[Path]:
    """Two namespaces with links of so many Gbit/s, while inside; the agent that starts processes in them.

    Raises Unavailable where they can't be made.
    """
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "tc", "unshare", "hostname")):
        raise Unavailable("two hosts need root, ip, tc, unshare and hostname")
    made: list[str] = []

    def make(name: str) -> None:
        _run("ip", "netns", "add", name)
        made.append(name)

    try:
        make(SWITCH)
        _run("ip", "-n", SWITCH, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", SWITCH, "link", "set", "bridge0", "up")
        for number, name in enumerate(NAMES, 1):
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


def under_two_hosts(agent: Path, on_each: int, command: Sequence[str]) -> list[str]:
    """The command on so many ranks a host. Messages take TCP, for shared memory would reach across namespaces."""
    where = ",".join(f"{name}:{on_each}" for name in NAMES)
    launcher = ("-launcher", "ssh", "-launcher-exec", str(agent), "-iface", "eth0", "-hosts", where)
    start = f'hostname {NAMES[0]}; exec "$@"'
    return ["env", "UCX_TLS=tcp,self", "UCX_NET_DEVICES=eth0,lo", "ip", "netns", "exec", NAMES[0], "unshare", "--uts",
            "sh", "-c", start, "sh", mpirun(), *launcher, "-n", str(2 * on_each), *command]  # fmt: skip
