"""Several trained models as one: the mean of their predictions, and how far they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from distsgd.core.device import Array
from distsgd.core.device_options import FULL
from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Signature
from distsgd.nn.task import Task
from distsgd.run.caller import numpys_defaults
from distsgd.run.trained.answers import labels_of
from distsgd.run.trained.predicting import mean_and_spread
from distsgd.run.trained.trained_model import TrainedModel
from distsgd.training.metrics.base import Metric


@final
class Ensemble:
    """Trained models of one task, whose predictions are averaged.

    Parameters
    ----------
    members : sequence of TrainedModel
        The models, one or more.
    names : sequence of str, optional
        What messages call them; by default their numbers.

    Raises
    ------
    ConfigurationError
        Where one has other examples, targets, classes or outputs than the first.
    """

    def __init__(self, members: Sequence[TrainedModel], names: Sequence[str] | None = None) -> None:
        self.members = tuple(members)
        if not self.members or not all(isinstance(one, TrainedModel) for one in self.members):
            raise ConfigurationError(f"an ensemble has one or more TrainedModels, got {members!r}")
        named = tuple(f"member {number}" for number in range(len(self.members))) if names is None else tuple(names)
        self._names = named
        check_alike(named, [(one.task, one._signature) for one in self.members])

    def __repr__(self) -> str:
        return f"Ensemble of {len(self)}; the first is\n{self.members[0]!r}"

    def __len__(self) -> int:
        return len(self.members)

    @property
    def task(self) -> Task:
        """What the outputs of each member stand for."""
        return self.members[0].task

    def on(self, device: str, precision: str = FULL) -> Ensemble:
        """The same ensemble, whose members predict on another device.

        Parameters
        ----------
        device, precision : str
            As `TrainedModel.on` takes them.

        Returns
        -------
        Ensemble
            Of the same members.
        """
        return Ensemble([one.on(device, precision) for one in self.members], self._names)

    def predict(self, x: Any) -> Array:
        """The mean of the members' predictions.

        Parameters
        ----------
        x : array
            Examples (n, …).

        Returns
        -------
        array
            Probabilities or values (n, outputs), float64.
        """
        return mean_and_spread(one.predict(x) for one in self.members)[0]

    def spread(self, x: Any) -> Array:
        """The standard deviation of the members' predictions: of the members themselves, divided by their number.

        Parameters
        ----------
        x : array
            Examples (n, …).

        Returns
        -------
        array
            (n, outputs), float64; 0 of a single member.
        """
        return mean_and_spread(one.predict(x) for one in self.members)[1]

    def predict_proba(self, x: Any) -> Array:
        """The mean of the members' probabilities.

        Parameters
        ----------
        x : array
            Examples (n, …).

        Returns
        -------
        array
            Probabilities (n, classes), float64.
        """
        return mean_and_spread(one.predict_proba(x) for one in self.members)[0]

    def labels(self, x: Any) -> Array:
        """The class of each example by the mean of the members' predictions.

        Parameters
        ----------
        x : array
            Examples (n, …).

        Returns
        -------
        array
            As `TrainedModel.labels` returns them.
        """
        return labels_of(self.predict(x), self.task)

    def predict_interval(self, x: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """The mean of the members' intervals: of their lower ends, and of their upper ends.

        How far the members differ is not in it; `spread` says that.

        Parameters
        ----------
        x : array
            Examples (n, …).
        coverage : float, default 0.9
            As `TrainedModel.predict_interval` takes it.

        Returns
        -------
        lower, upper : array
            Both (n, values), float64.

        Raises
        ------
        ConfigurationError
            Where a member's loss has no intervals.
        """
        lower, upper = zip(*(one.predict_interval(x, coverage) for one in self.members), strict=True)
        return mean_and_spread(lower)[0], mean_and_spread(upper)[0]

    def evaluate(self, x: Any, y: Any, metrics: Sequence[Metric | str | Callable[..., Any]] = ()) -> dict[str, Any]:
        """Score the mean of the members' predictions.

        Parameters
        ----------
        x, y : array
            Examples (n, …) and their targets.
        metrics : sequence of Metric, str or function
            What is measured besides the usual metrics: of predictions, not of outputs.

        Returns
        -------
        dict
            Each metric by its name. There is no loss, for a loss takes a model's outputs, and a mean of predictions has
            none; `evaluate` of each member gives its own.

        Raises
        ------
        DataError
            Where the examples don't fit the members.
        """
        from distsgd.run.data.given import examples_of, source_of
        from distsgd.run.fit_arguments import metrics_of
        from distsgd.run.trained.scoring import arrays_of, checked, score_predictions

        names, own = metrics_of(metrics, "evaluate")
        if source_of(x) is not None:
            raise ConfigurationError(
                "evaluate: an ensemble takes arrays or a frame, got an opened data set; give x and y of it, such as "
                "distsgd.data.read_array(source.arrays['x_test'])"
            )
        stored = self.members[0]._stored()
        with numpys_defaults():
            given = arrays_of(stored, x, y)
            examples = checked(stored, examples_of(given, "", "evaluate", stored.objective.inputs_as_stored))
            return score_predictions(stored, self.predict(examples.x), examples, names, own)


def _columns(signature: Signature) -> str:
    """What a file or frame has to be for the model; its own fill values stand for what is missing."""
    columns = signature.columns
    if columns is None:
        return "without names"
    fill = f", {columns.missing} for missing values: {columns.fill}" if columns.fill else ""
    several = {name: f"{name} ({', '.join(texts)})" for name, texts in columns.categories.items()}
    several |= {name: f"{name} ({width} numbers)" for name, width in columns.widths.items()}
    return f"{', '.join(several.get(name, name) for name in columns.inputs)}{fill}"


def check_alike(names: Sequence[str], members: Sequence[tuple[Task, Signature]]) -> None:
    """Raises ConfigurationError where the mean of these models' predictions would mean nothing."""
    looks: dict[str, Callable[[Task, Signature], Any]] = {
        "a task": lambda task, signature: f"{task.kind} ({task.num_classes} classes, {task.answer})",
        "classes": lambda task, signature: ", ".join(task.names) or "without names",
        "examples of shape": lambda task, signature: signature.example_shape,
        "columns": lambda task, signature: _columns(signature),
        "targets of shape": lambda task, signature: signature.target_shape,
    }
    for what, look in looks.items():
        first, *others = (look(*one) for one in members)
        for name, other in zip(names[1:], others, strict=True):
            if other != first:
                raise ConfigurationError(
                    f"an ensemble's members fit each other: {names[0]} has {what} {first}, {name} has {other}; leave "
                    "one of them out"
                )
