"""What a run's pictures are made from: in memory as it ends, or read back from its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError, DistsgdError
from distsgd.data.examples import Examples, Signature
from distsgd.parallel.serial import SerialCommunicator
from distsgd.plots.runs import Run
from distsgd.run.config_file import read_toml
from distsgd.run.placement import Data, load_data
from distsgd.run.stored_model import StoredModel, load_model
from distsgd.training.evaluator import predict_all
from distsgd.training.run_state import Metadata

SPLITS = ("test", "validation", "train")


class Material(ABC):
    """What a run's pictures are made from. What is costly is fetched when a picture asks for it, and once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.failed: DistsgdError | None = None
        self._trained: tuple[StoredModel, Data] | None = None
        self._predictions: dict[str, Array] = {}

    @abstractmethod
    def weights(self) -> tuple[Mapping[str, Array], Signature]:
        """The parameters by name, and the shape of the examples; from the checkpoint alone, without any of its code."""

    @abstractmethod
    def _load(self) -> tuple[StoredModel, Data]:
        """As trained, at the first call."""

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

    def predictions(self, split: str, examples: Examples) -> Array:
        """As predict, kept for the next picture."""
        if split not in self._predictions:
            self._predictions[split] = self.predict(examples)
        return self._predictions[split]


class TrainedJustNow(Material):
    """A run whose model and data are in memory."""

    def __init__(self, run: Run, stored: StoredModel, data: Data) -> None:
        super().__init__(run)
        self._both = stored, data

    def _load(self) -> tuple[StoredModel, Data]:
        return self._both

    def weights(self) -> tuple[Mapping[str, Array], Signature]:
        stored, _ = self.trained()
        return stored.params, stored.signature


class Stored(Material):
    """A run of which there is the folder; `code` is file.py:function where its model is the user's own."""

    def __init__(self, run: Run, code: str | None = None, data_dir: str | None = None) -> None:
        super().__init__(run)
        self._code, self._data_dir = code, data_dir

    def weights(self) -> tuple[Mapping[str, Array], Signature]:
        found = find_checkpoint(self.run.path, prefer="best")
        return found.group("parameters"), Metadata.from_document(found.document).known_signature(self.run.path)

    def _load(self) -> tuple[StoredModel, Data]:
        alone = SerialCommunicator()
        stored = load_model(alone, str(self.run.path), self._code)
        config = read_toml(self.run.path / "config.toml")
        if config.dataset == "arrays" and not Path("arrays").exists():
            raise DataError(f"{self.run.path} was trained on arrays in memory; fit(plot=True) draws them as it ends")
        data = load_data(alone, replace(config, data_dir=self._data_dir or config.data_dir))
        found = find_checkpoint(self.run.path, prefer="best")
        if Metadata.from_document(found.document).contents not in (None, data.fingerprint):
            raise DataError(f"{data.name} is not the data that {self.run.path} was trained on any more")
        return stored, data
