"""What a checkpoint keeps of a user's program: it changes where the program computes something else, and else never."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from distsgd.run.compared.substance import Digests, described

NUMBERS = count()
PROGRAM = """
import time
import numpy as np
from argparse import Namespace
from functools import cache, partial
from pathlib import Path

RATE = 0.1
CONFIG = {"rate": 0.1, "epochs": 10, "inner": {"power": 2}}
args = Namespace(power=2, epochs=10)
WEIGHTS = np.array([1.0, 2.0])
BUFFER = np.zeros(3)
HERE = str(Path("/some/folder/file.py"))
calls, seen, log = 0, {}, []

def helper(x):
    return RATE * x

def power_of(config):
    return config["inner"]["power"]

class Net:
    scale = 3.0

    def __init__(self, width, calls=0):
        self.width, self.calls, self.cache, self.name = width, calls, {}, "a name"
        self.buffer = np.zeros(width)

    def forward(self, x):
        self.calls += 1
        self.cache[len(x)] = x
        np.multiply(x, self.width, out=self.buffer)
        return x * self.scale

NET = Net(4)

def make(alpha):
    steps = []
    def inner(x):
        steps.append(x)
        return alpha * x
    return inner

@cache
def cached(x):
    return x + 1

SCALED = make(2.0)

def loss(params, grads, batch, beta=0.5):
    '''The docstring.'''
    global calls
    calls += 1
    seen[len(batch)] = calls
    log.append(time.time())
    np.copyto(BUFFER, 1.0)
    settings = CONFIG
    # a comment
    value = helper(params) + settings["rate"] + args.power + power_of(CONFIG) + WEIGHTS.sum()
    return NET.forward(value) + SCALED(value) + cached(1) + BUFFER.sum() + len(HERE) * beta
"""


def run(text: str, file: bool = True) -> dict[str, Any]:
    """The names that a program defines, as another process would: under another file name each time."""
    name = f"<program {next(NUMBERS)}>"
    if file:
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": f"program{next(NUMBERS)}"}
    exec(compile(text, name, "exec", dont_inherit=True), scope)
    return scope


def substance(text: str, file: bool = True) -> Digests:
    return described({"model": run(text, file)["loss"]})


def changed(old: str, new: str) -> Digests:
    assert old in PROGRAM
    return substance(PROGRAM.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ('"rate": 0.1', '"rate": 0.2'),
        ('"power": 2', '"power": 3'),
        ("Namespace(power=2", "Namespace(power=3"),
        ("[1.0, 2.0]", "[1.0, 2.5]"),
        ("RATE * x", "RATE + x"),
        ('["inner"]["power"]', '["inner"]["power"] + 0'),
        ("scale = 3.0", "scale = 3.5"),
        ("Net(4)", "Net(5)"),
        ("x * self.scale", "x + self.scale"),
        ("make(2.0)", "make(2.5)"),
        ("alpha * x", "alpha + x"),
        ("x + 1", "x + 2"),
        ("beta=0.5", "beta=0.6"),
        ("helper(params) +", "helper(params) -"),
    ],
)
def test_what_computes_something_else(old: str, new: str) -> None:
    assert changed(old, new) != substance(PROGRAM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another comment\n\n"),
        ("'''The docstring.'''\n    ", ""),
        ("'''The docstring.'''", "'''Another\n\n    docstring.'''"),
        ("import time\n", "import time\n\n\n\n"),
        ("def helper(x):", "def helper(x: float) -> float:\n    'Helps.'"),
        ("RATE * x", "(RATE\n        * x)"),
        ('"epochs": 10', '"epochs": 20'),
        ("power=2, epochs=10", "power=2, epochs=20"),
        ("/some/folder/file.py", "/another/file.py"),
        ("calls, seen, log = 0, {}, []", "calls, seen, log = 7, {20: 7}, [1.5, 1.6]"),
        ("BUFFER = np.zeros(3)", "BUFFER = np.ones(3)"),
        ("Net(4)", "Net(4, calls=3)"),
        ('"a name"', '"a name"'),
        ("def make(alpha):", "def unused():\n    return RATE\n\ndef make(alpha):"),
    ],
)
def test_what_computes_the_same(old: str, new: str) -> None:
    assert changed(old, new) == substance(PROGRAM)


@pytest.mark.parametrize("file", [True, False])
def test_a_program_that_has_run_is_still_the_same(file: bool) -> None:
    """As in a notebook, or in the second of several fits of a script: counters, caches, buffers and logs have moved."""
    program = run(PROGRAM, file)
    before = described({"model": program["loss"]})
    for length in (2, 3):
        program["loss"](np.ones(4), None, [0] * length)
    assert described({"model": program["loss"]}) == before
    assert before == substance(PROGRAM, file)


def test_without_source_code_counts() -> None:
    """As of a program that is read from standard input; places in the file count for nothing."""
    assert substance(PROGRAM, file=False) == substance(PROGRAM.replace("import time\n", "import time\n\n"), file=False)
    for old, new in (("RATE * x", "RATE + x"), ("RATE = 0.1", "RATE = 0.2")):
        assert substance(PROGRAM.replace(old, new), file=False) != substance(PROGRAM, file=False)


def test_a_file_that_was_changed_after_it_was_imported_is_not_looked_at() -> None:
    program = run(PROGRAM)
    name = program["loss"].__code__.co_filename
    text = PROGRAM.replace("RATE * x", "RATE + x")
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    assert described({"model": program["loss"]}) != substance(text)


def lambdas() -> list[Callable[[float], float]]:
    return [lambda x: x + 1, lambda x: x + 2, lambda x: x + 1]


def test_lambdas_of_one_line_are_different() -> None:
    one, two, three = (described({"model": function}) for function in lambdas())
    assert one == three != two


def test_what_is_kept_is_bounded() -> None:
    lines = [f"G{number} = {number}" for number in range(500)]
    body = " + ".join(f"G{number}" for number in range(500))
    text = "\n".join([*lines, f"def loss(params, grads, batch):\n    return {body}\n"])
    found = substance(text)
    assert max(map(len, found.values())) <= 100
    assert all(len(part) < 200 and len(digest) < 200 for parts in found.values() for part, digest in parts.items())
    assert found != substance(text.replace("G499 = 499", "G499 = 500"))


def test_a_class_in_a_function_and_its_base() -> None:
    text = textwrap.dedent("""
        class Base:
            def rate(self):
                return 1.0

        def make():
            class Net(Base):
                def __call__(self, params, grads, batch):
                    return self.rate()
            return Net()

        loss = make()
    """)
    assert substance(text) == substance(text)
    assert substance(text) != substance(text.replace("1.0", "2.0"))


READ = """
from collections import defaultdict

K, NAME, RATES, HIST, LISTS = 1.0, "k", [1.0, 2.0], [], defaultdict(list)

class Shift:
    def __init__(self, k):
        self.k = k
    def add(self, v):
        return v * self.k
    def named(self):
        return getattr(self, NAME)

SHIFT = Shift(1.0)

def at(values, i):
    return values[i]

def first(params, grads, batch, seen=[]):
    seen.append(1)
    add = HIST.append
    add(1)
    LISTS["x"].append(1)
    return 1.0

def loss(params, grads, batch):
    return 1.0 + EXPRESSION
"""


@pytest.mark.parametrize(
    "expression",
    [
        "getattr(SHIFT, 'k')", "getattr(SHIFT, NAME)", "vars(SHIFT)['k']", "SHIFT.__dict__['k']", "SHIFT.named()",
        "SHIFT.add(1.0)", "globals()['K']", "at(RATES, 0)",
    ],
)  # fmt: skip
def test_a_value_that_is_read_by_another_way_counts(expression: str) -> None:
    text = READ.replace("EXPRESSION", expression)
    other = text.replace("Shift(1.0)", "Shift(2.0)").replace("LISTS = 1.0", "LISTS = 2.0").replace("[1.0,", "[3.0,")
    assert substance(text) == substance(text) != substance(other)


def test_a_changed_default_and_another_name_of_a_method_are_no_change() -> None:
    program = run(READ.replace("EXPRESSION", "first(params, grads, batch)"))
    before = described({"model": program["loss"], "metrics": program["first"]})
    program["loss"](None, None, None)
    assert program["HIST"]
    assert program["LISTS"]
    assert described({"model": program["loss"], "metrics": program["first"]}) == before


@pytest.mark.parametrize("value", ["{'a': 1.0}", "[1.0, 3.0]", "np.array([1.0])"])
def test_without_source_what_nothing_changes_counts(value: str) -> None:
    read = "VALUE['a']" if "{" in value else "VALUE[0]" if "[1.0, 3" in value else "VALUE"
    text = f"import numpy as np\nVALUE = {value}\ndef loss(params, grads, batch):\n    return params * {read}\n"
    assert substance(text, file=False) == substance(text, file=False)
    assert substance(text, file=False) != substance(text.replace("1.0", "2.0"), file=False)
    changing = text.replace("    return", "    VALUE[len(batch)] = 2.0\n    return")
    assert substance(changing, file=False) == substance(changing.replace("1.0", "2.0"), file=False)


def test_a_statement_that_does_nothing_is_no_change() -> None:
    assert changed("    # a comment\n", "    pass\n") == substance(PROGRAM)
