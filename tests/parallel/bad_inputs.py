"""The table of bad input: what is wrong, the files, the command, and words of the one sentence that it has to get.

tests/parallel/test_bad_input.py runs it on two ranks. A new way to be wrong is one more line here.
"""

from __future__ import annotations

import numpy as np

from tests.parallel.bad_arrays import NAMED_ARRAYS
from tests.parallel.bad_columns import COLUMN_OPTIONS
from tests.parallel.bad_data import ARRAYS, MNIST_FILES, PICKLES_AND_ARCHIVES, QUICK
from tests.parallel.bad_files import (
    Case,
    Make,
    X,
    Y,
    checkpoints,
    disk,
    disk_with_run,
    every,
    file,
    flipped,
    forbidden,
    link,
    npy,
    npy_bytes,
    npz,
    patched,
    pipe,
    rewritten,
    run,
    sealed,
    sparse,
    sub_folder,
    unreadable,
)
from tests.parallel.bad_hostile import HOSTILE
from tests.parallel.bad_meanings import MEANINGS
from tests.parallel.bad_tables import TABLES

RESUME = "--model softmax --max-steps 5 --quiet --out run"
CODE = f"{QUICK} --model m.py:f"
TOML = "--config run.toml"


def code(text: str | bytes) -> Make:
    """The user's model file."""
    return file("m.py", text)


def toml(content: str | bytes) -> Make:
    """A configuration file."""
    return file("run.toml", content)


def evil(content: str) -> Make:
    """A configuration file, and code beside it, under two names, which leaves a file where it runs."""
    return every(
        toml(content), file("evil.py", "open('ran', 'w').close()\ndef f(*a): return 0"), link("notes.txt", "evil.py")
    )


OPTIONS: dict[str, Case] = {
    "a family of kernels that there isn't": Case("kernels: expected one of auto, avx512", f"{QUICK} --kernels avx3"),
    "a family of kernels that is a number": Case("kernels", f"{QUICK} {TOML}", toml("kernels = 512")),
    "a learning rate that is no number": Case("learning_rate", f"{QUICK} --lr nan"),
    "a word in place of a number": Case("expected a whole number, got 'ten'", f"{QUICK} --epochs ten"),
    "a fraction of an epoch": Case("--epochs", "--epochs 1e3"),
    "an argument without an option": Case("extra", f"{QUICK} extra"),
    "a model larger than memory": Case(
        "1,013,513,513,485 parameters", "--hidden 13513513513 --epochs 1 --quiet", status=1
    ),
    "a layer larger than any array": Case("parameters takes", f"--hidden {10**30} --epochs 1 --quiet", status=1),
    "a billion microbatches": Case("at least 1 and at most 65536", f"{QUICK} --microbatches 1000000000"),
    "a million threads": Case("at least 1 and at most 1024", f"{QUICK} --threads 1000000 --microbatches 60000"),
    "shares of other ranks": Case("a number for each of the ranks", f"{QUICK} --microbatches 8 --shares 3,2,2,1"),
    "shares of more microbatches": Case("with the sum 9", f"{QUICK} --microbatches 8 --shares 4,5"),
    "a rank without a share": Case("at least 1, such as 11,5, got '8,0'", f"{QUICK} --microbatches 8 --shares 8,0"),
    "shares by a mistyped word": Case("expected equal, auto, or", f"{QUICK} --shares Auto"),
    "shares that can't change": Case("set --microbatches 6 or", f"{QUICK} --microbatches 5 --shares auto", least=3),
    "fewer microbatches than ranks": Case("set --microbatches 3", f"{QUICK} --microbatches 1", least=3),
    "weights of two classes out of ten": Case("expected 10 numbers, got 2", f"{QUICK} --class-weights 1 2"),
    "a validation set of everything": Case("validation_last", f"{QUICK} --validation-last 1797"),
    "a time before now": Case("max_time", f"{QUICK} --max-time -1s"),
    "nothing as a name": Case("out: expected", f"{QUICK} --out ''"),
    "a name that is no UTF-8": Case("out: expected text in UTF-8", f"{QUICK} --out \udcff"),
    "a name of 300 letters": Case("File name too long", f"{QUICK} --out {'a' * 300}"),
    "a terminal's colours in a name": Case(r"\x1b[31mred", f"{QUICK} --dataset \x1b[31mred"),
    "no such run to start from": Case("nowhere", f"{QUICK} --init-from nowhere"),
    "no such run to resume": Case("nowhere", f"{QUICK} --resume nowhere"),
    "a file to resume that is a pipe": Case("a pipe", f"{QUICK} --resume p", pipe("p"), status=1),
    "a trace in no folder": Case("make the folder first", f"{QUICK} --trace nowhere/t.json"),
    "a trace that is a folder": Case("which is a folder", f"{QUICK} --trace t.json", sub_folder("t.json")),
    "a trace that is a pipe": Case("trace: expected the path of a regular file", f"{QUICK} --trace p", pipe("p")),
    "a trace over another file": Case(
        "new file or of an earlier trace", f"{QUICK} --trace t.txt", file("t.txt", "mine")
    ),
    "a trace of a config over another file": Case(
        "holds something else", f"{QUICK} {TOML}", toml("trace = 'run.toml'")
    ),
    "a trace with a long name": Case("File name too long", f"{QUICK} --trace {'a' * 300}"),
    "no such data": Case("there is none", f"--dataset none.npz {QUICK}"),
    "no such test data": Case("there is none", f"--test none.npz {QUICK}"),
}

CONFIGURATIONS: dict[str, Case] = {
    "TOML that is none": Case("not a TOML file", TOML, toml("epochs = ")),
    "TOML in Latin-1": Case("not a TOML file", TOML, toml("out = 'é'".encode("latin-1"))),
    "TOML with a zero byte": Case("not a TOML file", TOML, toml("epochs = 1\0")),
    "TOML with an escaped zero byte": Case("out: expected text without", TOML, toml('out = "a\\u0000b"')),
    "TOML of 5,000 brackets": Case("not a TOML file", TOML, toml("a = " + "[" * 5000)),
    "TOML with a number of 5,000 digits": Case("not a TOML file", TOML, toml("epochs = " + "9" * 5000)),
    "TOML with a key twice": Case("not a TOML file", TOML, toml("epochs = 1\nepochs = 2")),
    "TOML of 2 MB": Case("more than 250000 bytes", TOML, toml("#" * 2_000_000)),
    "an unknown key": Case("did you mean epochs?", TOML, toml("epoch = 3")),
    "a key of two lines": Case(r"a\nb", TOML, toml('"a\\nb" = 3')),
    "a table": Case("unknown table [train]", TOML, toml("[train]\nepochs = 3")),
    "text in place of a number": Case("expected a whole number, got '3'", TOML, toml("epochs = '3'")),
    "a date in place of a number": Case("expected a whole number", TOML, toml("epochs = 2020-01-01")),
    "infinitely many epochs": Case("expected a whole number, got inf", TOML, toml("epochs = inf")),
    "a list of text in place of numbers": Case("expected a whole number, got 'a'", TOML, toml("hidden = [1, 'a']")),
    "a model of code in a configuration": Case("add --model evil.py:f to", TOML, evil("model = 'evil.py:f'")),
    "a metric of code in a configuration": Case("add --metric evil.py:f to", TOML, evil("metric = 'evil.py:f'")),
    "a callback of code in a configuration": Case("add --callback evil.py:f to", TOML, evil("callback = 'evil.py:f'")),
    "code that only another option names": Case(
        "add --callback evil.py:f to", f"{TOML} --out evil.py:f --model softmax", evil("callback = 'evil.py:f'")
    ),
    "a callback by what is no name": Case(
        "callback: expected file.py:name", TOML, evil("callback = ['evil.py:not an identifier']")
    ),
    "a callback in a file of another kind": Case("callback: expected file", TOML, evil("callback = ['notes.txt:f']")),
    "a metric by what is no name": Case("metric: expected one of", TOML, evil("metric = ['evil.py:not a name']")),
    "a model by what is no name": Case(
        "model: expected one of", f"{TOML} --epochs 1", evil("model = 'evil.py:not a name'")
    ),
    "a configuration that is missing": Case("No such file", TOML),
    "a configuration that is a folder": Case("Is a directory", TOML, sub_folder("run.toml")),
    "a configuration that is a pipe": Case("a pipe", TOML, pipe("run.toml")),
    "a configuration that never ends": Case("a device", TOML, link("run.toml", "/dev/zero")),
    "a configuration that links to itself": Case("symbolic links", TOML, link("run.toml", "run.toml")),
    "a configuration that can't be read": Case("could not read", TOML, unreadable("run.toml")),
    "a configuration without permission": Case("Permission", TOML, forbidden(toml("epochs = 1"), "run.toml")),
}

NEWER = (b'\\"format\\":2', b'\\"format\\":3')
LAST = "--resume run/checkpoints/step-3.safetensors --out new"
RUNS: dict[str, Case] = {
    "a flipped bit in the header's length": Case("start anew", RESUME, run(flipped(1)), status=1),
    "a flipped bit in the header": Case("start anew", RESUME, run(flipped(40)), status=1),
    "a flipped bit in the first number": Case("sha256", RESUME, run(checkpoints(
        lambda data: patched(data, 8 + int.from_bytes(data[:8], "little"), b"?"))), status=1),
    "a flipped bit in the last number": Case("sha256", RESUME, run(flipped(-1)), status=1),
    "checkpoints without their last byte": Case("start anew", RESUME, run(checkpoints(lambda d: d[:-1])), status=1),
    "checkpoints and a byte more": Case("sha256", RESUME, run(checkpoints(lambda data: data + b"x")), status=1),
    "empty checkpoints": Case("shorter than its header", RESUME, run(checkpoints(lambda data: b"")), status=1),
    "checkpoints of zeros": Case("no sha256", RESUME, run(checkpoints(lambda data: bytes(len(data)))), status=1),
    "text for checkpoints": Case("start anew", RESUME, run(checkpoints(lambda data: b"# notes\n" * 99)), status=1),
    "a header of 16 exabytes": Case("shorter", RESUME, run(checkpoints(lambda d: b"\xff" * 8 + d[8:])), status=1),
    "checkpoints of a newer format": Case(
        "has format 3, this version reads format 2", RESUME, run(checkpoints(lambda d: sealed(d, *NEWER))), status=1),
    "checkpoints of another program": Case("no sha256", RESUME, run(checkpoints(
        lambda data: sealed(data, b'"distsgd"', b'"another"').replace(b"sha256", b"sha512"))), status=1),
    "a checkpoint without its numbers": Case("its loss_sum is", RESUME, run(rewritten({"loss_sum": None})), status=1),
    "a configuration of another make": Case("its config is", RESUME, run(rewritten({"config": [1]})), status=1),
    "a best score of another make": Case("no step and epoch", RESUME, run(rewritten({"best": {"a": 1}})), status=1),
    "a rule of another make": Case("its rule is", RESUME, run(rewritten({"rule": {"best": "a"}})), status=1),
    "a checkpoint of other data": Case("contents was", RESUME, run(rewritten({"contents": "0" * 16}))),
    "a checkpoint that is a folder": Case("Is a directory", RESUME, run(
        checkpoints(lambda data: None), sub_folder("checkpoints/step-3.safetensors")), status=1),
    "a checkpoint that is a pipe": Case("a pipe", RESUME, run(
        checkpoints(lambda data: None), pipe("checkpoints/last.safetensors")), status=1),
    "a checkpoint that never ends": Case("a device", RESUME, run(
        checkpoints(lambda data: None), link("checkpoints/last.safetensors", "/dev/zero")), status=1),
    "a checkpoint of 8 TB": Case("no sha256", RESUME, run(
        checkpoints(lambda data: None), sparse("checkpoints/last.safetensors", 8 << 40, b"\xff\xff\xff\4")), status=1),
    "a checkpoint that can't be read": Case("could not read", RESUME, run(
        checkpoints(lambda data: None), unreadable("checkpoints/last.safetensors")), status=1),
    "a run of another learning rate": Case("learning_rate is", f"{RESUME} --lr 0.3", run()),
    "a run of another model": Case("model is 'softmax' there", RESUME.replace("softmax", "mlp"), run()),
    "a run of code that the checkpoint names": Case(
        "model is 'evil.py:f' there", RESUME, every(evil(""), run(rewritten({"config": {"model": "evil.py:f"}})))),
    "parameters of another model": Case("for another model", "--hidden 9 --epochs 1 --init-from run", run(), status=1),
    "a best checkpoint to go on from": Case(
        "for another model", LAST.replace("step-3", "best") + f" {QUICK}", run(), status=1),
    "a link to nowhere to go on from": Case(
        "no checkpoint", LAST.replace("run/", "") + f" {QUICK}", every(
            sub_folder("checkpoints"), link("checkpoints/step-3.safetensors", "gone"))),
    "records that are a folder": Case("metrics.jsonl", RESUME, run(
        lambda f: (f / "metrics.jsonl").unlink(), sub_folder("metrics.jsonl"))),
    "records that are a pipe": Case("metrics.jsonl", RESUME, run(
        lambda f: (f / "metrics.jsonl").unlink(), pipe("metrics.jsonl"))),
    "a run folder that is a file": Case("--out", f"{QUICK} --out run", file("run", "years")),
    "the same, not to be resumed": Case("--out", f"{QUICK} --out run --resume never", file("run", "years")),
    "a run folder in a file": Case("--out", f"{QUICK} --out file/run", file("file", "years")),
    "a run folder that holds something else": Case(
        "holds no run", f"{QUICK} --out run", file("run/thesis.tex", "years")),
    "the same, to be moved aside": Case(
        "holds no run", f"{QUICK} --out run --resume never", file("run/thesis.tex", "years")),
    "a run folder that is a link to nowhere": Case("--out", f"{QUICK} --out run", link("run", "gone")),
    "a run folder that links to itself": Case("--out", f"{QUICK} --out run", link("run", "run")),
    "a run folder under /proc": Case("--out", f"{QUICK} --out /proc/run"),
    "a full disk": Case("No space left", f"{QUICK} --out disk/run", disk(full=True)),
    "a full disk with a run": Case("No space left", RESUME.replace("run", "disk/run"), disk_with_run(full=True)),
    "a full disk with a run to be moved aside": Case(
        "No space left", f"{QUICK} --out disk/run --resume never", disk_with_run(full=True)),
    "a read-only disk": Case("Read-only", f"{QUICK} --out disk/a/run", disk(read_only=True)),
    "a read-only disk with a run": Case("Read-only", RESUME.replace("run", "disk/run"), disk_with_run(read_only=True)),
}  # fmt: skip

LAYERS = "import numpy as np\nimport distsgd\nfrom distsgd import Dense, FunctionObjective, Sequential\n"
WIDE = f"{LAYERS}def f(shape, outputs): return Sequential([Dense(64, outputs + 1)])"
WRONG_GRADIENT = f"""{LAYERS}
def loss(params, grads, batch):
    grads["w"][...] = np.zeros(7)
    return 1.0, len(batch)
def f(shape, outputs): return FunctionObjective(loss, {{"w": np.zeros(5)}})
"""
OWN_CODE: dict[str, Case] = {
    "a model that is missing": Case("no readable file m.py", CODE),
    "a model without its function": Case("m.py has no f", CODE, code("g = 1")),
    "a model with a typing error": Case("m.py, line 2 is not Python", CODE, code("x = 1\ndef f(:\n")),
    "a model that is indented wrongly": Case("line 2", CODE, code("def f(a, b):\nreturn 1")),
    "a model with a zero byte": Case("is not Python", CODE, code(b"x = 1\0")),
    "a model in Latin-1": Case("is not Python", CODE, code("x = 'é'".encode("latin-1"))),
    "a model of 100,000 brackets": Case("is not Python", CODE, code("x = " + "(" * 100_000)),
    "a model that is a pipe": Case("no readable file m.py", CODE, pipe("m.py")),
    "a model that is no function": Case("int", CODE, code("f = 1"), status=1, trace=True),
    "a model that is nothing": Case("got NoneType", CODE, code("def f(shape, outputs): return None")),
    "a model of another width": Case("(11,)", CODE, code(WIDE)),
    "a model for other inputs": Case("63", CODE, code(WIDE.replace("64", "63").replace(" + 1", ""))),
    "a model without parameters": Case("no parameters", CODE, code(
        f"{LAYERS}def f(s, o): return FunctionObjective(lambda p, g, b: (0.0, len(b)), {{}})")),
    "a model that takes no arguments": Case("TypeError", CODE, code("def f(): pass"), status=1, trace=True),
    "a model that raises": Case("KeyError: 'mine'", CODE, code("def f(s, o): raise KeyError('mine')"), 1, trace=True),
    "a model that raises as it is imported": Case("ZeroDivisionError", CODE, code("1 / 0"), 1, trace=True),
    "a model that imports what isn't there": Case("No module named", CODE, code("import nix_da"), 1, trace=True),
    "a model that exits": Case("SystemExit: 3", CODE, code("import sys\nsys.exit(3)"), 1, trace=True),
    "a model of a petabyte": Case("out of memory", CODE, code(
        f"{LAYERS}def f(s, o): return FunctionObjective(print, {{'w': np.zeros(10**15)}})"), 1),
    "a model whose parameters are NaN": Case("no longer finite", CODE, code(
        WRONG_GRADIENT.replace("np.zeros(7)", "1.0").replace("np.zeros(5)", "np.full(3, np.nan)")), 1,
        leaves=("runs",)),
    **{name: Case(reported, CODE, code(WRONG_GRADIENT.replace('grads["w"][...]', where)), leaves=("runs",))
       for name, reported, where in (
           ("a gradient that is assigned with another shape", "expected a value of shape (5,), got (7,)", 'grads["w"]'),
           ("a gradient of another name", "there is no array 'v'; expected one of: w", 'grads["v"]'),
           ("parameters that are assigned", "read-only", 'params["w"]'))},
    "a gradient of another shape": Case(
        "could not broadcast", CODE, code(WRONG_GRADIENT), 1, trace=True, leaves=("runs",)),
    "a metric of another shape": Case(
        "metric f: expected one", f"{QUICK} --metric m.py:f",
        code(f"{LAYERS}def f(out, y): return np.zeros(3)"), leaves=("runs",)),
}  # fmt: skip

COMMANDS: dict[str, Case] = {
    "to evaluate on other data": Case(
        "takes examples of shape", "run --dataset data.npz", every(run(), npz()), 2, "evaluate"),
    "to evaluate a class that wasn't trained": Case(
        "example 0 has 10", "run --dataset data.npz", every(run(), npz(x=np.ones((40, 64)), y=Y + 10)), 2, "evaluate"),
    "to evaluate on a part that isn't there": Case("split", "run --dataset digits --split test", run(), 2, "evaluate"),
    "to evaluate a damaged run": Case("sha256", "run --dataset digits", run(flipped(-1)), 1, "evaluate"),
    "to evaluate another make": Case(
        "its signature is", "run --dataset digits", run(rewritten({"signature": {"a": 1}})), 1, "evaluate"),
    "to evaluate a checkpoint that names code": Case(
        "to run that code, add --model evil.py:f", "run --dataset digits", every(
            evil(""), run(rewritten({"config": {"model": "evil.py:f"}}))), 2, "evaluate"),
    "to evaluate a checkpoint that names code by no name": Case(
        "model: expected one of", "run --dataset digits", every(
            evil(""), run(rewritten({"config": {"model": "evil.py:a b"}}))), 2, "evaluate"),
    "to predict by code of another name": Case(
        "no readable file mine.py", "run x.npy -o o --model mine.py:f", every(
            evil(""), npy(npy_bytes(X)), run(rewritten({"config": {"model": "evil.py:f"}}))), 2, "predict"),
    "to evaluate what is no run": Case("neither", ". --dataset digits", lambda folder: None, 2, "evaluate"),
    "to predict from other features": Case(
        "6 numbers each", "run data.npz -o out.npz", every(run(), npz()), 2, "predict"),
    "to predict from no features": Case(
        "at least one", "run x.npy -o o", every(run(), npy(npy_bytes(X[:, :0]))), 2, "predict"),
    "to predict into nowhere": Case(
        "could not write", "run data.npz -o no/out.npz", every(run(), npz(x=np.full((4, 64), 8.0))), 2, "predict"),
    "to predict from a pipe": Case("a pipe", "run data.npz -o out.npz", every(run(), pipe("data.npz")), 2, "predict"),
}  # fmt: skip


PARTS = (
    OPTIONS, CONFIGURATIONS, MNIST_FILES, ARRAYS, PICKLES_AND_ARCHIVES, HOSTILE, RUNS, OWN_CODE, COMMANDS, MEANINGS,
    NAMED_ARRAYS, TABLES, COLUMN_OPTIONS,
)  # fmt: skip
CASES: dict[str, Case] = {name: case for part in PARTS for name, case in part.items()}
assert len(CASES) == sum(map(len, PARTS)), "a name is there twice"
