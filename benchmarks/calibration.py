"""The runs that give the scaling model its constants, the runs that check it, and the fit between them.

Constants come from runs on 1 and 2 ranks alone. The checked runs have other microbatches, and up to as many ranks as
wanted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from benchmarks.common import Contender, Series, interleave, job
from benchmarks.hosts import linked_hosts, under_hosts
from benchmarks.model import TCP_MESSAGE, WIDTH, Curve, Host, Job, Network, Parts, Rates, fit, step
from benchmarks.processes import child, measure
from benchmarks.workloads import workload
from distsgd.parallel.reduction import ROWS

SMALL = "two-layer"
"""The network whose update shows what calls cost."""
SENT = (SMALL, "mlp512", "wide-adam")
"""The networks whose gradients show what messages cost: 0.16, 2.7 and 23 MB."""
ALONE, BUSY = 1, 2
"""Ranks of the runs for the constants: one core works while the others idle, or two work at once."""
MICROBATCHES = ((1, 8), (1, 32), (1, 96), (1, 384), (2, 32), (2, 96), (4, 48))
MICROBATCHES_OF_SMALL = ((1, 64), (2, 64))
"""(microbatches of a rank, examples of a microbatch) in those runs."""
LINKS = (1.0, 10.0)
"""Gbit/s of the links between two hosts on this machine."""
KERNEL_LATENCY = 25e-6
"""Seconds through this machine's kernel from one namespace to the other."""


@dataclass(frozen=True)
class Run:
    """One distsgd.fit whose steps are timed; on two hosts where `gigabits` says how they are linked."""

    workload: str
    ranks: int
    microbatches: int
    batch: int
    communication: str
    gigabits: float | None = None

    @property
    def name(self) -> str:
        """Such as `mlp512, shared, M=4, B=256`."""
        return f"{self.workload}, {self.communication}, M={self.microbatches}, B={self.batch}"

    @property
    def place(self) -> str:
        """The job that it is a part of, such as `2 ranks`."""
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        return ranks if self.gigabits is None else f"{ranks} on 2 hosts, {self.gigabits:g} Gbit/s"

    @property
    def job(self) -> Job:
        """What the model is asked."""
        on_node = self.ranks if self.gigabits is None else self.ranks // 2
        elements, messages = workload(self.workload).parameters, self.communication == "mpi"
        return Job(elements, self.batch, self.microbatches, self.ranks, on_node, messages)


def calibration(name: str) -> Iterator[Run]:
    """The runs that a network's own constants come from."""
    for ranks in (ALONE, BUSY):
        for own, examples in MICROBATCHES_OF_SMALL if name == SMALL else MICROBATCHES:
            yield Run(name, ranks, own * ranks, own * ranks * examples, "shared" if ranks > 1 else "auto")


def messages() -> list[Run]:
    """The runs that show what messages cost."""
    return [Run(name, BUSY, BUSY, BUSY * 64, "mpi") for name in SENT]


def calibrations(names: Sequence[str]) -> list[Run]:
    """All runs that constants come from."""
    return [*(run for name in dict.fromkeys((SMALL, *names)) for run in calibration(name)), *messages()]


def checks(name: str, chosen: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    """(what it is, a run that no constant comes from)."""
    batch = workload(name).batch
    for ranks in chosen.ranks:
        if ranks == 1:
            yield "1 rank", Run(name, 1, 4, batch, "auto")
            continue
        for kind, whole in (("strong", batch), ("weak", ranks * batch)):
            for communication in ("shared", "mpi"):
                yield f"{ranks} ranks, {kind}, {communication}", Run(name, ranks, max(4, ranks), whole, communication)
    for gigabits in LINKS if chosen.hosts else ():
        for ranks, communication in ((2, "auto"), (4, "auto"), (4, "mpi")):
            what = f"{ranks} ranks, strong, 2 hosts, {gigabits:g} Gbit/s, {communication}"
            yield what, Run(name, ranks, 4, batch, communication, gigabits)


def measured(names: Sequence[str], chosen: argparse.Namespace) -> dict[str, Series]:
    """All runs in one place are one job; by place, and `messages`."""
    wanted = [*calibrations(names), *(run for name in names for _, run in checks(name, chosen))]
    places: dict[str, dict[str, Run]] = {}
    for run in wanted:
        places.setdefault(run.place, {})[run.name] = run
    seconds = chosen.seconds / 5
    jobs = []
    for place, runs in places.items():
        first, *_ = runs.values()
        reported = [{**asdict(run), "name": name} for name, run in runs.items()]
        cores = 1 if first.ranks == 1 else None
        settings = {"runs": reported, "seconds": seconds, "examples": chosen.examples, "cores": cores}
        if first.gigabits is None:
            jobs.append(job(place, "step_parts", settings, None if first.ranks == 1 else first.ranks))
        else:
            jobs.append(_between_hosts(place, first.gigabits, first.ranks // 2, settings))
    jobs.append(job("messages", "messages", {"seconds": seconds, "elements": 16 * 1024}, 2))
    return interleave(jobs, chosen.rounds)


def _between_hosts(place: str, gigabits: float, on_each: int, settings: Mapping[str, Any]) -> Contender:
    def timed(_: int) -> dict[str, Any]:
        with linked_hosts(2, gigabits) as agent:
            return measure(under_hosts(agent, 2, on_each, child("step_parts", settings)))

    return Contender(place, timed)


@dataclass(frozen=True)
class Measurements:
    """Median seconds of parts, by place and run; what the model's constants are fitted to."""

    found: Mapping[str, Series]

    def missing(self) -> list[str]:
        """Places without which there are no constants."""
        needed = {run.place for run in calibrations(())} | {"messages"}
        return [place for place in sorted(needed) if self.found[place].skipped is not None]

    def seconds(self, run: Run, part: str) -> float:
        """Of a run in a place that could be measured."""
        return self.found[run.place].median(f"{run.name}: {part}")

    def curve(self, name: str, cores: int, names: Sequence[str]) -> Curve:
        """The model of one network, weak, with the workload's own minibatch."""
        host, work = self._host(cores, names), workload(name)
        alone, busy = (self._rates(name, ranks, host) for ranks in (ALONE, BUSY))
        return Curve(work.parameters, work.batch, True, alone, busy, host)

    def _host(self, cores: int, names: Sequence[str]) -> Host:
        shared = [run for run in calibrations(names) if run.communication == "shared"]
        barrier = median((self.seconds(run, "gather") + self.seconds(run, "all_gather")) / 2 for run in shared)
        updates = [((1.0, *_update_columns(run)), self.seconds(run, "update")) for run in calibration(SMALL)]
        update, *_ = fit(updates)
        message, peer = (self.found["messages"].median(key) for key in ("message", "peer"))
        sent = messages()
        # Both halves move as many bytes; the first packs them as well. Noise must not leave less than nothing.
        copying = [((1.0, _bytes(run)), _rest(self.seconds(run, "all_gather"), message)) for run in sent]
        all_gather, copy = fit(copying)
        packing = []
        for run in sent:
            others = message + peer + barrier + copy * _bytes(run)
            packing.append(((1.0, run.job.traffic.sent), _rest(self.seconds(run, "gather"), others)))
        gather, pack = fit(packing)
        return Host(cores, barrier, update, gather, all_gather, pack, copy, message, peer)

    def _rates(self, name: str, ranks: int, host: Host) -> Rates:
        computes, updates = [], []
        for run in calibration(name):
            if run.ranks != ranks:
                continue
            own, seconds = run.microbatches // ranks, self.seconds(run, "update")
            columns = (1.0, own, run.batch / ranks, max(0, own - ROWS) * run.job.elements)
            computes.append((columns, self.seconds(run, "compute")))
            updates.append((_update_columns(run), _rest(seconds, host.update)))
        return Rates(*fit(computes), *fit(updates))

    def predicted(self, run: Run, curve: Curve) -> Parts:
        """What the model says of a run."""
        rates = curve.alone if run.ranks == 1 else curve.busy
        if run.gigabits is None:
            return step(run.job, rates, curve.host)
        host = replace(curve.host, cores=max(1, curve.host.cores // 2))
        return step(run.job, rates, host, Network(run.gigabits, KERNEL_LATENCY, TCP_MESSAGE))


def _rest(seconds: float, known: float) -> float:
    """What a measured time leaves for what isn't known yet."""
    return max(seconds - known, 0.1 * seconds)


def _update_columns(run: Run) -> tuple[float, float]:
    """(elements of a rank, additions to them)."""
    own = max(run.job.own)
    rows = run.ranks * min(run.microbatches // run.ranks, ROWS)
    return own, own * (rows - 1)


def _bytes(run: Run) -> float:
    """What a rank receives in each half of the reduction, at most."""
    return WIDTH * (run.job.elements - min(run.job.own))
