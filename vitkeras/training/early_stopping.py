"""Ends a run when its validation metrics do not improve any more."""

import dataclasses
import math

import keras
import numpy as np

from vitkeras.arguments import check_choice, check_int
from vitkeras.training.callbacks import MetricsWriter
from vitkeras.training.interruption import StopSignal

METRICS = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """When a run ends early. A function of the metrics, so that a resumed run ends likewise.

    Args:
        patience: Number of evaluations in a row without a better value of the metric than before.
        metric: "loss" or "accuracy", of the validation split.
    Raises:
        InputError: If an argument is invalid.
    """

    patience: int
    metric: str = "loss"

    def __post_init__(self):
        check_int("early_stopping", self.patience)
        check_choice("early_stopping_metric", self.metric, METRICS)

    def is_reached(self, rows: list[dict]) -> bool:
        """Returns whether the run ends after the epochs of `rows`, dicts of `MetricsWriter`."""
        values = self._values(rows)
        return bool(values) and len(values) - 1 - int(np.argmin(values)) >= self.patience

    def describe(self, rows: list[dict]) -> str:
        """Returns a sentence about a run that ended early."""
        evaluated = [row for row in rows if f"val_{self.metric}" in row]
        best = evaluated[int(np.argmin(self._values(rows)))]
        return (
            f"The run has ended early, after epoch {rows[-1]['epoch']}: val_{self.metric} has not "
            f"improved in {self.patience} evaluations since epoch {best['epoch']} "
            f"({best[f'val_{self.metric}']:.4f})."
        )

    def _values(self, rows):
        """Returns the metric of each evaluation, less is better."""
        sign = 1 if self.metric == "loss" else -1
        values = [row[f"val_{self.metric}"] for row in rows if f"val_{self.metric}" in row]
        return [math.inf if math.isnan(value) else sign * value for value in values]


class EarlyStopper(keras.callbacks.Callback):
    """Ends `fit` when `EarlyStopping` is reached. Must come after the `MetricsWriter`.

    Args:
        early_stopping: The criterion.
        metrics: The `MetricsWriter`, which has the rows.
        stop: The `StopSignal` of the run.
        chief: Whether this host is the chief, which decides for all hosts.
    """

    def __init__(
        self, early_stopping: EarlyStopping, metrics: MetricsWriter, stop: StopSignal, chief: bool
    ):
        super().__init__()
        self.early_stopping, self.metrics = early_stopping, metrics
        self.stop, self.chief = stop, chief

    def on_epoch_end(self, epoch, logs=None):
        reached = self.chief and self.early_stopping.is_reached(self.metrics.rows)
        if self.stop.any_host(reached)[0]:
            self.model.stop_training = True
