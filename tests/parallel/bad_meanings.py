"""The part of tests/parallel/bad_inputs.py that is about what a call says and can't mean."""

from __future__ import annotations

import numpy as np

from tests.parallel.bad_data import DATA, NPY, QUICK
from tests.parallel.bad_files import Case, X, Y, every, file, npy, npy_bytes, npz, run

SHORT = "--epochs 1 --quiet"
LAYERS = "import numpy as np\nimport distsgd\nfrom distsgd import Dense, FunctionObjective, Sequential\n"
OWN = file("m.py", f"{LAYERS}def f(shape, outputs): return Sequential([Dense(64, outputs)])")
OWN_FUNCTION = file(
    "own.py",
    LAYERS
    + """
def nothing(params, grads, batch): return 1.0 * len(batch), len(batch)
def f(shape, outputs): return FunctionObjective(nothing, {"w": np.ones((5, 6))}, lambda p, batch: p["w"] @ batch.x)
""",
)
DIGITS = npz(x=np.ones((40, 64)), y=Y)
BAD = np.where(np.arange(40 * 64).reshape(40, 64) == 70, np.nan, 1.0)


def unused(option: str, line: str, *, own: bool = False) -> Case:
    """An option that would change nothing."""
    return Case(f"{option}: would change nothing", line, OWN if own else lambda folder: None)


TASKS: dict[str, Case] = {
    "labels of a single class": Case("labels of a single class", DATA, npz(y=np.zeros(40, int))),
    "labels of a single class other than 0": Case("labels of a single class, 1", DATA, npz(y=np.ones(40, int))),
    "answers that are all no": Case(
        "single class, 0", f"{DATA.replace('softmax', 'mlp')} --loss binary-cross-entropy", npz(y=np.zeros(40))),
    "a single class by option": Case("expected a number from 2", f"{DATA} --classes 1", npz(y=np.ones(40, int))),
    "fewer classes than the labels have": Case("expected labels from 0 to 2", f"{DATA} --classes 3", npz()),
    "fewer names than the labels have": Case("expected labels from 0 to 1", f"{DATA} --classes cat dog", npz()),
    "a name of a class twice": Case("classes", f"{DATA} --classes cat cat dog bird", npz()),
    "a single name for the classes": Case("classes", f"{DATA} --classes cat", npz()),
    "other classes than the data set has": Case("classes", f"{QUICK} --classes 12"),
    "classes of values": Case("classes", f"{DATA} --classes 3", npz(y=np.linspace(0, 9, 40))),
    "classes beyond any number": Case("classes", f"{DATA} --classes {10**12}", npz()),
    "top-k of values": Case("top_k", f"{DATA} --top-k 2", npz(y=np.linspace(0, 9, 40))),
    "a fold without a class": Case(
        "leaves no examples of class 3", f"{DATA} --validation-last 10", npz(y=np.sort(Y))),
    "a softmax over values": Case("softmax", f"{DATA} --loss softmax-cross-entropy", npz(y=np.linspace(0, 9, 40))),
    "answers that are whole numbers": Case(
        "floats (y.astype(float)), with --loss binary-cross-entropy", f"{DATA} --loss binary-cross-entropy",
        npz(y=np.eye(4, dtype=int)[Y])),
    "one-hot rows of a single class": Case(
        "single class, 2", f"{DATA} --loss softmax-cross-entropy", npz(y=np.eye(4)[np.full(40, 2)])),
    "a softmax over one column": Case(
        "binary-cross-entropy takes 0 and 1", f"{DATA} --loss softmax-cross-entropy", npz(y=np.ones((40, 1)))),
    "answers that are -1 and +1": Case(
        "(y + 1) / 2", f"{DATA.replace('softmax', 'mlp')} --loss binary-cross-entropy", npz(y=2.0 * (Y > 1) - 1)),
    "a metric of classes for values": Case(
        "metric accuracy: would mean nothing", f"{DATA} --metric accuracy", npz(y=np.linspace(0, 9, 40))),
    "a metric of values for classes": Case("metric r2: would mean nothing", f"{DATA} --metric r2", npz()),
    "an own function with more outputs than classes": Case(
        "the targets have 4 classes, the model has 5 outputs", f"{DATA} --model own.py:f", every(OWN_FUNCTION, npz())),
}  # fmt: skip

SCALES: dict[str, Case] = {
    "inputs that are scaled and standardized": Case("scale: would change", f"{DATA} --scale 2 --standardize", npz()),
    "classes that are standardized": Case("standardize_targets", f"{DATA} --standardize-targets", npz()),
    "rows of classes that are standardized": Case("standardize_targets: the targets are classes",
        f"{DATA} --loss softmax-cross-entropy --standardize-targets", npz(y=np.eye(4)[Y])),
    "values that a sigmoid gives and that are standardized": Case("outputs of a sigmoid can't reach",
        f"{DATA} --loss squared-error --output-activation sigmoid --standardize-targets", npz(y=Y / 3)),
    "classes of one example, and of which some is split off": Case("validation_fraction: leaves no examples of class",
        f"{DATA} --validation-fraction 0.2", npz(y=np.arange(len(Y)))),
    "to predict from NaN": Case("example 1 holds nan", "run data.npz -o o", every(run(), npz(x=BAD)), 2, "predict"),
    "to predict from numbers beyond the dtype": Case(
        "float32 can hold", "run x.npy -o o", every(run(), npy(npy_bytes(np.full((4, 64), 1e300)))), 2, "predict"),
    "to evaluate NaN": Case("example 1 holds nan", "run --dataset data.npz", every(run(), npz(x=BAD)), 2, "evaluate"),
    "to evaluate numbers beyond the dtype": Case(
        "float32 can hold", "run --dataset data.npz", every(run(), npz(x=np.full((40, 64), 1e300))), 2, "evaluate"),
    "to evaluate a validation part of other data": Case(
        "split", "run --dataset data.npz --split validation", every(run(), DIGITS), 2, "evaluate"),
    "to evaluate labels that the model has no class for": Case(
        "integer labels from 0 to 9, example 3 has 12", "run --dataset data.npz",
        every(run(), npz(x=np.ones((40, 64)), y=np.where(np.arange(40) == 3, 12, Y))), 2, "evaluate"),
    "to evaluate floats with a model of labels": Case(
        "trained on integer labels", "run --dataset data.npz",
        every(run(), npz(x=np.ones((40, 64)), y=Y.astype(float))), 2, "evaluate"),
}  # fmt: skip

WITHOUT_EFFECT: dict[str, Case] = {
    "dropout for a model of one's own": unused("dropout", f"{SHORT} --model m.py:f --dropout 0.5", own=True),
    "hidden layers for a model of one's own": unused("hidden", f"{SHORT} --model m.py:f --hidden 9", own=True),
    "batch norm for a model of one's own": unused(
        "batch_norm", f"{SHORT} --model m.py:f --batch-norm", own=True),
    "hidden layers for softmax regression": unused("hidden", f"{QUICK} --hidden 9"),
    "dropout for softmax regression": unused("dropout", f"{QUICK} --dropout 0.5"),
    "dropout without hidden layers": Case(
        "dropout: would change nothing", f"{QUICK.replace('softmax', 'mlp')} --hidden --dropout 0.5"),
    "initial biases without biases": unused("bias_initializer", f"{QUICK} --no-bias --bias-initializer normal(0.1)"),
    "what is left over of a full batch": unused("drop_last", f"{QUICK} --batch-size full --drop-last"),
    "top-k where nothing is measured": Case(
        "top_k: would change nothing", f"{DATA} --validation-fraction 0 --top-k 2", npz()),
    "a horizon for a constant rate": unused("schedule_epochs", f"{QUICK} --schedule-epochs 9"),
    "penalized names without a penalty": unused("penalize", f"{QUICK} --penalize '*'"),
    "a fraction beside validation data": Case(
        "validation_fraction: would change nothing", f"{DATA} --validation data.npz --validation-fraction 0.3", npz()),
    "ties where nothing is validated": unused("ties", f"{QUICK} --validation-fraction 0 --ties first"),
    "the patience rule's options without it": unused("patience_increase", f"{QUICK} --patience-increase 3"),
    "class weights of values": Case("class_weights", f"{DATA} --class-weights 1 2", npz(y=np.linspace(0, 9, 40))),
    **{f"an array named {name}": Case(f"got '{name}'", DATA, npz(**{name: array})) for name, array in (
        ("xtest", X), ("X_train", X), ("sample_weight", np.ones(40)), ("y_valid", Y), ("weight", np.ones(40)))},
    "a file beside the arrays that looks like one": Case(
        "got 'Y_test'", NPY.replace("x.npy", "."), every(npy(npy_bytes(X)), file("Y_test.npy", npy_bytes(Y)))),
}  # fmt: skip

MEANINGS = TASKS | SCALES | WITHOUT_EFFECT
