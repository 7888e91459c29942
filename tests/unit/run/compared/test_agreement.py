"""Ranks agree on what they were given in one collective; where they don't, all raise the same sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.cli.agreement import command_identity
from distsgd.core.errors import ConfigurationError, DataError, DistsgdError
from distsgd.core.output import rank_names
from distsgd.parallel import Communicator
from distsgd.run.compared.agreement import agreed, compare
from distsgd.run.compared.identity import Identity
from distsgd.run.fit import fit
from tests.threads import run_on_threads
from tests.unit.counting import Counting

X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20) % 2


def reported(ranks: list[dict[str, str]]) -> str:
    with pytest.raises(ConfigurationError) as raised:
        compare("fit", ranks)
    return str(raised.value)


def test_one_collective_where_all_agree() -> None:
    def run(communicator: Communicator) -> tuple[Any, dict[str, int]]:
        counting = Counting(communicator)
        identity = Identity()
        identity.add("seed", 1)
        return agreed(counting, "fit", lambda: (communicator.rank, identity)), dict(counting.calls)

    assert run_on_threads(3, run) == [(rank, {"allgather_object": 1}) for rank in range(3)]


@pytest.mark.parametrize("odd", [{"seed": 1}, {"seed": -1}, {"x": (X, Y[:-1])}, {"validation": (X, Y)}])
def test_fit_communicates_nothing_else_before(odd: dict[str, Any]) -> None:
    def run(communicator: Communicator) -> tuple[str, list[str]]:
        counting = Counting(communicator)
        given = {"x": (X, Y), **(odd if communicator.rank == 2 else {})}
        with pytest.raises(DistsgdError) as raised:
            fit("softmax", communicator=counting, **given)
        return str(raised.value), list(counting.calls.elements())

    found = run_on_threads(3, run)
    assert len({text for text, _ in found}) == 1
    for _, calls in found:
        assert calls in (["allgather_object"], ["allgather_object", "gather_object", "broadcast_object"])


def test_values_are_named_with_their_ranks() -> None:
    ranks = [{"seed": "1"}] * 3 + [{"seed": "2"}] + [{}] * 2
    assert reported(ranks) == (
        "fit: seed differs between ranks: 1 on ranks 0 to 2, 2 on rank 3, not given on ranks 4 and 5; "
        "give all ranks the same, or each group of ranks a communicator= of its own"
    )


def test_what_a_function_keeps_in_a_global() -> None:
    """As the second fit of one program finds it: the sentence says where it belongs."""
    with pytest.raises(ConfigurationError, match=r"\(global seen\) differs .*belongs in .*field\(compare=False\)$"):
        compare("fit", [{"model (global seen)": "[1]"}, {"model (global seen)": "[2]"}])


def test_many_values_and_many_names_are_cut() -> None:
    text = reported([{f"option{number}": str(rank) for number in range(20)} for rank in range(1000)])
    assert text.startswith("fit: option0 differs between ranks: 0 on rank 0, 1 on rank 1, 2 on rank 2, ")
    assert "and 995 more; also different: option1, " in text
    assert len(text) < 400
    assert len(reported([{"seed": str(rank % 2)} for rank in range(1000)])) < 200


def test_data_is_named_after_options() -> None:
    with pytest.raises(DataError, match="every rank all examples in the same order"):
        compare("fit", [{"seed": "1", "train x": "a"}, {"seed": "1", "train x": "b"}])
    assert reported([{"seed": "1", "train x": "a"}, {"seed": "2", "train x": "b"}]).endswith(
        "1 on rank 0, 2 on rank 1; also different: train x; give all ranks the same, or each group of ranks a "
        "communicator= of its own"
    )


def test_another_numpy_alone_is_a_warning() -> None:
    (note,) = compare("fit", [{"NumPy": "2.4.6", "distsgd": "0.1.0"}, {"NumPy": "2.3.0", "distsgd": "0.1.0"}])
    assert note.startswith("warning: NumPy differs between ranks: 2.4.6 on rank 0, 2.3.0 on rank 1; ")
    versions = [{"NumPy": "2.4.6", "distsgd": "0.1.0"}, {"NumPy": "2.3.0", "distsgd": "0.2.0"}]
    assert "distsgd differs between ranks: 0.1.0 on rank 0, 0.2.0 on rank 1; install one version" in reported(versions)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "rank 3"), ([0, 1], "ranks 0 and 1"), ([0, 1, 2, 3], "ranks 0 to 3"), ([0, 2, 3], "ranks 0, 2 and 3"),
        (list(range(0, 20, 2)), "ranks 0, 2, 4, 6, 8 and 5 more"),
    ],
)  # fmt: skip
def test_names_of_ranks(numbers: list[int], text: str) -> None:
    assert rank_names(numbers) == text


def test_an_error_of_several_ranks() -> None:
    def run(communicator: Communicator) -> str:
        def look() -> tuple[None, Identity]:
            if communicator.rank in (1, 3):
                raise DataError(f"x is odd, {object()!r}")  # with an address, which differs
            if communicator.rank == 2:
                raise ConfigurationError("another")
            return None, Identity()

        with pytest.raises(DataError) as raised:
            agreed(communicator, "fit", look)
        return str(raised.value)

    texts = set(run_on_threads(4, run))
    assert len(texts) == 1
    assert texts.pop().startswith("on ranks 1 and 3: x is odd, <object object at ")


def test_an_error_of_all_ranks_is_reported_as_it_is() -> None:
    def run(communicator: Communicator) -> str:
        with pytest.raises(ConfigurationError) as raised:
            fit("softmax", (X, Y), communicator=communicator, batchsize=3)
        return str(raised.value)

    assert set(run_on_threads(3, run)) == {"fit: unknown option 'batchsize'; did you mean batch_size?"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--lr 0.1 --epochs 3", "--epochs=3 --learning-rate=0.1"),
        ("--batch-size 3", "--batch_size 3"),
        ("run a.npz -o b", "run a.npz --out b"),
        ("--min-delta -1 --seed 2", "--seed 2 --min-delta -1"),
        ("--seed 1 --seed 2", "--seed=1 --seed=2"),
    ],
)
def test_command_lines_that_mean_the_same(one: str, other: str) -> None:
    assert command_identity(one.split()).digest() == command_identity(other.split()).digest()


def test_a_value_in_a_sentence_is_short_and_printable() -> None:
    ranks = [{"model": f"b'\\x80\x02{one * 60}'"} for one in "ab"] + [{"model": "c" * 70}]
    text = reported(ranks).partition(";")[0]
    values = [part.rpartition(" on ")[0] for part in text.partition(": model differs between ranks: ")[2].split(", ")]
    assert len(set(values)) == 3
    assert all(len(one) <= 60 and one.isprintable() for one in values)
