"""mpirun's own words are kept back and understood, the ranks' are passed on as they are."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distsgd.core.output import LAUNCH_VARIABLE, PARENT_VARIABLE, PROGRAM_VARIABLE, mark, new_launch
from distsgd.launching.causes import Cause, cause_of, rank_table
from distsgd.launching.start import Ending
from distsgd.launching.words import RANK_SCRIPT, Death, Stream, Words
from tests.waiting import LIMIT

LAUNCH = new_launch()
MARK = mark(LAUNCH)

HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 25878 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
RULE = "-" * 74 + "\n"
OPEN_MPI_KILLED = f"""{RULE}prterun noticed that process rank 1 with PID 26457 on node vm exited on
signal 9 (Killed).
{RULE}"""
OPEN_MPI_4_KILLED = f"""{RULE}Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
{RULE}{RULE}mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 11 (Segmentation fault).
{RULE}"""
OPEN_MPI_STATUS = f"""{RULE}prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-27159@1,12]
   Exit code:    3
{RULE}"""
OPEN_MPI_4_STATUS = OPEN_MPI_STATUS.replace("prterun-vm-27159@1,12", "[12345,1],12")
OPEN_MPI_EARLY = f"""{RULE}prterun has exited due to process rank 1 with PID 26703 on node vm exiting
improperly. There are three reasons this could occur:
{RULE}"""
OPEN_MPI_ABORT = f"""{RULE}MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
{RULE}"""
USERS_TABLE = f"""{RULE}epoch   loss
    1   0.5
{RULE}"""


def pieces(text: str, size: int) -> list[bytes]:
    data = text.encode()
    return [data[start : start + size] for start in range(0, len(data), size)]


def heard(text: str, size: int = 7) -> tuple[str, Words]:
    words = Words()
    stream = Stream(words, MARK.encode())
    out = b"".join(stream.feed(piece) for piece in pieces(text, size)) + stream.flush(at_end=True)
    return out.decode(), words


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "a line\n",
        "no end",
        "\n\nblank lines\n\n\n",
        USERS_TABLE,
        RULE,
        RULE + "a\n" * 100,
        "= = =\n",
        "\r50 %",
    ],
)
def test_the_ranks_words_pass_unchanged(text: str, size: int) -> None:
    out, words = heard(text, size)
    assert out == text
    assert (words.messages, words.launcher_output, words.death()) == ([], [], None)


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("output", "death"),
    [
        (HYDRA, None),  # it names a rank that it has ended itself as often as another
        (OPEN_MPI_KILLED, Death(1, 26457, "vm", signal=9)),
        (OPEN_MPI_4_KILLED, Death(1, None, "vm", signal=11)),
        (OPEN_MPI_STATUS, Death(12, status=3)),
        (OPEN_MPI_4_STATUS, Death(12, status=3)),
        (OPEN_MPI_EARLY, Death(1, 26703, "vm", status=0)),
        (OPEN_MPI_ABORT, None),
        ("Abort(1) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 1)\n", None),
        ("[proxy:0:0@vm] HYD_pmcd_pmip_control_cmd_cb (pmip_cb.c:480): assert (!closed) failed\n", None),
        ("[vm:27214] *** Process received signal ***\n[vm:27214] [ 0] /lib/libc.so.6(+0x3c050)[0x7f]\n", None),
    ],
)
def test_mpiruns_words_are_kept_back(output: str, death: Death | None, size: int) -> None:
    out, words = heard("before\n" + output + "behind\n", size)
    assert out == "before\nbehind\n"
    assert words.death() == death
    assert words.launcher_output


def test_messages_are_taken_out() -> None:
    message = MARK + json.dumps({"kind": "raised", "rank": 1, "text": "line\nanother \x1e"})
    out, words = heard(f"a warning{message}\n{message}\n{MARK}not JSON\n{MARK}[1]\nend\n")
    assert out == "a warning\nend\n"
    assert [message["text"] for message in words.of("raised")] == ["line\nanother \x1e"] * 2
    assert words.of("stalled") == []


def test_an_unfinished_line_is_shown_when_nothing_follows() -> None:
    stream = Stream(Words(), MARK.encode())
    assert stream.feed(b"50 %") == b""
    assert stream.pending
    assert stream.flush() == b"50 %"
    assert not stream.pending
    message = f'{MARK}{{"kind": "ended"}}\n'.encode()
    assert stream.feed(b" done\n" + message[:5]) == b" done\n"
    assert stream.flush() == b""  # may become a message
    assert stream.feed(message[5:]) == b""
    assert stream.words.of("ended")


@pytest.mark.parametrize(
    ("program", "status", "reported"),
    [
        ("exit 0", 0, {"status": 0}),
        ("exit 3", 3, {"status": 3}),
        ("kill -KILL $$", 137, {"status": 137}),
        ("kill -SEGV $$", 139, {"status": 139}),
        (
            "trap 'exit 75' USR1; kill -USR1 $PPID; sleep 5 >/dev/null 2>&1 & wait $!",
            75,
            {"status": 75},
        ),  # the shell passes it on
    ],
)
def test_a_ranks_shell_reports_its_end_and_nothing_else(program: str, status: int, reported: dict[str, int]) -> None:
    command = ["sh", "-c", RANK_SCRIPT, "distsgd-rank", "sh", "-c", f"echo out; echo err >&2; {program}"]
    settings = {**os.environ, LAUNCH_VARIABLE: LAUNCH}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == status
    assert done.stdout == "out\n"
    out, words = heard(done.stderr)
    assert out == "err\n"
    (message,) = words.of("exit")
    assert message.items() >= reported.items()


def test_only_who_knows_the_launchs_secret_is_believed() -> None:
    """A name with a line end may be printed by any program; so may a message of another launch."""
    forged = [mark(name) + json.dumps({"kind": "ended"}) for name in ("", "0-0", new_launch())]
    forged += ['\x1edistsgd {"kind": "ended", "status": "finished"}', f'\x1edistsgd {LAUNCH}{{"kind": "ended"}}']
    out, words = heard("".join(f"{text}\n" for text in forged))
    assert out == "".join(f"{text}\n" for text in forged)
    assert words.messages == []


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "USR2"])
def test_a_signal_that_comes_before_the_rank_is_passed_on(tmp_path: Path, name: str) -> None:
    """The rank's command comes through a pipe here, so that there is no rank as long as that holds nothing."""
    held = tmp_path / "held"
    os.mkfifo(held)
    settings = {**os.environ, LAUNCH_VARIABLE: LAUNCH, PROGRAM_VARIABLE: f"$(cat {shlex.quote(str(held))})"}
    process = subprocess.Popen(["sh", "-c", RANK_SCRIPT], env=settings, stderr=subprocess.PIPE, text=True)
    with open(held, "w") as file:  # the shell is about to read
        process.send_signal(getattr(signal, f"SIG{name}"))
        file.write("sleep 600")
    expected = getattr(signal, f"SIG{'TERM' if name == 'INT' else name}")  # a shell's background ignores SIGINT
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + expected
    (message,) = heard(err)[1].of("exit")
    assert message["status"] == 128 + expected


def test_a_rank_is_known_by_its_shell() -> None:
    """The variables alone, as a process below the rank inherits them, prove nothing."""
    look = "from distsgd.core.output import launched; print(launched())"
    below = f"import subprocess, sys; {look}; sys.stdout.flush(); subprocess.run([sys.executable, '-c', {look!r}])"
    settings = {**os.environ, LAUNCH_VARIABLE: LAUNCH, "PYTHONPATH": str(Path(__file__).parents[3])}
    program = [sys.executable, "-c", below]
    for given in ({PROGRAM_VARIABLE: shlex.join(program)}, {}):
        command = ["sh", "-c", RANK_SCRIPT, "distsgd-rank", *([] if given else program)]
        done = subprocess.run(command, env=settings | given, capture_output=True, text=True, timeout=LIMIT)
        assert done.stdout == f"{LAUNCH}\nNone\n"
    for parent in (None, str(os.getpid()), f"{os.getpid()}-1", "1-0", ""):
        given = {} if parent is None else {PARENT_VARIABLE: parent}
        done = subprocess.run(program, env=settings | given, capture_output=True, text=True, timeout=LIMIT)
        assert done.stdout == "None\nNone\n"


def ending(*messages: dict[str, object], output: str = "", status: int = 1, **keywords: object) -> Ending:
    met = {"kind": "rank_table", "first": 0, "ranks": [[1, "node1", 101], [0, "node1", 100], [2, "node2", 100]]}
    text = "".join(f"{MARK}{json.dumps(message)}\n" for message in (met, *messages))
    return Ending(status, heard(text + output)[1], **keywords)  # type: ignore[arg-type]


def exit_of(process: int, status: int, host: str = "node1") -> dict[str, object]:
    return {"kind": "exit", "process": process, "status": status, "host": host}


RAISED = {"kind": "raised", "rank": 0, "host": "node1", "error": "KeyError: 'a'", "text": "Traceback …"}
STALLED = {"kind": "stalled", "rank": 0, "host": "node1", "text": "rank 2 on node2 is stopped"}
ERROR = {"kind": "error", "text": "no data", "error": "DataError", "status": 2}
MICROBATCH = {
    "kind": "error",
    "text": "the model failed:\n  File\nKeyError: 'a'",
    "error": "UserCodeError",
    "status": 1,
}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (ending(exit_of(101, 137)), "rank 0 on node1 was killed by signal 9 (SIGKILL)"),
        (ending(exit_of(100, 139, "node2")), "rank 2 on node2 crashed with signal 11 (SIGSEGV)"),
        (ending(exit_of(100, 3)), "rank 1 on node1 left early with exit status 3"),
        (ending(exit_of(999, 3)), "a rank on node1 left early with exit status 3"),
        (ending(exit_of(100, 0), places={1: 20 * 16 + 2}), "rank 1 on node1 left early with exit status 0, in step 20"),
        (ending(output=OPEN_MPI_KILLED), "rank 0 on node1 was killed by signal 9 (SIGKILL)"),
        (ending(RAISED, RAISED, exit_of(101, 1)), "rank 0 on node1 raised KeyError: 'a' (and 1 more)"),
        (ending(STALLED), "rank 2 on node2 is stopped"),
        (ending(STALLED, exit_of(100, 137, "node2")), "rank 2 on node2 was killed by signal 9 (SIGKILL)"),
        (ending(ERROR, exit_of(101, 2)), "no data"),
        (ending(MICROBATCH), "the model failed: KeyError: 'a'"),
        (ending(forced="the ranks did not meet"), "the ranks did not meet"),
        (ending(output=HYDRA, status=9), "mpirun exited with status 9 and the run isn't done"),
        (Ending(5), "mpirun exited with status 5 and the run isn't done"),
    ],
)
def test_one_sentence_says_the_cause(how: Ending, sentence: str) -> None:
    assert cause_of(how, out_of_memory=False).sentence == sentence


def test_what_else_is_known_of_a_cause() -> None:
    assert "lack of memory" in cause_of(ending(exit_of(101, 137)), out_of_memory=True).sentence
    assert "memory" not in cause_of(ending(exit_of(101, 139)), out_of_memory=True).sentence
    assert cause_of(ending(ERROR), False) == Cause("no data", "", 2, final=True)
    for error in ("NonFiniteError", "ReplicaError", "CheckpointError", "OutputError"):
        assert cause_of(ending({**ERROR, "status": 1, "error": error}), False).final
    assert not cause_of(ending(MICROBATCH), False).final
    assert cause_of(ending(MICROBATCH), False).details == MICROBATCH["text"]
    assert cause_of(ending(RAISED), False).details == "Traceback …"
    assert "BAD TERMINATION" in cause_of(ending(output=HYDRA), False).details


def test_a_long_rank_table_comes_in_parts() -> None:
    parts = [
        {
            "kind": "rank_table",
            "first": first,
            "ranks": [[rank, f"node{rank}", rank] for rank in range(first, first + 40)],
        }
        for first in (40, 0, 80)
    ]
    found = rank_table(Ending(0, heard("".join(f"{MARK}{json.dumps(part)}\n" for part in parts))[1]))
    assert [member.number for member in found] == list(range(120))
