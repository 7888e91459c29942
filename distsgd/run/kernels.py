"""The family of kernels of a run: chosen once for all hosts before NumPy loads, and recorded with the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.core.kernel_family import (
    AUTO,
    CORE_VARIABLE,
    NAMES,
    NOT_OPENBLAS,
    Host,
    apply,
    best_of,
    family_of_core,
    joined,
    loaded_family,
    this_host,
)  # fmt: skip
from distsgd.core.output import say
from distsgd.parallel.communicator import Communicator

if TYPE_CHECKING:
    from distsgd.run.config import TrainConfig
    from distsgd.run.files.folder import RunFolder

Recorded: TypeAlias = tuple[str, str]
"""A family, and where the run is that was computed with it."""


def choose(
    communicator: Communicator, asked: str = AUTO, recorded: Recorded | None = None, *, required: bool = True
) -> tuple[list[Host], str | None]:
    """Choose one family for all hosts, and load NumPy with it; without effect where NumPy has loaded. Collective.

    Parameters
    ----------
    communicator
        Of all ranks.
    asked
        The value of --kernels.
    recorded
        On rank 0, the family that a run has been computed with, and where that run is.
    required
        Whether to raise where a host can't run the family, and not to take the best that all hosts can run.

    Returns
    -------
    hosts : list of Host
        Of all ranks.
    problem : str or None
        Why another family was chosen.

    Raises
    ------
    ConfigurationError
        On all ranks, with one sentence.
    """
    everyone = communicator.allgather_object((this_host(), recorded))
    hosts, problem = [host for host, _ in everyone], None
    if any(host.loaded for host in hosts):
        return hosts, None
    try:
        name = decide(hosts, asked, everyone[0][1])
    except ConfigurationError as error:
        if required:
            raise
        name, problem = next(iter(best_of(hosts)), None), str(error)
    if name is None:
        return hosts, problem
    communicator.everywhere(lambda: apply(name))
    mine = communicator.everywhere(lambda: _refused_core(hosts[communicator.rank].core))
    refused = next(filter(None, communicator.allgather_object(mine)), None)
    if refused and required:
        raise ConfigurationError(refused)
    return hosts, problem or refused


def _refused_core(core: str) -> str | None:
    """A sentence where OpenBLAS has ignored the user's own choice, as it does without a word."""
    if not core:
        return None
    loaded = loaded_family().partition("+")[0]
    if loaded in (family_of_core(core), *NOT_OPENBLAS):
        return None
    return (
        f"{CORE_VARIABLE} is {core}, which this OpenBLAS doesn't know or has no kernels for: it has loaded {loaded}; "
        "correct that variable, or unset it"
    )


def choose_for(communicator: Communicator, path: str) -> None:
    """Choose the family of the run at this path, for the bits of its training. Collective.

    Rank 0 prints a warning where a host can't run it: results are right all the same.
    """
    found = recorded_in(Path(path)) if communicator.is_root else None
    _, problem = choose(communicator, recorded=None if found is None else (found, path), required=False)
    if problem is not None and communicator.is_root:
        say(f"warning: {problem}; with other kernels, results may differ in their last bits", sys.stderr)


def recorded_for(config: TrainConfig, folder: RunFolder) -> Recorded | None:
    """The family of the run that this configuration continues, and where that run is; on rank 0."""
    if config.resume == "never":
        return None
    places = [] if config.resume == AUTO else [Path(config.resume)]
    with suppress(DistsgdError, OSError):
        if folder.checkpoints.exists():
            places.insert(0, folder.path)
    found = ((recorded_in(place), str(place)) for place in places)
    return next(((name, place) for name, place in found if name is not None), None)


def recorded_in(path: Path) -> str | None:
    """The family that the run in this folder, or of the checkpoint at this path, was computed with; None where nothing
    says so. What is wrong with the file is for those who need more of it."""
    from distsgd.run.config_file import read_toml

    with suppress(DistsgdError, OSError):
        folder = path if path.is_dir() else path.parent.parent
        found = read_toml(folder / "config.toml").kernels
        return None if found == AUTO else found
    return None


def decide(hosts: Sequence[Host], asked: str = AUTO, recorded: Recorded | None = None) -> str | None:
    """The family for all hosts; None to leave the choice to NumPy. Raises ConfigurationError with one sentence."""
    cores = {host.core: host.name for host in hosts if host.core}
    users = {family_of_core(core): core for core in cores}
    if len(users) > 1:
        texts = ", ".join(f"{core} on {name}" for core, name in cores.items())
        raise ConfigurationError(f"{CORE_VARIABLE} differs between hosts: {texts}; unset it, and give --kernels")
    own = next(iter(users), None)
    if asked != AUTO:
        name, why, remedy = asked, f"kernels: {asked} is asked for", ""
        if recorded is not None and recorded[0] != asked:
            raise ConfigurationError(
                f"kernels: {recorded[1]} holds a run with {recorded[0]}, and {asked} is asked for; leave --kernels out "
                "to continue it, or choose another folder with --out"
            )
    elif recorded is not None:
        name, why = recorded[0], f"{recorded[1]} was computed with the kernels {recorded[0]}"
        remedy = "; use hosts that can, or another folder with --out"
    elif own is not None:
        name, why, remedy = _of_core(own, hosts), f"{CORE_VARIABLE} is {users[own]}", "; unset it"
    else:
        return _best(hosts)
    if own is not None and own != name.partition("+")[0]:
        raise ConfigurationError(f"{why}, and {CORE_VARIABLE} is {users[own]}, which is {own}; unset that variable")
    _check_possible(name, hosts, why, remedy)
    return name


def _of_core(own: str, hosts: Sequence[Host]) -> str:
    """The family that the user's own core stands for; with one that isn't known, NumPy has the best of all hosts."""
    return own if own in NAMES else joined(own, next(iter(best_of(hosts)), "unknown"))


def _best(hosts: Sequence[Host]) -> str | None:
    """The fastest family that all hosts can run; None where that isn't known."""
    if found := best_of(hosts):
        return found[0]
    if all(host.families() for host in hosts):
        texts = ", ".join({host.name: f"{host.name} can run {host.families()[0]}" for host in hosts}.values())
        raise ConfigurationError(f"kernels: the hosts have none in common: {texts}; use hosts of one kind")
    return None


def _check_possible(name: str, hosts: Sequence[Host], why: str, remedy: str) -> None:
    """Raises ConfigurationError where a host can't run this family."""
    lacking = {host.name: host.lacks(name) for host in hosts if host.lacks(name)}
    if not lacking:
        return
    texts = ", ".join(f"{host} (lacks {', '.join(missing[:3])})" for host, missing in list(lacking.items())[:5])
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    possible = best_of(hosts)
    if possible and not remedy:
        remedy = f"; all hosts can run {_listed(possible)}: give --kernels {possible[0]}, or leave it out"
    raise ConfigurationError(f"{why}, which can't run on {texts}{more}{remedy}")


def _listed(names: Iterable[str]) -> str:
    """`avx2 and sse42`, `avx512, avx2 and sse42`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
