"""Keras callbacks: step counter, progress, metrics, and what a run saves."""

import csv
import datetime
import io
import math
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np

from vitkeras.errors import RunError
from vitkeras.io.atomic import write_file
from vitkeras.io.progress import Progress
from vitkeras.keras_internals import moving_averages
from vitkeras.training import checkpoints

LINE = "{desc} step {n_fmt}/{total_fmt}{postfix}"
BAR = LINE + " |{bar}|"


class StepCounter(keras.callbacks.Callback):
    """Counts the steps of the whole run. Must be the first callback; the others read it.

    Attributes:
        epoch: Current epoch, from 0.
        step: Steps of the current epoch that are done.
        is_new: Whether the last batch was trained on; False for the steps that `fit` skips.

    Args:
        epochs: Number of epochs of the whole run.
        steps_per_epoch: Number of steps of each epoch.
        first_epoch: Epoch that this process starts in.
        first_step: Steps of that epoch that an earlier process has done.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, first_epoch: int = 0, first_step: int = 0
    ):
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.first_epoch, self.first_step = first_epoch, first_step
        self.epoch, self.step, self.is_new = first_epoch, first_step, False

    @property
    def global_step(self) -> int:
        """Steps of the whole run that are done."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.step = epoch, self.first_step if epoch == self.first_epoch else 0

    def on_train_batch_end(self, batch, logs=None):
        done = min(batch + 1, self.steps_per_epoch)  # an execution ends with its epoch
        self.is_new = done > self.step
        self.step = max(done, self.step)


class ProgressBar(keras.callbacks.Callback):
    """Shows a `Progress` for each epoch: step, loss, metrics, images/s, time left of the run.

    Rate and time left are measured from the end of the first step on, which compiles.

    Args:
        counter: The `StepCounter` of the run.
        batch_size: Global batch size.
    """

    def __init__(self, counter: StepCounter, batch_size: int):
        super().__init__()
        self.counter, self.batch_size = counter, batch_size
        self.bar = self.start_time = self.start_step = None

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = Progress(
            self.counter.steps_per_epoch, f"epoch {epoch + 1}/{self.counter.epochs}", "steps",
            LINE, bar_format=BAR, initial=self.counter.step, leave=True, delay=0,
        )  # fmt: skip

    def on_train_batch_end(self, batch, logs=None):
        if not self.counter.is_new:
            return
        if self.start_time is None:
            self.start_time, self.start_step = time.monotonic(), self.counter.global_step
        self._update(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._update(logs)  # with the validation metrics
        self.close()

    def close(self) -> None:
        """Ends the bar of the current epoch."""
        if self.bar is not None:
            self.bar.close()

    def _update(self, logs):
        fields = [f"{key} {float(value):.4f}" for key, value in (logs or {}).items()]
        steps = self.counter.global_step - self.start_step
        if steps:
            steps_per_second = steps / (time.monotonic() - self.start_time)
            left = (self.counter.total_steps - self.counter.global_step) / steps_per_second
            fields.append(f"{steps_per_second * self.batch_size:.0f} images/s")
            fields.append(f"{datetime.timedelta(seconds=round(left))} left")
        self.bar.set_postfix_str(", ".join(fields), refresh=False)
        self.bar.update(self.counter.step - self.bar.n)


class MetricsWriter(keras.callbacks.Callback):
    """Writes `metrics.csv` atomically, one row per epoch.

    Args:
        path: The file; None to collect the rows only.
        rows: Rows of earlier epochs, if the run is resumed.
        counter: The `StepCounter` of the run.
    """

    def __init__(self, path, rows: list[dict], counter: StepCounter):
        super().__init__()
        self.path, self.rows, self.counter = path, list(rows), counter

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        row = {"epoch": epoch + 1, "step": self.counter.global_step, "learning_rate": rate}
        self.rows.append(row | {key: float(value) for key, value in logs.items()})
        if self.path is None:
            return
        text = io.StringIO()
        names = dict.fromkeys(key for row in self.rows for key in row)
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.path, text.getvalue().encode())


class LossGuard(keras.callbacks.Callback):
    """Raises a `RunError` if the loss is not finite. Must precede the callbacks that save.

    Args:
        counter: The `StepCounter` of the run.
    """

    def __init__(self, counter: StepCounter):
        super().__init__()
        self.counter = counter

    def on_train_batch_end(self, batch, logs=None):
        loss, step = float(logs["loss"]), self.counter.global_step
        if not math.isfinite(loss):
            steps = min(self.model.steps_per_execution, self.counter.step)
            where = f"step {step}" if steps == 1 else f"one of steps {step - steps + 1} to {step}"
            raise RunError(
                f"The loss must be finite. Received: loss={loss} after {where}. Nothing was saved "
                "since then: the saved states and models are intact. Lower the learning rate, or "
                "clip the gradient (clip_norm=1)."
            )


class ModelSaver(keras.callbacks.Callback):
    """Evaluates on the validation split and saves the best and the last model.

    With a moving average of the weights, the averaged model is evaluated and saved. The weights
    that are trained are not modified.

    Args:
        run: The `RunDirectory`; None on hosts that write nothing.
        model: A clone of the trained model, which receives the weights to evaluate and save.
        evaluate: Returns "accuracy" and "loss" of the clone, which are added to the logs as
            val_accuracy and val_loss.
        every: Number of epochs between evaluations; the last epoch is always evaluated.
        best: Best score so far, if the run is resumed: [accuracy, -loss]. The lower loss decides
            between equal accuracies.
    """

    def __init__(
        self,
        run,
        model: keras.Model,
        evaluate: Callable[[], Mapping[str, float]],
        every: int = 1,
        best: list[float] | None = None,
    ):
        super().__init__()
        self.run, self.clone, self.evaluate = run, model, evaluate
        self.every, self.best = every, best

    def is_due(self, epoch: int) -> bool:
        """Returns whether an epoch ends with an evaluation."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.params["epochs"]

    def on_epoch_end(self, epoch, logs=None):
        if not self.is_due(epoch):
            return
        self._copy_weights()
        result = self.evaluate()
        logs |= {"val_accuracy": result["accuracy"], "val_loss": result["loss"]}
        score = [result["accuracy"], -result["loss"]]
        is_better = self.best is None or score > self.best
        if is_better:
            self.best = score
        if self.run is not None:
            if is_better:
                self.run.save_model(self.clone, "best")
            self.run.save_model(self.clone, "last")

    def _copy_weights(self):
        self.clone.set_weights(self.model.get_weights())
        optimizer = self.model.optimizer
        if optimizer.use_ema:
            averages = moving_averages(optimizer)
            for variable, average in zip(self.clone.trainable_variables, averages, strict=True):
                variable.assign(average)


class StateSaver(keras.callbacks.Callback):
    """Saves the training state: periodically, after evaluations, and before the run stops.

    Args:
        writer: A `StateWriter`; None on hosts that write nothing.
        model_saver: The `ModelSaver`, which has the best score.
        metrics: The `MetricsWriter`, which has the rows.
        counter: The `StepCounter` of the run.
        stop: The `StopSignal` of the run.
        steps: Number of steps between saves; None for no such saves.
        minutes: Minutes between saves; None for no such saves.
        arrays: Arrays of the state to resume from; None for a new run.
    """

    def __init__(
        self,
        writer: checkpoints.StateWriter | None,
        model_saver: ModelSaver,
        metrics: MetricsWriter,
        counter: StepCounter,
        stop,
        steps: int | None = None,
        minutes: float | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.writer, self.model_saver, self.metrics = writer, model_saver, metrics
        self.counter, self.stop = counter, stop
        self.steps, self.minutes, self.arrays = steps, minutes, arrays
        self.saved_step, self.saved_time = counter.global_step, time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        if self.arrays is not None:  # not earlier: Keras creates the metrics in `fit`
            checkpoints.restore(self.model, self.arrays)
            self.arrays = None
            if self.counter.step == 0:
                self.model.reset_metrics()  # a state saved after an epoch has that epoch's metrics

    def on_train_batch_end(self, batch, logs=None):
        at = self.counter
        if at.is_new and at.step < at.steps_per_epoch:  # `on_epoch_end` handles the last step
            stop, save = self._stop_and_save()
            if stop or save:
                self._save(at.epoch, at.step)
            if stop:
                self.stop.interrupt(at.global_step)

    def on_epoch_end(self, epoch, logs=None):
        stop, save = self._stop_and_save()
        if stop or save or self.model_saver.is_due(epoch):
            self._save(epoch + 1, 0)
        if stop and epoch + 1 < self.counter.epochs and not self.model.stop_training:
            self.stop.interrupt(self.counter.global_step)

    def on_train_end(self, logs=None):
        if self.writer is not None:
            self.writer.wait()

    def _stop_and_save(self):
        """Returns whether to stop and whether a save is due, the same on all hosts."""
        by_steps = self.steps and self.counter.global_step - self.saved_step >= self.steps
        by_time = self.minutes and time.monotonic() - self.saved_time >= 60 * self.minutes
        return self.stop.any_host(self.stop.received, bool(by_steps or by_time))

    def _save(self, epoch, step):
        record = {"epoch": epoch, "epoch_step": step}
        record |= {"best": self.model_saver.best, "rows": self.metrics.rows}
        arrays = checkpoints.get_arrays(self.model)  # on every host: it sums metrics over hosts
        self.saved_step, self.saved_time = self.counter.global_step, time.monotonic()
        if self.writer is not None:
            self.writer.save(self.counter.global_step, arrays, record)
