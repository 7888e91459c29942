"""Whether all ranks were given the same, before anything else is communicated; where not, the sentence that says what.

Each rank puts what it was given into texts (see identity) and sends one digest of them. Only where digests differ
do the texts travel. An error of one rank alone travels with the digests, so that no rank waits for another in vain.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from distsgd.core.errors import ConfigurationError, DataError, DistsgdError, UserCodeError, raise_first, users_code
from distsgd.core.kernel_family import AUTO, best_of, exports, loaded_family, other_than, this_host
from distsgd.core.output import rank_names, say
from distsgd.core.version import __version__, numpy_version
from distsgd.parallel.communicator import Communicator
from distsgd.run.compared.digests import digest
from distsgd.run.compared.identity import Identity

T = TypeVar("T")
NUMPY = "NumPy"
_REMEDY = {
    "fit": "give all ranks the same, or each group of ranks a communicator= of its own",
    "the command line": "start all ranks with the same",
    "DataParallel": "give all ranks the same, or each group of ranks a communicator= of its own",
    "batches": "give all ranks the same; distsgd shares each batch out",
    "step": "give all ranks the same function, which does not read its rank",
}
_REMEDY_OF = {
    "distsgd": "install one version on all hosts",
    "Python": "start all ranks with one version",
    "train": "give every rank all examples in the same order; distsgd shares each minibatch out",
}
_NOT_GIVEN = "not given"
_NAMED = 5
"""How many names or values a sentence has at most."""
_SHOWN = 60
"""Characters of a value in a sentence."""
_ADDRESS = re.compile(r"\b0x[0-9a-f]+")
"""Python's own text of an object ends with one, which is another on each rank."""


def agreed(communicator: Communicator, caller: str, look: Callable[[], tuple[T, Identity]]) -> T:
    """look()'s first result, where its second is the same on all ranks. Collective, in one all-gather.

    Raises the same error on all ranks: what look() raises on one of them, or ConfigurationError (DataError for arrays)
    with what differs. `caller` begins the sentence.
    """
    value: T
    identity, problem, stop = Identity(), None, None
    where = f"rank {communicator.rank} on {communicator.hosts[communicator.rank]}"
    try:
        with users_code(f"{where} failed"):
            value, identity = look()
    except DistsgdError as error:
        problem = error
        if isinstance(error, UserCodeError) and isinstance(error.error, KeyboardInterrupt):
            problem, stop = UserCodeError(f"{where} was ended by KeyboardInterrupt"), error.error
    everyone = communicator.allgather_object((identity.digest(), problem))
    if stop is not None:
        raise stop
    _raise_problem([theirs for _, theirs in everyone], problem, communicator.rank)
    if any(theirs != everyone[0][0] for theirs, _ in everyone):
        ranks = communicator.gather_object(identity.texts)
        for note in communicator.on_root(lambda: compare(caller, ranks or [])):
            if communicator.is_root:
                say(note, sys.stderr)
    if communicator.is_root and communicator.size > 1 and identity.unknown:
        say(f"note: {_listed(identity.unknown)} could not be compared between ranks", sys.stderr)
    return value


def compare(caller: str, ranks: Sequence[Mapping[str, str]]) -> list[str]:
    """Raises the sentence about what differs between the texts of all ranks; returns warnings where it may differ."""
    names = dict.fromkeys(name for texts in ranks for name in texts)
    differing = [name for name in names if len({texts.get(name) for texts in ranks}) > 1]
    notes = []
    if NUMPY in differing:
        differing.remove(NUMPY)
        notes.append(
            f"warning: {_difference(NUMPY, ranks)}; replicas agree, but another number of ranks may give other results"
        )
    if not differing:
        return notes
    first = differing[0]
    argument = first.partition(" ")[0]
    others = f"; also different: {_listed(differing[1:])}" if len(differing) > 1 else ""
    is_data = argument in ("train", "validation", "test") or (caller == "batches" and argument in ("x", "y", "weights"))
    remedy = _REMEDY_OF.get("train" if is_data else argument, _REMEDY[caller])
    if " (global " in first:
        remedy += "; what a function keeps for itself between calls belongs in a dataclass's field(compare=False)"
    raise (DataError if is_data else ConfigurationError)(f"{caller}: {_difference(first, ranks)}{others}; {remedy}")


def _difference(name: str, ranks: Sequence[Mapping[str, str]]) -> str:
    """`learning_rate differs between ranks: 0.1 on ranks 0 to 2, 0.2 on rank 3`."""
    holders: dict[str, list[int]] = {}
    for rank, texts in enumerate(ranks):
        holders.setdefault(texts.get(name, _NOT_GIVEN), []).append(rank)
    values = [f"{_shown(text)} on {rank_names(numbers)}" for text, numbers in holders.items()]
    return f"{name} differs between ranks: {_listed(values)}"


def _shown(text: str) -> str:
    """A text in at most 60 printable characters; its digest differs from that of others with the same beginning."""
    if len(text) <= _SHOWN and text.isprintable():
        return text
    kind = "bytes" if text.startswith(("b'", 'b"')) else "".join(one for one in text[:30] if one.isprintable()) + "…"
    known = re.search(r"digest ([0-9a-f]{16})\)$", text)
    return f"{kind} (digest {digest(text) if known is None else known[1]})"


def _raise_problem(problems: Sequence[DistsgdError | None], own: DistsgdError | None, rank: int) -> None:
    """Raises the lowest rank's error, and says whose it is where not all ranks have the same."""
    first = next((problem for problem in problems if problem is not None), None)
    if first is None:
        return
    texts = [None if problem is None else _ADDRESS.sub("", str(problem)) for problem in problems]
    mine = _ADDRESS.sub("", str(first))
    if texts == [mine] * len(texts) or mine.startswith("rank "):
        raise_first(problems, own, rank)
    holders = rank_names([rank for rank, text in enumerate(texts) if text == mine])
    raise type(first)(f"on {holders}: {first}") from (None if own is None else own.__cause__)


def _listed(items: Sequence[str]) -> str:
    """The first of the items, and how many more there are."""
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def agreed_family(communicator: Communicator, asked: str) -> str:
    """The family that NumPy has loaded with on all ranks. Collective.

    Raises ConfigurationError, on all ranks, where it is another one than is asked for, or not the same on all.
    """
    loaded = communicator.allgather_object(loaded_family())
    if len(set(loaded)) > 1:
        texts = dict.fromkeys(f"{name} on {host}" for name, host in zip(loaded, communicator.hosts, strict=True))
        common = best_of(communicator.allgather_object(this_host()))
        remedy = f"start all with {exports(common[0])} in their environment" if common else "use hosts of one kind"
        raise ConfigurationError(
            f"kernels: NumPy has loaded with {_listed([*texts])}, which compute other bits; {remedy}"
        )
    if asked not in (AUTO, loaded[0]):
        raise ConfigurationError(f"kernels: {asked} is asked for, and {other_than(asked, loaded[0])}")
    return loaded[0]


def add_versions(identity: Identity) -> None:
    """What code and bits depend on besides what was given."""
    identity.say("distsgd", __version__)
    identity.say("Python", ".".join(map(str, sys.version_info[:2])))
    identity.say(NUMPY, numpy_version())
