"""The status table: one line of memory for each rank, shared by the ranks of a host, with what each rank does.

A rank writes with single stores, at no measurable cost in a step. Its neighbours and distsgd.launch read them where a
rank has waited too long.
"""

from __future__ import annotations

from enum import IntEnum

_MAGIC = 0x64_7374_7367_6401  # dstsgd, and the format
_FIELDS = 8  # of 8 bytes: each rank's line fills one cache line


class Field(IntEnum):
    """The fields of a rank's line."""

    PROCESS = 0
    STARTED = 1  # when the process began: the system reuses process numbers
    BEAT = 2  # monotonic nanoseconds: when the rank's watchdog last ran
    STATE = 3  # collectives entered so far, times 16, plus the current Collective
    PLACE = 4  # step, times 16, plus the Phase
    PROGRESS = 5  # counts units of work
    SINCE = 6  # monotonic nanoseconds: when it entered this collective, 0 outside of collectives
    LEFT = 7  # 1 where its program has ended, 2 where it has ended the job


class Collective(IntEnum):
    """The collective that a rank waits in."""

    NONE = 0
    BROADCAST = 1
    GATHER = 2
    ALLGATHER = 3
    ALLTOALL = 4
    BARRIER = 5
    SPLIT = 6

    @property
    def title(self) -> str:
        """Its name in a sentence, with its article."""
        name = {Collective.ALLTOALL: "all-to-all", Collective.ALLGATHER: "all-gather"}.get(self, self.name.lower())
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


class Phase(IntEnum):
    """What a rank does."""

    OUTSIDE = 0  # the user's own program around distsgd
    START = 1
    STEP = 2
    CALLBACK = 3
    VALIDATION = 4
    CHECKPOINT = 5
    END = 6


def where(place: int) -> str:
    """A line's PLACE as text, in the order of Phase, such as `in step 57`."""
    step, phase = divmod(place, 16)
    words = (
        "outside of training",
        "before the first step",
        f"in step {step}",
        f"in a callback after step {step}",
        f"in the validation after step {step}",
        f"in the checkpoint after step {step}",
        f"at the end, after step {step}",
    )
    return words[phase] if phase < len(words) else f"after step {step}"


class StatusTable:
    """The lines of `ranks` ranks in a buffer of `StatusTable.bytes_for(ranks)` bytes, which begins as zeros."""

    def __init__(self, buffer: memoryview, ranks: int) -> None:
        self.ranks = ranks
        self._numbers = buffer.cast("B").cast("q")

    @staticmethod
    def bytes_for(ranks: int) -> int:
        """Bytes of a status table: a header line, and one line for each rank."""
        return 8 * _FIELDS * (1 + ranks)

    def mark(self, key: int = 0) -> None:
        """Write the header: the format, the number of ranks, and the key of the launch."""
        self._numbers[0], self._numbers[1], self._numbers[2] = _MAGIC, self.ranks, key

    @property
    def marked(self) -> bool:
        """Whether the header names this format and this number of ranks."""
        return bool(self._numbers[0] == _MAGIC and self._numbers[1] == self.ranks)

    @property
    def key(self) -> int:
        """The key that `mark` has written."""
        return self._numbers[2]

    def line(self, rank: int) -> memoryview:
        """A rank's numbers, by Field."""
        start = _FIELDS * (1 + rank)
        return self._numbers[start : start + _FIELDS]


class Heartbeat:
    """A rank's writer of its own line, which may be another one from now on."""

    __slots__ = ("_entered", "line")

    def __init__(self, line: memoryview) -> None:
        self.line, self._entered = line, 0

    def enter(self, collective: int) -> None:
        """The rank enters a collective."""
        self._entered = entered = self._entered + 16
        self.line[3] = entered | collective

    def exit(self) -> None:
        """The rank has left the collective."""
        self.line[3] = self._entered

    def set_phase(self, phase: int, step: int = 0) -> None:
        """The rank begins another phase."""
        self.line[4] = step << 4 | phase

    def progressed(self) -> None:
        """The rank has finished a unit of work."""
        self.line[5] += 1


def private_heartbeat() -> Heartbeat:
    """A heartbeat whose line no watchdog reads."""
    return Heartbeat(StatusTable(memoryview(bytearray(StatusTable.bytes_for(1))), 1).line(0))
