"""The table of what ranks may be given differently: arguments of fit for the odd rank and for all others, and the
sentence's words; and what looks different and is the same.

unlike_ranks.py goes through it in one mpirun. A new way to differ is one more line here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

import distsgd
from distsgd.optim import schedules
from distsgd.training.metrics import Accuracy, TopK, UserMetric
from tests.parallel.unlike_objects import (
    Color,
    Half,
    Plain,
    Pull,
    Raising,
    Share,
    Signs,
    Unfinished,
    by_global,
    by_helper,
    first_lambda,
    line,
    network,
    preset,
    preset_by_name,
    pull,
    remembered,
    scaled,
    second_lambda,
    share_with,
    steep_line,
)  # fmt: skip

Given = dict[str, Any]
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
LARGE = np.random.default_rng(1).normal(size=(5000, 60)).astype(np.float32)
LABELS = np.arange(5000) % 2


@dataclass(frozen=True)
class Row:
    """What the odd rank is given, what the others are, and the words that the sentence has to hold."""

    given: Callable[[bool], Given]
    words: tuple[str, ...]
    of_odd_rank: bool = False
    """Whether the sentence is an error of the odd rank's own, which names that rank alone."""


def option(name: str, common: Any, odd: Any, *words: str, **more: Any) -> Row:
    """One option with two values."""
    return Row(lambda is_odd: {**more, name: odd if is_odd else common}, (name, *(words or (repr(common), repr(odd)))))


def either(common: Any, odd: Any, *words: str) -> Row:
    """Two sets of arguments."""
    return Row(lambda is_odd: odd if is_odd else common, words)


def wrong(odd: Any, *words: str) -> Row:
    """Arguments that the odd rank alone can't be called with."""
    return Row(lambda is_odd: odd() if is_odd else {}, words, of_odd_rank=True)


OPTIONS = {
    "learning_rate": option("learning_rate", 0.1, 0.2),
    "a learning rate of float32": option("learning_rate", 0.1, np.float32(0.1), "0.1 on", "0.10000000149011612 on"),
    "epochs": option("epochs", 1, 2),
    "batch_size": option("batch_size", 20, "full"),
    "seed": option("seed", 0, 1),
    "hidden": option("hidden", (8,), (8, 8)),
    "activation": option("activation", "relu", "tanh"),
    "dropout": option("dropout", 0.0, 0.5),
    "batch_norm": option("batch_norm", False, True),
    "bias": option("bias", False, True),
    "weight_initializer": option("weight_initializer", "he", "zeros"),
    "dtype": option("dtype", "float32", "float64"),
    "microbatches": option("microbatches", 4, 8),
    "optimizer": option("optimizer", "adam", "sgd"),
    "momentum": option("momentum", 0.9, 0.8),
    "weight_decay": option("weight_decay", 0.0, 0.1),
    "l1": option("l1", 0.0, 0.1),
    "l2": option("l2", 0.1, 0.0),
    "penalize": option("penalize", ("weights",), ("*",)),
    "freeze": option("freeze", (), ("dense1.*",)),
    "clip_norm": option("clip_norm", None, 1.0),
    "schedule": option("schedule", "constant", "cosine"),
    "warmup_steps": option("warmup_steps", 0, 5),
    "decay_rate": option("decay_rate", 0.5, 1.0, schedule="inverse-time"),
    "sampling": option("sampling", "epochs", "replacement"),
    "shuffle": option("shuffle", True, False),
    "drop_last": option("drop_last", False, True),
    "max_steps": option("max_steps", 1, 2),
    "max_time": option("max_time", "10m", "20m"),
    "target": option("target", "validation_accuracy=2.0", None),
    "validate_every": option("validate_every", "1epoch", "2"),
    "validation_fraction": option("validation_fraction", 0.0, 0.5),
    "validation_last": option("validation_last", None, 7),
    "patience": option("patience", 10, 0),
    "early_stopping": option("early_stopping", "epochs", "patience"),
    "monitor": option("monitor", "validation_loss", "validation_error"),
    "loss": option("loss", "auto", "squared-error"),
    "label_smoothing": option("label_smoothing", 0.0, 0.1),
    "scale": option("scale", None, 2.0),
    "train_metrics": option("train_metrics", "running", "full"),
    "a folder on most ranks": option("out", "run", None),
    "a folder on one rank": option("out", None, "run"),
    "pictures": option("plot", False, True, out="run"),
    "keep": option("keep", 1, 2, out="run"),
    "threads": option("threads", 1, 2),
    "device": option("device", "cpu", "auto"),
    "communication": option("communication", "auto", "mpi"),
    "stall_timeout": option("stall_timeout", "100s", "0"),
    "check_replicas": option("check_replicas", 1, 0),
}


W = {"w": np.zeros(4)}
"""Initial values of the functions above."""


def own(function: Any, params: Any = W, **more: Any) -> Given:
    """Arguments for a function of the user's own."""
    return {"model": function, "params": params, **more}


def functions(common: Any, odd: Any, *words: str) -> Row:
    return either(own(common), own(odd), "model", *words)


def metrics(common: Any, odd: Any, *words: str) -> Row:
    return either({"metrics": common}, {"metrics": odd}, "metrics[", *words)


def setting(common: Any, odd: Any, *words: str) -> Row:
    return metrics([Share(common)], [Share(odd)], "metrics[0].setting", *words)


OBJECTS = {
    "models by name": either({"model": "mlp"}, {"model": "softmax"}, "model", "'mlp' on", "'softmax' on"),
    "a name and a layer": either({"model": "mlp"}, {"model": network(3)}, "model", "'mlp' on", "Sequential on"),
    "a layer and a function": either({"model": network(3)}, own(line), "model", "Sequential", "function line, code"),
    "layers": either({"model": network(3)}, {"model": network(5)}, "model.layers[0]", "3 on", "5 on"),
    "activations": either(
        {"model": network(3)}, {"model": network(3, "tanh")}, "model.layers[1]", "'relu' on", "'tanh' on"
    ),
    "functions": functions(line, steep_line, "function line, code", "function steep_line, code"),
    "a function's variable": functions(remembered(1.0), remembered(2.0), "(variable factor)", "1.0 on", "2.0 on"),
    "a function's list": functions(remembered([1.0]), remembered([1.0, 2.0]), "factor", "[1.0] on", "[1.0, 2.0] on"),
    "a function's array": functions(
        remembered(np.ones(3)), remembered(np.ones(4)), "factor", "float64 (3,), contents", "float64 (4,), contents"
    ),
    "a function's default": functions(preset(1.0), preset(2.0), "(default 0)", "1.0 on", "2.0 on"),
    "a keyword's default": functions(preset_by_name(1.0), preset_by_name(2.0), "(default factor)", "1.0 on", "2.0 on"),
    "a function's global": functions(by_global(1.0), by_global(2.0), "(global factor)", "1.0 on", "2.0 on"),
    "a function's helper": functions(by_helper(1.0), by_helper(2.0), "(global inner)", "function inner, code"),
    "a constant in a lambda": functions(
        lambda p, g, b: pull(p, g, b, 1.0), lambda p, g, b: pull(p, g, b, 2.0), "function <lambda>, code"
    ),
    "a partial's argument": functions(partial(scaled, 1.0), partial(scaled, 2.0), "(arguments)", "(1.0,)", "(2.0,)"),
    "the self of a method": functions(Pull(1.0).loss, Pull(2.0).loss, "(self).factor", "1.0 on", "2.0 on"),
    "an object that is called": functions(Pull(1.0), Pull(2.0), "model.factor", "1.0 on", "2.0 on"),
    "an object of an ordinary class": functions(Plain(1.0), Plain(2.0), "model.factor", "1.0 on", "2.0 on"),
    "a function behind a cache": functions(
        lru_cache(remembered(1.0)), lru_cache(remembered(2.0)), "(variable factor)", "1.0 on", "2.0 on"
    ),
    "initial values": either(own(line), own(line, {"w": np.ones(4)}), "params['w']", "float64 (4,), contents"),
    "initial values of one rank": either(own(line), own(Pull(1.0), None), "model", "function line"),
    "initial values of another dtype": either(
        own(line), own(line, {"w": np.zeros(4, "f4")}), "params['w']", "float64 (4,)", "float32 (4,)"
    ),
    "initial values by other names": either(own(line), own(line, {"v": np.zeros(4)}), "params", "'w' on", "'v' on"),
    "initial values in another order": either(
        own(line, {"w": np.zeros(4), "b": np.zeros(1)}), own(line, {"b": np.zeros(1), "w": np.zeros(4)}),
        "order of parameters", "w, b on", "b, w on",
    ),
    "an optimizer's rate": either(
        {"optimizer": distsgd.Adam(0.1)}, {"optimizer": distsgd.Adam(0.2)}, "learning_rate", "0.1 on", "0.2 on"
    ),
    "optimizers": either(
        {"optimizer": distsgd.Adam(0.1)}, {"optimizer": distsgd.SGD(0.1)}, "optimizer", "'adam' on", "'sgd' on"
    ),
    "a name and another optimizer": either(
        {"optimizer": "sgd"}, {"optimizer": distsgd.Adam(0.1)}, "optimizer", "'sgd' on", "'adam' on"
    ),
    "an optimizer of the user's own": either(
        {"optimizer": Signs(0.1, 1.0)}, {"optimizer": Signs(0.1, 2.0)}, "optimizer.factor", "1.0 on", "2.0 on"
    ),
    "schedules": either({"schedule": Half(0.5)}, {"schedule": Half(0.25)}, "schedule.factor", "0.5 on", "0.25 on"),
    "kinds of schedules": either(
        {"schedule": Half(0.5)}, {"schedule": schedules.Constant()}, "schedule", "Half on", "Constant on"
    ),
    "metrics": metrics([TopK(1)], [TopK(2)], "metrics[0].k", "1 on", "2 on"),
    "metrics in another order": metrics(
        [TopK(2), Accuracy()], [Accuracy(), TopK(2)], "metrics[0]", "TopK on", "Accuracy on"
    ),
    "a metric more": metrics([], [TopK(2)], "metrics[0]", "not given on", "TopK on"),
    "a metric's function": metrics(
        [UserMetric("m", lambda o, y: o[0])], [UserMetric("m", lambda o, y: o[1])], ".function", "<lambda>, code"
    ),
    "a metric's class": metrics([share_with(0.0)], [share_with(1.0)], "(variable offset)", "0.0 on", "1.0 on"),
    "a setting that is an enum": setting(Color.RED, Color.BLUE, "Color.RED on", "Color.BLUE on"),
    "a setting that is a path": setting(PurePosixPath("a"), PurePosixPath("b"), "('a') on", "('b') on"),
    "a setting that is a dtype": setting(np.dtype("f4"), np.dtype("f8"), "float32 on", "float64 on"),
    "a setting that is a class": setting(np.float32, np.float64, "numpy.float32 on", "numpy.float64 on"),
    "a setting that is a NumPy scalar": setting(0.5, np.float64(0.5), "0.5 on", "float64 0.5 on"),
    "a setting that is a dictionary": setting({"a": 1}, {"a": 2}, "{'a': 1} on", "{'a': 2} on"),
    "a setting that is a set": setting({"a", "b"}, {"a", "c"}, "{'a', 'b'} on", "{'a', 'c'} on"),
    "a setting that is nothing": setting(None, (), "None on", "() on"),
    "a setting of two lines": setting("a\nb", "a\nc", r"'a\nb' on", r"'a\nc' on"),
    "a setting of a thousand letters": setting("a" * 1000, "a" * 999 + "b", "aaa… (digest "),
}  # fmt: skip


def sets(*parts: Any) -> Given:
    return {"train": parts}


def changed(array: Any, index: Any, value: Any) -> Any:
    copy = array.copy()
    copy[index] = value
    return copy


OTHER_X = "float32 (60, 4), contents"
ONES = np.ones(60, np.float32)
ARRAYS = {
    "one number of x": either(sets(X, Y), sets(changed(X, (7, 1), 9), Y), "train x", OTHER_X),
    "one number of a large x": either(
        sets(LARGE, LABELS), sets(changed(LARGE, (4321, 17), 9), LABELS), "train x", "float32 (5000, 60), contents"
    ),
    "two rows of a large x in each other's place": either(
        sets(LARGE, LABELS), sets(LARGE[[*range(4003), 4005, 4004, 4003, *range(4006, 5000)]], LABELS), "train x"
    ),
    "x in another order": either(sets(X, Y), sets(X[::-1], Y), "train x", OTHER_X, "every rank all examples"),
    "a share of x": either(sets(X, Y), sets(X[:30], Y[:30]), "train x", "float32 (30, 4)", "also different: train y"),
    "x of another dtype": either(sets(X, Y), sets(X.astype("f8"), Y), "train x", "float32 (60, 4)", "float64 (60, 4)"),
    "a label": either(sets(X, Y), sets(X, changed(Y, 3, 1 - Y[3])), "train y", "int64 (60,), contents"),
    "values for labels": either(sets(X, Y), sets(X, Y.astype("f4")), "train y", "int64 (60,)", "float32 (60,)"),
    "a label too few": either(sets(X, Y), sets(X, Y[:-1]), "train y", "int64 (60,)", "int64 (59,)"),
    "weights": either(sets(X, Y, ONES), sets(X, Y, 2 * ONES), "train weights", "float32 (60,), contents"),
    "weights on one rank": either(sets(X, Y), sets(X, Y, ONES), "train differs", "(x, y) on", "(x, y, weights) on"),
    "validation on one rank": either({}, {"validation": (X, Y)}, "validation", "None on", "(x, y) on"),
    "validation on most ranks": either({"validation": (X, Y)}, {}, "validation", "None on"),
    "validation": either(
        {"validation": (X, Y)}, {"validation": (X + 1, Y)}, "validation x", OTHER_X, "every rank all examples"
    ),
    "test on one rank": either({}, {"test": (X, Y)}, "test", "None on"),
    "test": either({"test": (X, Y)}, {"test": (X, 1 - Y)}, "test y", "int64 (60,), contents"),
}


def examples() -> Iterator[Any]:
    yield from X


OWN_ERRORS = {
    "an unknown option": wrong(lambda: {"batchsize": 3}, "unknown option 'batchsize'"),
    "an option of another kind": wrong(lambda: {"epochs": "ten"}, "epochs: expected a whole number, got 'ten'"),
    "an option out of range": wrong(lambda: {"learning_rate": -1.0}, "learning_rate: expected"),
    "an object without a name": wrong(lambda: {"epochs": object()}, "epochs: expected a whole number, got <object"),
    "another class": wrong(lambda: {"optimizer": dict}, "optimizer must be an instance of"),
    "a schedule that is none": wrong(lambda: {"schedule": 3}, "schedule must be an instance of"),
    "a metric that is none": wrong(lambda: {"metrics": [3]}, "metrics must be an instance of"),
    "a metric without brackets": wrong(lambda: {"metrics": TopK(2)}, "metrics must be a list, got TopK"),
    "a callback that is none": wrong(lambda: {"callbacks": [3]}, "callbacks must be an instance of"),
    "initial values without names": wrong(lambda: own(line, [np.zeros(4)]), "params must be arrays by name, got list"),
    "a communicator that is none": wrong(lambda: {"communicator": 3}, "communicator must be one of mpi4py's"),
    "no data": wrong(lambda: {"train": None}, "give x and y"),
    "x alone": wrong(lambda: {"train": X}, "give x and y"),
    "no examples": wrong(lambda: sets(np.float32(3), Y), "got a single number"),
    "rows of two lengths": wrong(lambda: sets([[1.0], [1.0, 2.0]], [0, 1]), "train x can't become an array"),
    "a generator of examples": wrong(lambda: sets(examples(), Y), "got generator; make it a list"),
    "pictures without a folder": wrong(lambda: {"plot": True}, "say which with out="),
    "an array that raises": wrong(lambda: sets(Raising(KeyError), Y), 'KeyError: "in the user\'s own class"'),
    "an array that exits": wrong(lambda: sets(Raising(SystemExit), Y), "SystemExit: in the user's own class"),
    "an array that is out of memory": wrong(lambda: sets(Raising(MemoryError), Y), "out of memory"),
    "Ctrl-C": wrong(lambda: sets(Raising(KeyboardInterrupt), Y), "was ended by KeyboardInterrupt"),
    "a layer that raises": wrong(lambda: {"model": Unfinished()}, "LookupError: no shapes yet"),
}

DIFFERENT = {**OPTIONS, **OBJECTS, **ARRAYS, **OWN_ERRORS}


def twice(make: Callable[[], Given]) -> Row:
    """Arguments that each rank makes for itself."""
    return Row(lambda is_odd: make(), ())


SAME = {
    "nothing": twice(dict),
    "numbers of NumPy": either({"epochs": 1, "dropout": 0.5}, {"epochs": np.int32(1), "dropout": np.float64(0.5)}),
    "a whole number for a float": either({"l1": 0.0}, {"l1": 0}),
    "a list for a tuple": either({"hidden": (8,)}, {"hidden": [8]}),
    "text for a list of one": either({"penalize": ("*",), "l2": 0.1}, {"penalize": "*", "l2": 0.1}),
    "the default": either({"sampling": "epochs"}, {}),
    "options in another order": either({"seed": 3, "l1": 0.5}, {"l1": 0.5, "seed": 3}),
    "an optimizer by name and as an object": either(
        {"optimizer": "adam", "learning_rate": 0.01}, {"optimizer": distsgd.Adam(0.01)}
    ),
    "an optimizer's numbers of NumPy": either(
        {"optimizer": distsgd.Adam(2**-7)}, {"optimizer": distsgd.Adam(np.float32(2**-7))}
    ),
    "an optimizer of the user's own": twice(lambda: {"optimizer": Signs(0.1, 1.0)}),
    "layers": twice(lambda: {"model": network(3)}),
    "layers in a list and in a tuple": either(
        {"model": distsgd.Sequential([distsgd.Dense(4, 2)])}, {"model": distsgd.Sequential((distsgd.Dense(4, 2),))}
    ),
    "a whole number in a schedule": either(
        {"schedule": schedules.InverseTime(1.0)}, {"schedule": schedules.InverseTime(1)}
    ),
    "functions that are made twice": twice(lambda: own(remembered({"b": 1.0, "a": np.nan}["b"]))),
    "lambdas from two lines": either(own(first_lambda()), own(second_lambda())),
    "partials": twice(lambda: own(partial(scaled, 1.0))),
    "classes that are made twice": twice(lambda: {"metrics": [share_with(0.5)]}),
    "dictionaries in another order": either(
        {"metrics": [Share({"a": 1, "b": 2})]}, {"metrics": [Share({"b": 2, "a": 1})]}
    ),
    "sets": twice(lambda: {"metrics": [Share({*"abcdefghij"})]}),
    "what is no number": either({"metrics": [Share(float("nan"))]}, {"metrics": [Share(np.nan)]}),
    "what a field keeps to itself": either(own(Pull(1.0)), own(Pull(1.0, {3: 4}))),
    "metrics in a tuple": either({"metrics": [TopK(2)]}, {"metrics": (TopK(2),)}),
    "metrics from a generator": either({"metrics": [TopK(2)]}, {"metrics": (TopK(k) for k in (2,))}),
    "a callback on one rank": either({}, {"callbacks": [distsgd.Callback()]}),
    "lists for arrays": either(sets(X.astype("f8"), Y), sets(X.tolist(), Y.tolist())),
    "x in another order of memory": either(sets(X, Y), sets(np.asfortranarray(X), Y)),
    "labels in a column": either(sets(X, Y), sets(X, Y[:, None].astype(np.int32))),
    "what has no identity": either(
        {"metrics": [Share(threading.Lock())]}, {"metrics": [Share(threading.Lock())]}
    ),
}  # fmt: skip
