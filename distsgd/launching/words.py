"""The output of mpirun: what the ranks print, their messages to distsgd.launch, and the launcher's own lines.

What the ranks print is passed on unchanged. What a rank's shell and mpirun report of its end is kept and parsed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from distsgd.core.output import LAUNCH_VARIABLE, PARENT_VARIABLE, PROGRAM_VARIABLE

_KEPT_LINES = 200

# Lines that Hydra and its proxies, MPICH and Open MPI print when a job ends badly; none is a rank's own.
_LAUNCHERS_LINE = re.compile(
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
forward() {{ if [ "$rank" ] && [ "$ready" ]; then kill -$1 $rank; else early="$early $1"; fi; }}
for name in TERM HUP USR1 USR2; do trap "forward $name" $name; done
trap 'forward TERM' INT
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
"""The shell script around each rank: only a process's parent learns how it ended, and not every mpirun reports it.

It forwards signals to the rank. It holds early ones, for a second at most, until the rank's process has reset its
handlers and reports that with SIGALRM. It forwards SIGINT as SIGTERM, which means the same to training and isn't
ignored in a shell's background. It passes its own process number to the rank, as the proof that distsgd.launch has
started it. On one host the rank's command comes in a variable, so that only the ranks' command lines name the training.
"""


@dataclass(frozen=True)
class Death:
    """How a rank ended; an unknown field is None. `rank` is mpirun's number for it."""

    rank: int | None = None
    process: int | None = None
    host: str | None = None
    signal: int | None = None
    status: int | None = None


@dataclass
class Words:
    """What a start has printed: `messages` of the ranks, and the last lines of `launcher_output`."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    launcher_output: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one kind, in the order they came."""
        return [message for message in self.messages if message.get("kind") == kind]

    def understand(self, message: bytes) -> None:
        """Parse a rank's message; ignore text that isn't one."""
        try:
            parsed = json.loads(message)
        except ValueError:
            return
        if isinstance(parsed, dict):
            self.messages.append(parsed)

    def keep(self, line: bytes) -> None:
        """Keep a line of the launcher."""
        self.launcher_output = [*self.launcher_output[1 - _KEPT_LINES :], line.decode(errors="replace")]

    def death(self) -> Death | None:
        """How the first rank ended, as its shell reports it, else as mpirun does; None where neither does."""
        exits = self.of("exit")
        if exits:
            status = int(exits[0]["status"])
            ended = {"signal": status - 128} if status > 128 else {"status": status}
            return Death(process=exits[0]["process"], host=exits[0]["host"], **ended)
        text = " ".join(" ".join(self.launcher_output).split())
        for pattern, implied in _DEATHS:
            found = re.search(pattern, text)
            if found:
                known: dict[str, Any] = {name: value for name, value in found.groupdict().items() if value}
                numbers = {name: int(value) for name, value in known.items() if name != "host"}
                return Death(**{"status": implied} | known | numbers)
        return None


@dataclass
class Stream:
    """Standard output or standard error of mpirun, read in chunks."""

    words: Words
    mark: bytes
    """The beginning of a rank's message."""
    _unfinished: bytes = b""
    _block: list[bytes] | None = None
    _blank: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Return the lines to pass on; keep an unfinished line."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        return b"".join(self._line(line) for line in lines)

    @property
    def pending(self) -> bool:
        """Whether there is an unfinished line."""
        return bool(self._unfinished or self._blank)

    def flush(self, at_end: bool = False) -> bytes:
        """Return the unfinished line, such as a progress bar's, when nothing has followed for a while."""
        if self._unfinished.startswith(self.mark[:1]) and not at_end:
            return b""
        out, self._unfinished = self._blank + self._unfinished, b""
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
        elif _LAUNCHERS_LINE.match(line):
            self._blank = b""
            self.words.keep(line)
        elif not line and not self._blank:  # Hydra begins with an empty line
            self._blank = b"\n"
        else:
            out, self._blank = self._blank + line + b"\n", b""
            return out
        return b""

    def _end_block(self) -> bytes:
        """Handle lines between two rules of dashes, as Open MPI and many other programs print them."""
        assert self._block is not None
        block, self._block = self._block, None
        if _LAUNCHERS_BLOCK.search(b"\n".join(block).decode(errors="replace")):
            for line in block:
                self.words.keep(line)
            return b""
        return b"".join(line + b"\n" for line in block)


# Not Hydra's reports: they may name a rank that Hydra has ended itself.
_RANK = r"process rank (?P<rank>\d+) with PID (?:0|(?P<process>\d+)) on node (?P<host>\S+)"
_DEATHS = (
    (rf"{_RANK} exited on signal (?P<signal>\d+)", None),
    (r"Process name: \[\S*?(?P<rank>\d+)\] Exit code: (?P<status>\d+)", None),
    (rf"due to {_RANK} exiting improperly", 0),
)
"""What mpirun reports of a rank's end, each with the exit status that it means where it names none."""
