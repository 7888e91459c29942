"""Messages that travel while ranks compute: the same bits as one rank's, how early, and nothing left at the end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd import SGD, Callback, DataParallel, FunctionObjective
from distsgd.core.device import Array
from distsgd.core.errors import DistsgdError
from distsgd.core.random import normal
from distsgd.core.status_table import Heartbeat
from distsgd.parallel import Communicator
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.parallel.overlapped_reduction import OverlappedReduction
from distsgd.parallel.reduction import BLOCK, Partition, Plan
from distsgd.parallel.sections import LEAST, Sectioned
from distsgd.run.build_trainer import make_reduction
from distsgd.run.fit import fit
from tests.threads import ThreadChannels, ThreadCommunicator, ThreadMessage, run_on_threads

F32 = np.dtype(np.float32)
X = normal((150, 90), 1, "x").astype(np.float32)
Y = np.arange(150) * 7 % 10
OPTIONS: dict[str, Any] = {
    "hidden": (700, 310),
    "batch_size": 40,
    "epochs": 2,
    "microbatches": 4,
    "learning_rate": 0.01,
}
"""An epoch of four steps, the last of 30 examples; the network has 18 blocks."""


def trained(communicator: Any, options: Mapping[str, Any], model: Any = "mlp") -> Any:
    return fit(model, (X, Y), communicator=communicator, **{**OPTIONS, **options})


def kind_of(communicator: Communicator, elements: int) -> type:
    plan = Plan(Partition(4, communicator.size, elements), 1, F32, 1, 2)
    return type(make_reduction(communicator, plan, "auto")[0])


def test_small_networks_have_no_sections() -> None:
    least = LEAST * 3 * BLOCK - BLOCK + 1  # elements of as many blocks
    for elements, kind in ((least - 1, MessageReduction), (least, OverlappedReduction)):
        assert run_on_threads(3, lambda c, n=elements: kind_of(c, n), hosts=("a", "a", "b")) == [kind] * 3


@given(ranks=st.integers(1, 40), elements=st.integers(1, 200 * BLOCK), replicas=st.integers(2, 8))
@settings(max_examples=60)
def test_sections_tile_the_buffer(ranks: int, elements: int, replicas: int) -> None:
    partition = Sectioned.of(Partition(40, ranks, elements), replicas)
    assert (partition is None) == (-(-elements // BLOCK) < LEAST * ranks or replicas > 6)
    if partition is None:
        return
    owned = sorted((span.start, span.stop) for rank in range(ranks) for span in partition.spans_of(rank))
    spans = [span for span in owned if span[0] < span[1]]
    assert [start for start, _ in spans] == [0, *[stop for _, stop in spans[:-1]]]
    assert spans[-1][1] == elements
    assert all(start % BLOCK == 0 for start, _ in spans)
    assert sum(partition.counts()) == elements
    # Every rank has as much as the others, but for one block in the last section, and some of every other section.
    assert max(partition.counts()) - min(partition.counts()) <= BLOCK
    for section in partition.sections[:-1]:
        assert {section.elements_of(rank).stop > section.elements_of(rank).start for rank in range(ranks)} == {True}


CASES: list[tuple[str, dict[str, Any]]] = [
    ("momentum", {"optimizer": "momentum", "log_every": 3}),
    ("adam", {"optimizer": "adam", "microbatches": 8}),
    ("clipped", {"optimizer": "adamw", "clip_norm": 0.1, "weight_decay": 0.01}),
    ("lars", {"optimizer": "lars", "log_every": 1}),
    ("lamb", {"optimizer": "lamb", "clip_norm": 1.0}),
    ("guarded", {"optimizer": "momentum", "on_non_finite": "skip"}),
    ("frozen", {"optimizer": "momentum", "freeze": ["dense1.*"], "l2": 1e-4}),
    ("normalized", {"batch_norm": True, "dropout": 0.2, "l1": 1e-5}),
    ("short", {"batch_size": 149, "microbatches": 16}),
    ("threads", {"threads": 2, "microbatches": 8}),
    ("replicas", {"check_replicas": 3, "log_every": 2}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_same_bits_on_hosts(name: str, options: dict[str, Any]) -> None:
    """On ranks of one host that send messages, of several hosts with one or more ranks, and on one rank."""
    alone = trained("self", options)
    for hosts in ("aabb", "abc", "aab"):
        results = run_on_threads(len(hosts), lambda c: trained(c, options), tuple(hosts))
        assert {one.summary["parameters_sha256"] for one in results} == {alone.summary["parameters_sha256"]}, hosts
        assert results[0].history[-1]["train_loss"] == alone.history[-1]["train_loss"]
        assert results[0].history[-1]["gradient_norm"] == alone.history[-1]["gradient_norm"]
    apart = run_on_threads(2, lambda c: trained(c, {**options, "communication": "mpi"}))
    assert apart[0].summary["parameters_sha256"] == alone.summary["parameters_sha256"]


class Noting(ThreadCommunicator):
    """Notes when messages between ranks begin, and when flags have been exchanged."""

    def __init__(self, inside: Any) -> None:
        super().__init__(inside.rank, inside._meeting, inside.hosts)
        self.events: list[tuple[str, int, int]] = []
        self.transport.channels = self._channels  # type: ignore[method-assign]

    def _channels(self, heartbeat: Heartbeat) -> ThreadChannels:
        noting = self

        class Channels(ThreadChannels):
            def send(self, array: Array, rank: int, tag: int) -> ThreadMessage:
                message = super().send(array, rank, tag)
                begin = message.Start

                def start() -> None:
                    noting.events.append(("parameters" if tag % 2 else "sums", rank, array.nbytes))
                    begin()

                message.Start = start  # type: ignore[method-assign]
                return message

            def allgather_slices(self, flat: Array, counts: Any) -> None:
                super().allgather_slices(flat, counts)
                noting.events.append(("flags", -1, 0))

        return Channels(self, heartbeat)


def events_of(options: Mapping[str, Any], hosts: str) -> list[list[tuple[str, int, int]]]:
    """By rank, what begins in a run, and the exchanges of flags."""

    def run(communicator: Any) -> list[tuple[str, int, int]]:
        noting = Noting(communicator)
        trained(noting, options)
        return noting.events

    return run_on_threads(len(hosts), run, tuple(hosts))


def of_one_step(hosts: str) -> list[list[str]]:
    """By rank, the events of one step in the middle of a run, from one exchange of flags to the next."""
    found = []
    for events in events_of({"max_steps": 6, "epochs": 9}, hosts):
        flags = [index for index, event in enumerate(events) if event[0] == "flags"]
        found.append([what for what, _, _ in events[flags[2] : flags[3]]])
    return found


@pytest.mark.parametrize("hosts", ["aabb", "abcd"])
def test_each_gradient_travels_once_a_host(hosts: str) -> None:
    whole, names = 4 * (90 * 700 + 700 + 700 * 310 + 310 + 310 * 10 + 10), sorted(set(hosts))
    sent: Counter[str] = Counter()
    for rank, events in enumerate(events_of({"max_steps": 5, "epochs": 9}, hosts)):
        for what, to, count in events:
            assert what == "flags" or hosts[to] != hosts[rank]
            sent[what] += count
    assert sent["sums"] == sent["parameters"] == 5 * (len(names) - 1) * whole


def test_gradients_leave_before_flags_and_parameters_after_them() -> None:
    """The last layers' sums leave while the first layer's are computed: before the rank reports how the step went."""
    for kinds in of_one_step("ab"):
        last = len(kinds) - 1 - kinds[::-1].index("parameters")
        assert kinds[0] == "flags"
        assert "sums" in kinds[last + 1 :]  # those of the next step


def loss_and_grad(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    grads["w"][...] = params["w"] * 0.5 + batch.x.sum()
    if not np.isfinite(batch.x).all():
        raise ZeroDivisionError("the user's own mistake")
    return float(params["w"].sum()), len(batch)


def test_functions_of_ones_own_have_no_layers() -> None:
    """Nothing is known about when a function has written a gradient: its sums leave after all of it."""
    model = FunctionObjective(loss_and_grad, {"w": np.ones(20 * BLOCK, np.float32)})
    alone = fit(model, (X, Y), communicator="self", **{k: v for k, v in OPTIONS.items() if k != "hidden"})
    options = {"hidden": None}

    def run(communicator: Communicator) -> Any:
        return fit(model, (X, Y), communicator=communicator, **{k: v for k, v in OPTIONS.items() if k not in options})

    for one in run_on_threads(3, run, tuple("aab")):
        assert one.summary["parameters_sha256"] == alone.summary["parameters_sha256"]


@pytest.mark.parametrize("hosts", ["aabb", "abc"])
def test_what_fails_on_one_rank_ends_all_and_leaves_nothing_in_flight(hosts: str) -> None:
    """Afterwards the same ranks train another network, with the bits of one rank."""
    alone = trained("self", {})

    class Failing(Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            if step == 2:
                raise ZeroDivisionError("a mistake after step 2")

    def run(communicator: Communicator) -> tuple[str, str]:
        with pytest.raises((DistsgdError, ZeroDivisionError)) as raised:
            trained(communicator, {"callbacks": [Failing()]})
        again = trained(communicator, {})
        return str(raised.value), again.summary["parameters_sha256"]

    for text, digest in run_on_threads(len(hosts), run, tuple(hosts)):
        assert "a mistake after step 2" in text
        assert digest == alone.summary["parameters_sha256"]


@pytest.mark.parametrize("hosts", ["aabb", "abc"])
@pytest.mark.parametrize("reaction", ["stop", "skip"])
def test_nothing_is_updated_where_a_loss_is_not_finite(hosts: str, reaction: str) -> None:
    x = X.copy()
    x[Y == 3] = np.inf
    options = {**OPTIONS, "on_non_finite": reaction, "batch_size": 10}

    def run(communicator: Any) -> Any:
        try:
            result = fit("mlp", (x[:60], Y[:60]), communicator=communicator, **options)
        except DistsgdError as error:
            return str(error)
        return result.summary["parameters_sha256"], [record.get("skipped") for record in result.history]

    alone = run("self")
    assert run_on_threads(len(hosts), run, tuple(hosts)) == [alone] * len(hosts)


def test_processors_that_reorder_stores_meet_by_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a host can't look at each other's counts there; hosts with one rank need none."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    alone = trained("self", {})
    for hosts in ("aabb", "ab"):
        for one in run_on_threads(len(hosts), lambda c: trained(c, {}), tuple(hosts)):
            assert one.summary["parameters_sha256"] == alone.summary["parameters_sha256"]
    assert of_one_step("aabb")[0][-1] == "parameters"  # and no sums of the next step before its flags


def test_waiting_for_a_rank_shows_in_the_status_table() -> None:
    """The watchdog names who is missing: a rank that waits for messages is in a collective."""
    seen: list[int] = []

    def run(communicator: Any) -> None:
        from distsgd.core.status_table import Field, private_heartbeat

        heartbeat = private_heartbeat()
        channels = ThreadChannels(communicator, heartbeat)
        if communicator.rank == 1:
            late.wait()
            message = channels.send(np.ones(4, np.uint8), 0, 2)
            message.Start()
            channels.wait([message])
            return
        message = channels.receive(np.zeros(4, np.uint8), 1, 2)
        message.Start()
        progress = channels.progress

        def look() -> None:
            seen.append(heartbeat.line[Field.STATE] % 16)
            late.set()
            progress()

        channels.progress = look  # type: ignore[method-assign]
        channels.wait([message])
        seen.append(heartbeat.line[Field.STATE] % 16)

    late = threading.Event()
    run_on_threads(2, run)
    assert seen[0] == 4  # an all-to-all
    assert seen[-1] == 0


@pytest.mark.parametrize("hosts", ["ab", "aabb"])
def test_threads_that_update_but_do_not_call_the_model(hosts: str) -> None:
    """A function that one thread has to call, and an optimizer that two may."""
    weights = {"w": np.zeros((10, 90), np.float32), "more": np.ones((40 * BLOCK // 90, 90), np.float32)}

    def function(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"] += error @ batch.x.T
        grads["more"] += params["more"] * 0.001
        return 0.5 * float(np.square(error).sum()), len(batch)

    model = FunctionObjective(function, weights)
    options = {"threads": 2, "microbatches": 8, "optimizer": "adam"}

    def train(communicator: Any) -> str:
        one = fit(model, (X, Y.astype(np.float32)), communicator=communicator, batch_size=40, epochs=2,
                  learning_rate=0.01, **options)  # fmt: skip
        return str(one.summary["parameters_sha256"])

    assert set(run_on_threads(len(hosts), train, tuple(hosts))) == {train("self")}


@pytest.mark.parametrize("hosts", ["aa", "ab"])
def test_a_loop_goes_on_after_an_error_of_its_function(hosts: str) -> None:
    """The minibatch has no step, on all ranks, and nothing of it is left on its way."""
    weights = np.zeros((90, 12 * BLOCK // 90), np.float32)

    def train(communicator: Communicator) -> list[Any]:
        fails = False

        def function(params: Any, batch: Any) -> tuple[float, dict[str, Any]]:
            if fails:
                raise ZeroDivisionError
            error = batch.x @ params["w"] - 1
            return 0.5 * float(np.square(error).sum()), {"w": batch.x.T @ error}

        dp = DataParallel({"w": weights}, SGD(1e-5), reduction="sum", microbatches=4, communicator=communicator,
                          check_reduction=False)  # fmt: skip
        caught = []
        for number, batch in enumerate(dp.batches(X, batch_size=40, epochs=2)):
            fails = number == 2
            try:
                dp.step(function, batch)
            except ZeroDivisionError:
                caught.append(number)
        return [caught, dp.params["w"].tobytes()]

    found = run_on_threads(len(hosts), train, tuple(hosts))
    (alone,) = run_on_threads(1, train)
    assert found == [alone] * len(hosts)
    assert alone[0] == [2]


def test_state_moves_between_ranks_with_and_without_sections() -> None:
    elements = 13 * BLOCK + 5
    whole = [normal((elements,), slot, "slot").astype(np.float32) for slot in range(2)]

    def reduction_of(communicator: Communicator, kind: str) -> Any:
        plan = Plan(Partition(4, communicator.size, elements), 1, F32, 2, 2)
        return make_reduction(communicator, plan, kind)[0]

    def load(communicator: Communicator, kind: str) -> Any:
        reduction = reduction_of(communicator, kind)
        reduction.load_slots(whole if communicator.is_root else None)
        for span in reduction.partition.spans_of(communicator.rank):
            for own, slot in zip(reduction.slots(span.start, span.stop), whole, strict=True):
                assert own.tobytes() == slot[span].tobytes()
        return reduction.gather_slots()

    for kind, hosts in (("auto", "aab"), ("mpi", "aaa"), ("shared", "aaa")):
        gathered, *others = run_on_threads(3, lambda c, k=kind: load(c, k), tuple(hosts))
        assert [slot.tobytes() for slot in gathered] == [slot.tobytes() for slot in whole]
        assert others == [None, None]
