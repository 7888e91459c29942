"""`distsgd completion SHELL`: bash and zsh themselves read the script, and complete with it."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from distsgd.cli import completion
from distsgd.cli.main import SUBCOMMANDS
from distsgd.core.errors import ConfigurationError
from distsgd.run.config import OPTIONS
from tests.unit.cli.test_main import run

BASH = shutil.which("bash")
ZSH = shutil.which("zsh")
CASES = [
    ("", set(SUBCOMMANDS)),
    ("do", {"doctor"}),
    ("train --optim", {"--optimizer"}),
    ("train --optimizer ad", {"adagrad", "adam", "adamw"}),
    ("train --loss s", {"softmax-cross-entropy", "squared-error"}),
    ("train --no-shu", {"--no-shuffle"}),
    ("train --hidden 30 40 --device g", {"gpu"}),
    ("train --dataset mn", {"mnist", "mnist.npz"}),  # a name, and a file
    ("train --data-dir mo", {"more"}),
    ("evaluate mo", {"more"}),
    ("plot more --only curves f", {"filters"}),
    ("predict more in", {"inputs.npy"}),
    ("compare --or", {"--order"}),
    ("launch --max-", {"--max-restarts"}),
    ("completion ", {"bash", "zsh"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell, and with files to complete."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        (folder / f"script.{shell}").write_text(completion.script_of(shell))
    (folder / "more").mkdir()
    for name in ("mnist.npz", "inputs.npy"):
        (folder / name).touch()
    return folder


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes(scripts: Path) -> None:
    asked = "".join(
        f"COMP_WORDS=(distsgd {' '.join(map(shlex.quote, text.split(' ')))}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        "COMPREPLY=(); _shtab_distsgd; echo ${COMPREPLY[*]}\n"
        for text, _ in CASES
    )
    source = f"source script.bash; complete -p distsgd\n{asked}"
    assert BASH is not None
    done = subprocess.run([BASH, "--norc", "-c", source], cwd=scripts, capture_output=True, text=True, check=True)
    registered, *completed = done.stdout.splitlines()
    assert registered.endswith("-F _shtab_distsgd distsgd")
    assert done.stderr == ""
    found = dict(zip((text for text, _ in CASES), (set(line.split()) for line in completed), strict=True))
    assert found == dict(CASES)


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize("option", ["dataset", "model", "metric", "resume", "data-dir"])
def test_bash_quotes_names_of_files(scripts: Path, tmp_path: Path, option: str) -> None:
    """A completed name is one argument, of which nothing is run; a folder's ends with a slash."""
    assert BASH is not None
    name = "q $(touch PWNED) `touch PWNED`;x"
    (tmp_path / name).mkdir()
    (tmp_path / "script.bash").write_text((scripts / "script.bash").read_text())
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        [BASH, "--norc", "--noprofile", "-i"], cwd=tmp_path, stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "dumb", "PS1": "", "INPUTRC": os.devnull},
    )  # fmt: skip
    os.close(follower)
    try:
        os.write(
            leader, b"source script.bash; distsgd() { printf '<%s>' \"$@\" > given; echo do''ne; }; echo rea''dy\n"
        )
        assert "ready" in until("ready", leader)
        os.write(leader, f"distsgd train --{option} q\t\n".encode())
        assert "done" in until("done", leader)
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)
    assert (tmp_path / "given").read_text() == f"<train><--{option}><{name}/>"
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.skipif(ZSH is None, reason="there is no zsh")
def test_zsh_completes(scripts: Path) -> None:
    assert ZSH is not None
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PS1": "", "ZDOTDIR": str(scripts)}
    shell = subprocess.Popen(
        [ZSH, "-f", "-i"], cwd=scripts, env=environment, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    try:
        first = os.environ.get("DISTSGD_TEST_ZSH", "")  # such as module_path, where zsh isn't in its usual place
        source = 'autoload -Uz compinit; compinit -u -D; eval "$(cat script.zsh)"'
        os.write(leader, f"{first}\n{source}; echo rea''dy\n".encode())
        assert "ready" in until("ready", leader)
        for text, completed in (("train --optimi", "--optimizer"), ("train --optimizer adag", "adagrad"),
                                ("eval", "evaluate"), ("train --dataset inp", "inputs.npy")):  # fmt: skip
            os.write(leader, f"\x15distsgd {text}\t".encode())
            assert completed in until(completed, leader)
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)


def until(wanted: str, terminal: int) -> str:
    """What the terminal shows, up to this text; all that came where it doesn't within a minute."""
    shown, end = "", time.monotonic() + 50
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


def test_every_option_is_in_the_script(scripts: Path) -> None:
    for shell in ("bash", "zsh"):
        script = (scripts / f"script.{shell}").read_text()
        assert all(option.flag in script for option in OPTIONS.values())


def test_the_command_prints_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert run(monkeypatch, "completion", "bash") == 0
    assert capsys.readouterr().out == completion.script_of("bash") + "\n"
    assert run(monkeypatch, "completion", "fish") == 2
    assert capsys.readouterr().err == "distsgd: error: shell: expected one of bash, zsh, got 'fish'\n"
    assert run(monkeypatch, "completion", "--help") == 0
    assert "eval" in capsys.readouterr().out


def test_without_shtab_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"shtab, which is not installed; .*distsgd\[completion\]'$"):
        completion.script_of("bash")
