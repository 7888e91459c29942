"""Seconds of a training step on any number of ranks and nodes, from constants that a small machine can measure.

A step has four parts, one after the other. `compute`: a rank's microbatches. `gather`: gradients go to who owns the
elements. `update`: the owner adds all rows and updates. `all_gather`: the parameters go to everybody. On one node
`gather` and `all_gather` are a barrier each; between nodes, an all-to-all and an all-gather, whose messages cost
software, copies in the host, latency and time on the node's link, none of which hides another. (In the manner of LogGP:
Alexandrov, Ionescu, Schauser & Scheiman, SPAA 1995.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from distsgd.parallel.message_reduction import Groups
from distsgd.parallel.reduction import ROWS, Partition
from distsgd.parallel.tree import maximal_subtrees, part

FARTHEST = 1024
"""Ranks up to which curves go."""
WIDTH = 4
"""Bytes of a float32."""
IN_FLIGHT = 32
"""Messages that an all-to-all keeps in flight at a time (MPICH's MPIR_CVAR_ALLTOALL_THROTTLE)."""
USABLE = 0.94
"""The part of a link's nominal bandwidth that carries payload: TCP's, in Ethernet's packets of 1,500 bytes."""


@dataclass(frozen=True)
class Rates:
    """What training one network costs a core, in seconds.

    step      once a step, whatever it holds
    microbatch      a microbatch, however short: calls, and all weights read and all gradients written once
    example   an example
    addition  an element, for each addition that a rank makes of its own microbatches
    update    an element that a rank owns
    total     an element that a rank owns, for each addition of another row to it
    """

    step: float
    microbatch: float
    example: float
    addition: float
    update: float
    total: float


@dataclass(frozen=True)
class Host:
    """What ranks and messages cost on one node, in seconds.

    cores          that ranks share
    barrier        of two ranks
    update         an update, however few its elements
    gather         an all-to-all, however small; all_gather: an all-gather
    pack           an element that is copied into a message
    copy           a byte that a rank receives through the MPI library (it sends as many meanwhile)
    message        a message to, and one from, another rank in the library
    peer           the same in distsgd's own bookkeeping
    """

    cores: int
    barrier: float
    update: float
    gather: float
    all_gather: float
    pack: float
    copy: float
    message: float
    peer: float


@dataclass(frozen=True)
class Network:
    """The link of each node, full duplex, through a switch that is never in the way.

    latency  seconds from one process to another; message: seconds of software for a message each way
    """

    gigabits: float
    latency: float
    message: float

    @property
    def seconds_per_byte(self) -> float:
        """Of payload."""
        return 8e-9 / self.gigabits / USABLE

    @property
    def name(self) -> str:
        """Such as `10 Gbit/s`."""
        return f"{self.gigabits:g} Gbit/s"


TCP_MESSAGE = 7e-6
"""Seconds: measured through TCP between two namespaces. Kernel bypass costs what shared memory does, about 1 µs."""
NETWORKS = (
    Network(1, 50e-6, TCP_MESSAGE),
    Network(10, 25e-6, TCP_MESSAGE),
    Network(25, 5e-6, 1e-6),
    Network(100, 2e-6, 1e-6),
)
"""With usual latencies: TCP on the two slow ones, kernel bypass on the fast ones."""


@dataclass(frozen=True)
class Job:
    """A network of so many parameters, trained with global minibatches of `batch` on `ranks` ranks.

    on_node   ranks a node, the last node may have fewer
    messages  every rank has a replica of its own (`--communication mpi`); else the ranks of a node share one
    """

    elements: int
    batch: int
    microbatches: int
    ranks: int
    on_node: int
    messages: bool = False

    @property
    def nodes(self) -> int:
        """How many there are."""
        return -(-self.ranks // self.on_node)

    @property
    def neighbours(self) -> int:
        """Ranks on a full node."""
        return min(self.ranks, self.on_node)

    @property
    def together(self) -> int:
        """Ranks that share a replica, on a full node."""
        return 1 if self.messages else self.neighbours

    @cached_property
    def groups(self) -> Groups:
        """Which ranks share a replica."""
        return Groups(tuple(range(0, self.ranks, self.together)), self.ranks)

    @cached_property
    def own(self) -> list[int]:
        """Elements that each rank updates."""
        return Partition(self.microbatches, self.ranks, self.elements).counts()

    @cached_property
    def sums(self) -> list[int]:
        """Sums that each group sends: the fewest nodes of the tree over its microbatches."""
        microbatches = [part(self.microbatches, self.ranks, rank) for rank in range(self.ranks)]
        ends = [
            (microbatches[first][0], microbatches[min(first + self.together, self.ranks) - 1][1])
            for first in self.groups.firsts
        ]
        return [len(maximal_subtrees(*span, self.microbatches)) for span in ends]

    @cached_property
    def rows(self) -> list[int]:
        """Rows that the ranks of each group fill, all together."""
        microbatches = [part(self.microbatches, self.ranks, rank) for rank in range(self.ranks)]
        rows = [
            max(min(last - first, ROWS), len(maximal_subtrees(first, last, self.microbatches)))
            for first, last in microbatches
        ]
        return [sum(rows[first : first + self.together]) for first in self.groups.firsts]

    @cached_property
    def traffic(self) -> Traffic:
        """What travels in `gather`."""
        return traffic_of(self)


@dataclass(frozen=True)
class Traffic:
    """Elements of gradients in `gather`: what the busiest rank sends and receives, and the busiest node, into and out
    of which neighbours' messages don't go."""

    sent: int
    received: int
    link: int


def traffic_of(job: Job) -> Traffic:
    """Each group sends its sums of what a rank owns, from one rank of the group."""
    import numpy as np

    own, rank = np.array(job.own), np.arange(job.ranks)
    node, place = rank // job.on_node, rank % job.together
    sent, received = np.zeros(job.ranks), np.zeros(job.ranks)
    out, into = np.zeros(job.nodes), np.zeros(job.nodes)
    for group, sums in enumerate(job.sums):
        members = job.groups.members(group)
        others = (rank < members.start) | (rank >= members.stop)
        partner, count = members.start + place[others] % len(members), sums * own[others]
        sent += np.bincount(partner, count, job.ranks)
        received[others] += count
        away = node[others] != node[members.start]
        out[node[members.start]] += count[away].sum()
        into += np.bincount(node[others][away], count[away], job.nodes)
    return Traffic(int(sent.max()), int(received.max()), int(max(out.max(), into.max())))


@dataclass(frozen=True)
class Parts:
    """Seconds of a step."""

    compute: float
    gather: float
    update: float
    all_gather: float

    @property
    def step(self) -> float:
        """All of it."""
        return self.compute + self.gather + self.update + self.all_gather


def step(job: Job, rates: Rates, host: Host, network: Network | None = None) -> Parts:
    """The parts of a step, of the rank that has most to do. Several nodes need a network.

    Ranks that share cores take turns: everything that a core does takes as many times longer.
    """
    if job.nodes > 1 and network is None:
        raise ValueError(f"a job on {job.nodes} nodes needs a network")
    crowd = max(1.0, job.neighbours / host.cores)
    compute = crowd * _compute(job, rates)
    if job.nodes == 1 and not job.messages:
        barrier = _barrier(job.ranks, host)
        return Parts(compute, barrier, crowd * _update(job, rates, host), barrier)
    gather, all_gather = _gather(job, rates, host, network), _all_gather(job, host, network)
    return Parts(compute, gather, crowd * _update(job, rates, host), all_gather)


def _compute(job: Job, rates: Rates) -> float:
    microbatches = -(-job.microbatches // job.ranks)
    additions = max(0, microbatches - ROWS) * job.elements
    examples = math.ceil(microbatches * job.batch / job.microbatches)
    return rates.step + microbatches * rates.microbatch + examples * rates.example + additions * rates.addition


def _update(job: Job, rates: Rates, host: Host) -> float:
    """A rank adds the rows of its own group and the sums of the others."""
    rows = sum(job.sums) + max(rows - sums for rows, sums in zip(job.rows, job.sums, strict=True))
    return host.update + max(job.own) * (rates.update + (rows - 1) * rates.total)


def _barrier(ranks: int, host: Host) -> float:
    """As many rounds as it takes for each rank to have heard of all."""
    return host.barrier * _rounds(ranks)


def _rounds(ranks: int) -> int:
    return math.ceil(math.log2(ranks))


def _gather(job: Job, rates: Rates, host: Host, network: Network | None) -> float:
    """All-gather of what ranks say, which is short; sums; all-to-all."""
    crowd = max(1.0, job.neighbours / host.cores)
    additions = max(rows - sums for rows, sums in zip(job.rows, job.sums, strict=True)) * rates.total
    reported = _barrier(job.neighbours, host) + crowd * (job.ranks - 1) * host.peer
    inside = job.neighbours - 1 if job.messages else 0
    bytes_moved = WIDTH * max(job.traffic.sent, job.traffic.received)
    seconds = reported + crowd * (
        host.gather + inside * host.message + job.traffic.sent * (host.pack + additions) + bytes_moved * host.copy
    )
    if network is None or job.nodes == 1:
        return seconds
    away = len(job.groups.firsts) - job.neighbours // job.together
    talk = _rounds(job.nodes) * (network.latency + network.message) + math.ceil(away / IN_FLIGHT) * network.latency
    return seconds + crowd * away * network.message + talk + WIDTH * job.traffic.link * network.seconds_per_byte


def _all_gather(job: Job, host: Host, network: Network | None) -> float:
    """Each rank gives what it owns to one rank of each other group, and a node's ranks wait for each other.

    Where every rank has a replica it is an all-gather: a ring in rank order, which is the order of nodes, so that a
    slice passes each link between nodes once.
    """
    crowd, others = max(1.0, job.neighbours / host.cores), job.ranks - 1
    if job.together > 1 and network is not None:
        least = min(sum(job.own[first : first + job.on_node]) for first in range(0, job.ranks, job.on_node))
        link = WIDTH * (job.elements - least)
        away = len(job.groups.firsts) - 1
        software = host.all_gather + away * network.message + link / job.neighbours * host.copy
        latency = math.ceil(away / IN_FLIGHT) * network.latency
        return crowd * software + latency + link * network.seconds_per_byte + _barrier(job.neighbours, host)
    received = WIDTH * (job.elements - min(job.own))
    if network is None or job.nodes == 1:
        return crowd * (host.all_gather + others * host.message + received * host.copy)
    seconds = crowd * (host.all_gather + others * max(host.message, network.message) + received * host.copy)
    return seconds + (job.nodes - 1) * network.latency + received * network.seconds_per_byte


@dataclass(frozen=True)
class Curve:
    """How a network of `elements` parameters scales with one microbatch a rank, on nodes with a core for each rank.

    batch  examples of a step, or of a rank where `weak`
    alone  a core's rates while the others idle; busy: while all work
    """

    elements: int
    batch: int
    weak: bool
    alone: Rates
    busy: Rates
    host: Host

    @property
    def title(self) -> str:
        """What is scaled."""
        return f"weak: {self.batch} examples a rank" if self.weak else f"strong: {self.batch:,} examples a step"

    @property
    def ranks(self) -> list[int]:
        """The powers of two up to FARTHEST that have something to do."""
        powers = [1 << exponent for exponent in range(FARTHEST.bit_length())]
        return [ranks for ranks in powers if self.weak or ranks <= self.batch]

    def examples_per_second(self, ranks: int, on_node: int, network: Network, messages: bool = False) -> float:
        """Of the whole job."""
        batch = self.batch * (ranks if self.weak else 1)
        job = Job(self.elements, batch, ranks, ranks, on_node, messages and ranks > on_node)
        host = replace(self.host, cores=on_node)
        return batch / step(job, self.alone if ranks == 1 else self.busy, host, network).step

    def speed_up(self, ranks: int, on_node: int, network: Network, messages: bool = False) -> float:
        """Over one rank."""
        one = self.examples_per_second(1, on_node, network)
        return self.examples_per_second(ranks, on_node, network, messages) / one

    def metadata(self) -> dict[str, Any]:
        """For a file; `Curve.of` reads them."""
        return asdict(self)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Curve:
        """The curve that these metadata describe."""
        rates = {key: Rates(**metadata[key]) for key in ("alone", "busy")}
        return cls(metadata["elements"], metadata["batch"], metadata["weak"], **rates, host=Host(**metadata["host"]))


def fit(points: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Coefficients c ≥ 0 with Σ cₖ xₖ ≈ seconds for the points (x, seconds), by least squares of relative errors.

    A coefficient that would be negative is held at 0, the worst first.
    """
    import numpy as np

    x = np.array([columns for columns, _ in points], float) / np.array([[seconds] for _, seconds in points])
    scale = np.abs(x).max(axis=0)
    kept = [column for column in range(x.shape[1]) if scale[column] > 0]
    found = [0.0] * x.shape[1]
    while kept:
        solution = np.linalg.lstsq(x[:, kept] / scale[kept], np.ones(len(points)), rcond=None)[0]
        worst = int(np.argmin(solution))
        if solution[worst] >= 0:
            for column, value in zip(kept, solution, strict=True):
                found[column] = float(value / scale[column])
            break
        del kept[worst]
    return found
