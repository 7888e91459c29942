"""What a run's pictures are made from: its records, and its model and data, in memory or read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError, DistsgdError, RunFolderError
from distsgd.core.files import expanded, open_regular
from distsgd.data.examples import Examples, Signature
from distsgd.nn.objective import Objective, Supervised
from distsgd.nn.task import Task
from distsgd.parallel.serial import SerialCommunicator
from distsgd.plots.runs import Run
from distsgd.run.config import HYPER_PARAMETERS, NOT_WRITTEN, OPERATIONAL, TrainConfig, resolved
from distsgd.run.config_file import read_toml
from distsgd.run.data.loading import Data, load_data
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import UNENDED, Reading
from distsgd.run.trained.stored_model import StoredModel, load_model
from distsgd.training.evaluator import predict_all
from distsgd.training.run_state import Metadata

SPLITS = ("test", "validation", "train")
_FINISHED = ("completed", "early_stopped")
"""What the summary says of a run that writes no more."""
Weights: TypeAlias = tuple[Mapping[str, Array], Signature]


def check_is_run(path: Path) -> Path:
    """The path of a run's folder, with ~ expanded. Raises RunFolderError for one that holds no run."""
    path = expanded(path)
    if not path.is_dir():
        raise RunFolderError(
            f"{path} is no run folder; name one, such as runs/digits-mlp-39950b06, that training has left"
        )
    if not (path / "config.toml").is_file():
        if (path / "checkpoints").is_dir():
            raise RunFolderError(
                f"{path} holds checkpoints alone, as DataParallel.save writes them, and neither options nor records; "
                "name a folder that fit or the train command has written"
            )
        raise RunFolderError(f"{path} holds no run: there is no config.toml in it; name a run's own folder")
    return path


def read_run(path: Path) -> Run:
    """The run in this folder. Raises RunFolderError or ConfigurationError with one sentence."""
    path = check_is_run(path)
    summary = RunFolder(path).read_summary()
    is_finished = summary is not None and summary.get("status") in _FINISHED
    records, damage = read_records(path / "metrics.jsonl", ended=is_finished)
    run = run_of(path, read_toml(path / "config.toml"), records, summary)
    return replace(run, notes=(damage,)) if damage else run


def read_records(path: Path, ended: bool = False) -> tuple[list[dict[str, Any]], str]:
    """(the records of a metrics.jsonl in order of their steps; a sentence where some are missing, else empty).

    A last line without its end is skipped: the run is writing it, or was killed as it did. A run that has ended leaves
    none. Raises RunFolderError for
    any other line that is no record, or not the one that was written.
    """
    records: list[dict[str, Any]] = []
    wrong = ""
    try:
        with open_regular(path) as file:
            reading = Reading(file)
            for line in reading:
                if _is_count(line.record.get("step")) and _is_count(line.record.get("epoch")):
                    records.append(line.record)
                elif reading.ended and not wrong:
                    wrong = f"line {line.place} is no record"
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        raise RunFolderError(f"could not read {path}: {error.strerror or error}") from None
    if wrong or reading.changed:
        raise RunFolderError(
            f"{path}: {wrong or reading.damage}; the file is damaged, remove such lines to read the others"
        )
    damage = reading.damage or (UNENDED if ended and not reading.ended else "")
    missing = f"{path} is damaged: {damage}" if damage else ""
    return sorted(records, key=lambda record: int(record["step"])), missing


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def run_of(
    path: Path, config: TrainConfig, records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> Run:
    """A run as it is drawn, without the options that are operational or are not written."""
    skipped = {*OPERATIONAL, *NOT_WRITTEN} - {"test_at_best"}
    options = {name: value for name, value in vars(config).items() if name not in skipped}
    try:
        usual = resolved(replace(TrainConfig(), optimizer=config.optimizer))
    except ConfigurationError:  # an optimizer of the user's own
        defaults = {}
    else:
        defaults = {name: getattr(usual, name) for name in HYPER_PARAMETERS if name != "learning_rate"}
    return Run(path, records, summary, options, defaults)


class Material:
    """What a run's pictures are made from. What is costly is loaded when a picture asks for it, and once.

    load      loads the model and the data
    weights   reads the parameters by name, and the shape of the examples; without it they are those of the model
    """

    def __init__(
        self, run: Run, load: Callable[[], tuple[StoredModel, Data]], weights: Callable[[], Weights] | None = None
    ) -> None:
        self.run, self._load, self._weights = run, load, weights
        self.failed: DistsgdError | None = None
        self._trained: tuple[StoredModel, Data] | None = None
        self._predictions: dict[str, Array] = {}

    def weights(self) -> Weights:
        """The parameters by name, and the shape of the examples."""
        if self._weights is not None:
            return self._weights()
        stored, _ = self.trained()
        return stored.params, stored.signature

    def task(self) -> Task:
        """What the model's outputs stand for."""
        return self.trained()[0].task

    def trained(self) -> tuple[StoredModel, Data]:
        """The model and the data. Raises a DistsgdError with one sentence, the same each time."""
        if self.failed is not None:
            raise self.failed
        if self._trained is None:
            try:
                self._trained = self._load()
            except DistsgdError as error:
                self.failed = error
                raise
        return self._trained

    def examples(self, wanted: str | None) -> tuple[str, Examples]:
        """The split that is wanted, or test, or validation where there is no test set."""
        _, data = self.trained()
        sets = {"test": data.test, "validation": data.validation, "train": data.train}
        split = wanted or next(name for name in SPLITS if sets[name] is not None)
        found = sets[split]
        if found is None:
            there = ", ".join(name for name in SPLITS if sets[name] is not None)
            raise ConfigurationError(f"split: this run of {data.name} has {there}, got {split!r}")
        return split, found

    def predict(self, examples: Examples) -> Array:
        """The model's predictions, (n, outputs), in the scale that it was trained in."""
        stored, _ = self.trained()
        loader = stored.loader(examples)
        with np.errstate(all="ignore"):
            return predict_all(loader, stored.params, stored.state)

    def interval(self, examples: Examples) -> tuple[Array, Array, float] | None:
        """The lower and upper ends (n, outputs) of the usual interval of the model's loss, and its coverage."""
        stored, _ = self.trained()
        objective = stored.objective
        coverage = objective.loss.usual_coverage if isinstance(objective, Supervised) else None
        if coverage is None:
            return None
        from distsgd.run.trained.intervals import bounds

        lower, upper = (
            Material(self.run, partial(_with, stored, end, self.trained()[1])).predict(examples)
            for end in bounds(objective, coverage)
        )
        return lower, upper, coverage

    def predictions(self, split: str, examples: Examples) -> Array:
        """As predict, kept for the next picture."""
        if split not in self._predictions:
            self._predictions[split] = self.predict(examples)
        return self._predictions[split]


def _with(stored: StoredModel, objective: Objective, data: Data) -> tuple[StoredModel, Data]:
    return replace(stored, objective=objective), data


def stored_material(run: Run, code: str | None = None, data_dir: str | None = None) -> Material:
    """Material of a run of which there is the folder; `code` is file.py:function where its model is the user's own."""
    return Material(run, lambda: _load(run.path, code, data_dir), lambda: _read_weights(run.path))


def _read_weights(path: Path) -> Weights:
    """From the checkpoint alone, without any of the run's code."""
    found = find_checkpoint(path, prefer="best")
    return dict(found.group("parameters")), Metadata.from_document(found.document).known_signature(path)


def _load(path: Path, code: str | None, data_dir: str | None) -> tuple[StoredModel, Data]:
    alone = SerialCommunicator()
    stored = load_model(alone, str(path), code)
    config = read_toml(path / "config.toml")
    if config.dataset == "arrays" and not Path("arrays").exists():
        raise DataError(f"{path} was trained on arrays in memory; fit(plot=True) draws them as it ends")
    data = load_data(alone, replace(config, data_dir=data_dir or config.data_dir))
    contents = Metadata.from_document(find_checkpoint(path, prefer="best").document).contents
    if contents not in (None, data.fingerprint):
        raise DataError(f"{data.name} is not the data that {path} was trained on any more")
    return stored, data
