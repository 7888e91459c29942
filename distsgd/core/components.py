"""The components of a training that users may write themselves, and what they declare.

distsgd's own layers, losses, objectives, optimizers and metrics keep no state between calls and write every output
array completely. A user's component may not: one thread calls it, unless its class declares `thread_safe`, and its
gradients start at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from distsgd.core.errors import ConfigurationError

Built = TypeVar("Built")
_OF_OTHER_FRAMEWORKS = {
    "mse": "squared-error or mean-squared-error", "l2": "squared-error", "mean-squared-error": "squared-error",
    "mae": "mean-absolute-error or l1", "mean-absolute-error": "l1", "l1-loss": "l1", "l1loss": "l1",
    "rmse": "root-mean-squared-error", "smooth-l1": "huber", "pinball": "quantile", "gaussian-nll": "gaussian",
    "acc": "accuracy", "mcc": "matthews-correlation", "auc": "roc-auc", "auroc": "roc-auc", "ap": "average-precision",
    "auprc": "average-precision", "pr-auc": "average-precision", "bce": "binary-cross-entropy",
    "ce": "softmax-cross-entropy", "nll": "softmax-cross-entropy", "cross-entropy": "softmax-cross-entropy",
    "crossentropy": "softmax-cross-entropy", "crossentropyloss": "softmax-cross-entropy",
    "categorical-crossentropy": "softmax-cross-entropy", "sparse-categorical-crossentropy": "softmax-cross-entropy",
    "categorical-cross-entropy": "softmax-cross-entropy", "binary-crossentropy": "binary-cross-entropy",
    "cifar10": "cifar-10", "xavier": "glorot", "kaiming": "he", "none": "linear",
    "float16": "", "bfloat16": "", "half": "float16", "cuda": "gpu",
    "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "single": "float32", "fp64": "float64",
    "double": "float64",
    "yes": "auto", "true": "auto", "always": "auto", "no": "never", "false": "never",
    "fit": "train", "run": "train", "test": "evaluate", "score": "evaluate", "-v": "--version",
    "-b": "--batch-size", "-c": "--config", "-d": "--dataset", "-e": "--epochs", "-m": "--model", "-o": "--out",
    "--bs": "--batch-size", "--wd": "--weight-decay", "--gpu": "--device", "--output": "--out",
    "--eps": "--epsilon", "--beta": "--beta1 and --beta2", "--betas": "--beta1 and --beta2",
    "--val": "--validation", "--workers": "--threads", "--layers": "--hidden", "--num-steps": "--max-steps",
}  # fmt: skip
"""Names of other frameworks, and those that are meant, also without the dashes; `and` stands between two that are meant
together, `or` before what is meant where the first is no name."""


def field_names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass, in order."""
    return tuple(field.name for field in fields(kind))


def build(what: str, kinds: Mapping[str, type[Built]], name: str, given: Mapping[str, Any]) -> Built:
    """The dataclass that `kinds` has by this name; fields that are None keep its defaults.

    Raises ConfigurationError for an unknown name, and for a field that it doesn't have.
    """
    check_name(what, name, kinds)
    known = field_names(kinds[name])
    values = {key: value for key, value in given.items() if value is not None}
    for key in values:
        if key not in known:
            only = f", only {', '.join(known)}" if known else ""
            raise ConfigurationError(f"{what} {name}: has no {key}{only}; remove {key}, or choose another {what}")
    return kinds[name](**values)


def check_name(what: str, name: str, names: Collection[str]) -> None:
    """Raise ConfigurationError for a name that isn't one of these."""
    if name not in names:
        raise wrong_name(what, name, names)


def wrong_name(what: str, name: str, names: Iterable[str], others: str = "") -> ConfigurationError:
    """The error for a name that isn't one of these; `others` says what else it could be."""
    listed = f"{what}: expected one of {', '.join(names)}{others}, got {name!r}"
    return ConfigurationError(listed + suggestion(name, names))


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; did you mean adam?` where one of the names is near, else nothing.

    Examples
    --------
    >>> suggestion("Adam", ["sgd", "adam"]), suggestion("mse", ["squared-error"]), suggestion("qqq", ["sgd"])
    ('; did you mean adam?', '; did you mean squared-error?', '')

    Another number is another thing:

    >>> suggestion("resnet50", ["resnet20"]), suggestion("resnet", ["resnet20"])
    ('', '; did you mean resnet20?')
    """
    from difflib import get_close_matches

    dashed = str(name).lower().replace("_", "-")
    known = {one.lower().replace("_", "-"): one for one in names}
    other = _OF_OTHER_FRAMEWORKS.get(dashed, dashed)
    # Without the dashes, which all options of the command line have, and none of a file.
    plain, given = {one.lstrip("-"): text for one, text in known.items()}, dashed.lstrip("-")
    option = _OF_OTHER_FRAMEWORKS.get(f"--{given}", other).replace("--", "")
    for meant in (*other.split(" or "), option):
        words = meant.split(" and ")
        if all(word in plain for word in words):
            return f"; did you mean {' and '.join(plain[word] for word in words)}?"
    numbers = _numbers(given)
    close = [one for one in get_close_matches(given, plain, n=3) if numbers in ("", _numbers(one))]
    return f"; did you mean {plain[close[0]]}?" if close and other else ""


def _numbers(text: str) -> str:
    return "".join(filter(str.isdigit, text))


class Component:
    """A layer, a loss, an objective, an optimizer or a metric."""

    thread_safe: bool = False
    """Whether several threads may call this at the same time. A user's class declares it in its own body and a
    subclass doesn't inherit it, for what a subclass adds may keep state."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "thread_safe" not in cls.__dict__:
            cls.thread_safe = _is_of_this_package(cls)

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        """Return the user's functions that this calls; each may declare `thread_safe` as an attribute."""
        return ()


def _is_of_this_package(cls: type) -> bool:
    return cls.__module__.startswith("distsgd.")  # with the dot: a user's file may be called distsgd.py


def components_inside(component: Component) -> Iterator[Component]:
    """The component itself and all in its attributes, in tuples, lists and dictionaries too; each once."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [component]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one  # kept, or another object could get its id
        if isinstance(one, Component):
            yield one
            if is_dataclass(one):  # with slots, its values aren't in vars()
                waiting += [getattr(one, field.name, None) for field in fields(one)]
            waiting += vars(one).values()
        elif isinstance(one, tuple | list):
            waiting += one
        elif isinstance(one, Mapping):
            waiting += one.values()


def is_own(component: Component) -> bool:
    """Whether distsgd defines the class of this component and of all inside it, and none calls a user's function."""
    return all(_is_of_this_package(type(one)) and not one.user_functions() for one in components_inside(component))


def not_thread_safe(*components: Component) -> list[str]:
    """The names of these components, and of those inside them, that one thread has to call; each name once."""
    names = [name for outer in components for one in components_inside(outer) for name in _undeclared(one)]
    return list(dict.fromkeys(names))


def _undeclared(component: Component) -> list[str]:
    if not isinstance(component.thread_safe, bool):
        raise ConfigurationError(
            f"{type(component).__name__}: thread_safe must be True or False, got {component.thread_safe!r}; declare "
            "one of them"
        )
    if component.thread_safe:
        return []
    functions = component.user_functions()
    if not functions:
        return [type(component).__name__]
    wrong = [one for one in functions if getattr(one, "thread_safe", False) is not True]
    return [getattr(one, "__name__", type(one).__name__) for one in wrong]
