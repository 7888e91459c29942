"""What comes out of mpirun: the ranks' own words, what they tell distsgd.launch, and mpirun's noise.

The ranks' words are passed on as they come. What a rank's shell and mpirun say of its end is kept back and understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distsgd.core.output import LAUNCH_VARIABLE, PARENT_VARIABLE, PROGRAM_VARIABLE

_KEPT_NOISE = 200  # lines

# Lines that Hydra and its proxies, MPICH and Open MPI print when a job ends badly; none is a rank's own.
_NOISE = re.compile(
    rb"""={20,}$
    | =\ \ \ (BAD\ TERM|PID\ \d+\ RUNNING|RANK\ \d+\ PID|EXIT\ CODE|KILLED\ BY\ SIGNAL|CLEANING\ UP|YOU\ CAN\ IGN)
    | YOUR\ APPLICATION\ TERMINATED\ WITH | This\ typically\ refers\ to\ a | Please\ see\ the\ FAQ\ page
    | Abort\(-?\d+\)\ on\ node | \[(proxy|mpiexec)[:@] | \[[\w.-]+:\d+\]\ (\*\*\*|\[|Signal|Failing)
    """,
    re.VERBOSE,
)
_RULE = re.compile(rb"-{60,}$")
_LAUNCHERS_BLOCK = re.compile(r"prterun|mpirun|mpiexec|orterun|prte|MPI_ABORT|Primary job", re.IGNORECASE)
_LONGEST_BLOCK = 60  # lines


RANK_SCRIPT = rf"""
rank= ready= early=
tell() {{ if [ "$rank" ] && [ "$ready" ]; then kill -$1 $rank; else early="$early $1"; fi; }}
for name in TERM HUP USR1 USR2; do trap "tell $name" $name; done
trap 'tell TERM' INT
trap 'ready=yes' ALRM
exec 3>&2 2>/dev/null
[ -z "${PROGRAM_VARIABLE}" ] || eval "set -- ${PROGRAM_VARIABLE}"
unset {PROGRAM_VARIABLE}
started=0; field() {{ shift 19; started=$1; }}
read -r line </proc/$$/stat && field ${{line##*) }}
export {PARENT_VARIABLE}=$$-$started
(trap - TERM HUP INT USR1 USR2 ALRM; kill -ALRM $$; exec "$@") 2>&3 3>&- & rank=$!
for try in 1 2 3 4 5 6 7 8 9 10; do [ "$ready" ] || sleep 0.1; done
ready=yes
for name in $early; do kill -$name $rank; done
while :; do wait $rank; status=$?; kill -0 $rank || break; done
printf '\036distsgd %s {{"kind": "exit", "process": %d, "status": %d, "host": "%s"}}\n' \
    "${LAUNCH_VARIABLE}" $rank $status "$(uname -n)" >&3
exit $status
"""
"""What a shell runs around each rank: nobody but a process's parent learns how it ended, and not every mpirun says.

It passes signals on: one that comes early when the rank's process has said, with SIGALRM, that it no longer takes them
for the shell's (a second at most), and SIGINT as SIGTERM, which means the same to training and isn't ignored in a
shell's background. It names itself to the rank, as the proof that distsgd.launch has started it. On one host the rank's
command comes in a variable, so that of all command lines the ranks' alone name the training.
"""


@dataclass(frozen=True)
class Death:
    """How a rank ended; what isn't known is None. `rank` is mpirun's number for it."""

    rank: int | None = None
    process: int | None = None
    host: str | None = None
    signal: int | None = None
    status: int | None = None


@dataclass
class Words:
    """What has been heard: `told` are the ranks' messages, `noise` mpirun's last lines."""

    told: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one kind, in the order they came."""
        return [message for message in self.told if message.get("kind") == kind]

    def understand(self, message: bytes) -> None:
        """Takes a rank's message; what isn't one is left aside."""
        try:
            told = json.loads(message)
        except ValueError:
            return
        if isinstance(told, dict):
            self.told.append(told)

    def keep(self, line: bytes) -> None:
        """Takes a line of mpirun's own."""
        self.noise = [*self.noise[1 - _KEPT_NOISE :], line.decode(errors="replace")]

    def death(self) -> Death | None:
        """The first rank's end: as its own shell tells it, else as mpirun does; None where both are silent."""
        if self.of("exit"):
            return self._told_by_shell(self.of("exit")[0])
        text = " ".join(" ".join(self.noise).split())
        for pattern, make in _DEATHS:
            found = re.search(pattern, text)
            if found:
                return make(found)
        return None

    @staticmethod
    def _told_by_shell(message: dict[str, Any]) -> Death:
        status = int(message["status"])
        ended = {"signal": status - 128} if status > 128 else {"status": status}
        return Death(process=message["process"], host=message["host"], **ended)


@dataclass
class Stream:
    """One stream of mpirun's, standard output or standard error, taken in pieces."""

    words: Words
    mark: bytes
    """What a rank's message begins with."""
    _part: bytes = b""
    _block: list[bytes] | None = None
    _blank: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """What of it is to be passed on; an unfinished line is kept."""
        *lines, self._part = (self._part + data).split(b"\n")
        return b"".join(self._line(line) for line in lines)

    @property
    def pending(self) -> bool:
        """Whether there is an unfinished line."""
        return bool(self._part or self._blank)

    def flush(self, at_end: bool = False) -> bytes:
        """The unfinished line, such as a progress bar's, when nothing has followed for a while."""
        if self._part.startswith(self.mark[:1]) and not at_end:
            return b""
        out, self._part = self._blank + self._part, b""
        self._blank = b""
        if at_end and self._block is not None:
            out += self._end_block()
        return out

    def _line(self, line: bytes) -> bytes:
        before, mark, message = line.partition(self.mark)
        if mark:
            self.words.understand(message)
            return before + b"\n" if before else b""
        if self._block is not None:
            self._block.append(line)
            return self._end_block() if _RULE.match(line) or len(self._block) > _LONGEST_BLOCK else b""
        if _RULE.match(line):
            self._block = [line]
            return b""
        if _NOISE.match(line):
            self._blank = b""
            self.words.keep(line)
            return b""
        if not line and not self._blank:  # Hydra begins with an empty line
            self._blank = b"\n"
            return b""
        out, self._blank = self._blank + line + b"\n", b""
        return out

    def _end_block(self) -> bytes:
        """Lines between two rules of dashes: Open MPI's way of speaking, and that of many others."""
        assert self._block is not None
        block, self._block = self._block, None
        if _LAUNCHERS_BLOCK.search(b"\n".join(block).decode(errors="replace")):
            for line in block:
                self.words.keep(line)
            return b""
        return b"".join(line + b"\n" for line in block)


# Hydra names a rank that it has ended itself as often as the one that began, so it isn't asked.
_DEATHS: tuple[tuple[str, Callable[[re.Match[str]], Death]], ...] = (
    (
        r"process rank (\d+) with PID (\d+) on node (\S+) exited on signal (\d+)",
        lambda found: Death(int(found[1]), int(found[2]) or None, found[3], signal=int(found[4])),
    ),
    (
        r"Process name: \[\S*?(\d+)\] Exit code: (\d+)",
        lambda found: Death(int(found[1]), status=int(found[2])),
    ),
    (
        r"due to process rank (\d+) with PID (\d+) on node (\S+) exiting improperly",
        lambda found: Death(int(found[1]), int(found[2]) or None, found[3], status=0),
    ),
)
