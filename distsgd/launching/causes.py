"""Why a start failed, in one sentence that names rank and host, from all sources that report on it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import NamedTuple

from distsgd.core.processes import contents
from distsgd.core.status_table import where
from distsgd.launching.start import Ending
from distsgd.launching.words import Death

_SHOWN_OUTPUT = 20  # lines
FINAL_ERRORS = ("NonFiniteError", "ReplicaError", "CheckpointError", "OutputError")
"""Errors that another attempt doesn't help. The first would come again, because the bits are the same; after the
second, the user has to exclude a faulty host. The others mean that no checkpoint is whole, or that the result can't be
written."""


@dataclass(frozen=True)
class Cause:
    """`sentence` is the message, `details` the text above it, such as a traceback.

    `status` is the exit status where the ranks have reported one, `final` whether another attempt is of no use.
    """

    sentence: str
    details: str = ""
    status: int | None = None
    final: bool = False


class Member(NamedTuple):
    """A rank in the rank table: mpirun's number for it, its host and its process."""

    number: int
    host: str
    process: int


def rank_table(ending: Ending) -> list[Member]:
    """The ranks in order, as far as they have reported."""
    messages = sorted(ending.words.of("rank_table"), key=lambda message: message["first"])
    return [Member(*rank) for message in messages for rank in message["ranks"]]


def cause_of(ending: Ending, out_of_memory: bool) -> Cause:
    """What ended this start. `out_of_memory`: the kernel has killed a process here for lack of memory meanwhile."""
    words = ending.words
    if words.of("error"):
        error = words.of("error")[0]
        final = error["status"] == 2 or error["error"] in FINAL_ERRORS
        first, *more = error["text"].splitlines()
        if not more:
            return Cause(first, status=error["status"], final=final)
        return Cause(f"{first.rstrip(':')}: {more[-1].strip()}", error["text"], error["status"], final)
    if words.of("raised"):
        first, *more = words.of("raised")
        others = f" (and {len(more)} more)" if more else ""
        return Cause(f"rank {first['rank']} on {first['host']} raised {first['error']}{others}", first["text"])
    death = words.death()
    if death is not None:
        return Cause(_sentence_of(death, ending, out_of_memory))
    if words.of("stalled"):
        return Cause(words.of("stalled")[0]["text"])
    if ending.forced is not None:
        return Cause(ending.forced)
    shown = "\n".join(words.launcher_output[-_SHOWN_OUTPUT:])
    return Cause(f"mpirun exited with status {ending.status} and the run isn't done", shown)


def _sentence_of(death: Death, ending: Ending, out_of_memory: bool) -> str:
    who, place = "a rank" if death.host is None else f"a rank on {death.host}", ""
    for rank, member in enumerate(rank_table(ending)):
        if member.number == death.rank or (member.host, member.process) == (death.host, death.process):
            who = f"rank {rank} on {member.host}"
            place = f", {where(ending.places[rank])}" if rank in ending.places else ""
            break
    if death.signal is None:
        return f"{who} left early with exit status {death.status}{place}"
    if death.signal == _REQUEST and ending.passed_on is not None:
        return f"{who} was ended by the {_SIGNALS[ending.passed_on]} to distsgd.launch{place}"
    reason = (
        "; the kernel has killed for lack of memory here" if out_of_memory and death.signal == signal.SIGKILL else ""
    )
    verb = "crashed with" if death.signal in _CRASHES else "was killed by"
    return f"{who} {verb} signal {death.signal} ({_SIGNALS.get(death.signal, 'unknown')}{reason}){place}"


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}

_REQUEST = getattr(signal, "SIGUSR1", None)
"""As which the launcher passes a request on."""

_SIGNALS = {number.value: number.name for number in signal.Signals}


def kernel_kills() -> int:
    """How many processes the kernel has killed on this host for lack of memory; 0 where it isn't known."""
    lines = contents("/proc/vmstat").split("\n")
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
