"""Every block of README and docs runs as it stands, or is marked and says why not; what a page shows is compared.

Of one page, the blocks run in order, in one temporary folder:

- `python`: in one namespace for the page. Where the first line is `# name.py`, the block is that file, too.
- `sh`, `bash`, `console`: command by command. A command ends with exit status 0, or with that of a comment after it,
  `# exit status 2` or `# exit status 0 or 1`. `DIR` and the cache folder hold small files of the data sets' forms, so
  that nothing is downloaded.
- `toml`: a configuration, given to `--dry-run`; `# name.toml` in its first line names the file.
- `json`: is parsed. `text`: a formula or a sketch, in which no command and no message may stand.
- a block without a language directly after one that ran: what that one printed, or its last command (`difference` says
  what may vary).

A block that can't run here has `<!-- not run: REASON -->` on the line before it. `<!-- needs MODULE -->` runs it where
the module is installed, and `<!-- a file: REASON -->` only writes it to its file, for a command after it to run.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from examples import stand_in
from tests.parallel.launch import find_mpirun, run_command
from tests.parallel.pages import (
    PACKAGE,
    PAGES,
    ROOT,
    SHELL,
    WITH_FRAMEWORKS,
    Block,
    Command,
    blocks_of,
    commands_of,
    difference,
)
from tests.unit.project.test_extending import BLOCKS

SHORTER = (
    # What a page shows takes longer than a test needs: the same options are used, on less. (pattern, what replaces it)
    (r"(DIR.*--epochs) \d{2,}\b", r"\1 2"),
    (r"--validation-last \d{4,}\b", "--validation-last 150"),  # of 1,500 images in the stand-in for MNIST
    (r"for ranks in 1 2 3 4(.*)distsgd.train", r"for ranks in 1 2\1distsgd.train --max-steps 3"),
    (r"(.*examples/nielsen.*)", r"\1 --validation-last 150"),
    (
        r"^(?!.*--max-steps)(?!.*--check-gradient)(.*(?:examples/|conv |cifar-10|network3|blocks).*)",
        r"\1 --max-steps 3",
    ),
)
"""In order; the only thing in which a command that runs here differs from the one in the page."""

DEAR = (
    "docs/extending.md",  # tests/unit/project/test_extending.py runs its blocks
    "docs/index.md",  # README.md has the same commands
    "docs/models.md",  # tests/unit/nn trains with its networks
    "docs/plots.md",  # test_plot.py draws
    "docs/reliability.md",  # tests/faults kills and continues
    *(page for page in PAGES if page.startswith("docs/tutorials/")),  # test_tutorials.py trains
)
"""Pages that `make test` leaves out, because another of its tests runs what they are about."""

IN_ORDER = {page: blocks_of(page, path.read_text(encoding="utf-8")) for page, path in PAGES.items()}


def shorter(command: str) -> str:
    lines = re.sub(r" +# [^'\"\n]*$", "", command.replace("\\\n", " "))
    for pattern, other in SHORTER:
        lines = re.sub(pattern, other, lines, count=1)
    return lines


def is_output(block: Block) -> bool:
    return block.language == "" and block.after


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files and mnist.pkl.gz with the package's digits in them, and CIFAR-10's files with noise."""
    folder = stand_in.write(tmp_path_factory.mktemp("DIR"))
    rng = np.random.default_rng(0)
    parts = [(rng.random((count, 784), np.float32), rng.integers(0, 10, count)) for count in (300, 100, 100)]
    (folder / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps(parts, protocol=2), compresslevel=1))
    cifar = folder / "cifar-10" / "cifar-10-batches-bin"
    cifar.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (80, 3073), np.uint8)
        records[:, 0] %= 10
        (cifar / f"{name}.bin").write_bytes(records.tobytes())
    return folder


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.hashes: dict[str, str] = {}
        self.printed = self.last = ""

    def read(self, block: Block) -> None:
        if block.is_file:
            assert self.write(block), f"{block.where}: the first line names no file"
        elif is_output(block):
            self.compare(block.text, block.where, last=self.last)
        elif block.language == "python":
            self.python(block)
        elif block.language in SHELL:
            outputs = [self.shell(command, block.where) for command in commands_of(block)]
            self.printed, self.last = "".join(outputs), outputs[-1]
        elif block.language == "toml":
            tomllib.loads(block.text)
            self.shell(
                Command(f"python -m distsgd.train --dry-run --config {self.write(block, 'run.toml')}"), block.where
            )
        else:
            assert block.language == "json", f"{block.where}: a block of {block.language!r} is neither run nor marked"
            json.loads(block.text)

    def compare(self, shown: str, where: str, *, last: str = "") -> None:
        """A page shows all that a block printed, or what its last command did."""
        wrong = difference(shown, self.printed, self.hashes)
        assert wrong is None or difference(shown, last, self.hashes) is None, f"{where}: {wrong}"

    def write(self, block: Block, default: str = "") -> str:
        """The block as a file, where its first line names one."""
        named = re.match(r"# ([\w./-]+\.\w+)\n", block.text)
        name = named[1] if named else default
        if name:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(block.text, encoding="utf-8")
        return name

    def python(self, block: Block) -> None:
        if package := PACKAGE.match(block.text):
            assert package[1] in BLOCKS, f"{block.where}: tests/unit/project/test_extending.py doesn't know it"
            return
        self.write(block)
        code = compile("\n" * block.line + block.text, PAGES[block.page], "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(code, self.namespace)
        self.printed = self.last = stream.getvalue()

    def shell(self, command: Command, where: str) -> str:
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        done = run_command(None, ["sh", "-c", shorter(command.text)], self.folder, limit=150.0, extra=cache)
        assert done.status in command.statuses, f"{where}: {command.text}: exit status {done.status}\n{done.text}"
        if command.output is not None:
            self.printed = done.err + done.out
            self.compare(command.output, where)
        return done.out


@pytest.fixture
def reader(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    (tmp_path / "DIR").symlink_to(data)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "distsgd").symlink_to(data)
    for name in ("examples", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before: dict[str, ModuleType] = dict(sys.modules)
    yield Reader(tmp_path)
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long) if page in DEAR else page
        for page in PAGES
        if page not in WITH_FRAMEWORKS
    ],
)
def test_page(page: str, reader: Reader) -> None:
    read_page(page, reader)


def read_page(page: str, reader: Reader) -> None:
    """Runs a page's blocks in order."""
    blocks = [block for block in IN_ORDER[page] if block.reason is None and block.language != "text"]
    blocks = [block for block in blocks if not block.needs or find_spec(block.needs) is not None]
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    for block in blocks:
        reader.read(block)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_blocks_of_python_are_one_program_on_two_ranks(tmp_path: Path) -> None:
    """Up to the first command: each rank runs all of it, also what only one of them may do."""
    blocks = takewhile(lambda block: block.language not in SHELL, IN_ORDER["docs/python.md"])
    (tmp_path / "program.py").write_text("".join(block.text for block in blocks if block.language == "python"))
    done = run_command(2, [sys.executable, "program.py"], tmp_path, limit=250.0)
    assert done.status == 0, done.text
    assert "Traceback" not in done.err


def test_what_is_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for page in IN_ORDER.values() for block in page]
    marked = [block for block in blocks if block.reason is not None]
    unexplained = [block.where for block in marked if len((block.reason or "").split()) < 2]
    assert not unexplained, "the mark needs a reason: <!-- not run: REASON -->"
    files = {match[1] for block in blocks if block.is_file and (match := re.match(r"# (\S+)\n", block.text))}
    commands = [block.text for block in blocks if block.language in SHELL and block.reason is None]
    assert all(any(name in command for command in commands) for name in files), "a command runs each file"
    kinds = Counter(block.language or "output" for block in blocks if block.reason is None)
    with capsys.disabled():
        print(f"\n{sum(kinds.values())} blocks of {len(PAGES)} pages run or are compared: {dict(kinds)}")
        for block in marked:
            print(f"not run: {block.where} ({block.language or 'text'}): {block.reason}")
        for block in blocks:
            if block.needs and find_spec(block.needs) is None:
                print(f"not run: {block.where} ({block.language}): {block.needs} isn't installed")
    assert len(marked) < sum(kinds.values()) / 2


def test_sketches_hold_no_commands_and_no_messages() -> None:
    command = re.compile(r"^\s*(\$ |python|mpirun|pip|make|distsgd|warning:|note:)", re.MULTILINE)
    wrong = [
        block.where
        for page in IN_ORDER.values()
        for block in page
        if block.language == "text" and command.search(block.text)
    ]
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_headings(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    if "```{include}" in text:
        return  # the site's place for a page beside docs/
    prose = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    levels = [len(heading) for heading in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    assert levels[:1] == [1]
    assert levels.count(1) == 1, "one heading of the first level"
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is skipped"


def test_quoted_messages_are_the_programs_own() -> None:
    """Of each part of a message in errors.md's table, the longest run of words is in the program."""
    quoted = re.findall(r"^\| `([^`]+ [^`]+)` \|", PAGES["docs/errors.md"].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) == 6
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "distsgd").rglob("*.py")]
    program = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    for message in quoted:
        for part in re.split(r"[;,:]", message):
            words = max(re.split(r"\w*\d\w*|'\w'|\b\w\b|[^a-z ]+", part), key=len).strip()
            assert words in program, f"{message!r}: the program doesn't say {words!r}"


def test_blocks_and_commands_are_found() -> None:
    text = (
        'Text\n\n```console\n$ python -c "\nprint(1)"\n1\n$ false # exit status 1\n```\n\n'
        "<!-- not run: there is no cluster here -->\n```sh\nsbatch a \\\n    b\n```\n```\nqueued\n```\n```{note}\n```\n"
    )
    text += "\n- Text\n  ```python\n    a\n  ```\n"  # the mark above isn't this block's
    text += "\n<!-- a file: for b -->\n```python\n# a.py\n```\n<!-- needs keras -->\n```sh\npython a.py\n```\n"
    console, marked, output, python, file, command = blocks_of("page", text)
    assert [(block.is_file, block.needs) for block in (python, file, command)] == [
        (False, ""),
        (True, ""),
        (False, "keras"),
    ]
    assert commands_of(console) == [
        Command('python -c "\nprint(1)"', "1"),
        Command("false # exit status 1", None, (1,)),
    ]
    assert [block.reason for block in (console, marked, python)] == [None, "there is no cluster here", None]
    assert python.text == "  a\n"
    assert commands_of(marked) == [Command("sbatch a \\\n    b")]
    assert (is_output(console), is_output(output), output.line) == (False, True, 15)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 0.502", "loss   0.503\n", True),
        ("loss 0.502", "loss 0.602", False),
        ("epoch 3", "epoch 4", False),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…\nz", "a\nb\nc", False),
        ("took … s", "took 0.3 s", True),
        ("0a1b2c3d\n0a1b2c3d", "9f9f9f9e\n9f9f9f9e", True),
        ("0a1b2c3d\n0a1b2c3d", "9f9f9f9e\n9f9f9f9f", False),
        ("0a1b2c3d\n0a1b2c3e", "9f9f9f9e\n9f9f9f9e", False),
    ],
)
def test_difference(shown: str, printed: str, same: bool) -> None:
    assert (difference(shown, printed, {}) is None) == same
