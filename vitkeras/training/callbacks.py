"""Keras callbacks: where a run is, its progress line and metrics, the models and state it keeps."""

import csv
import io
import math
import sys
import time

import keras

from vitkeras.errors import RunError
from vitkeras.private import moving_averages
from vitkeras.storage import write_file
from vitkeras.training import checkpoints


def duration(seconds):
    """Returns "1:02:03"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Position(keras.callbacks.Callback):
    """Where the run is. The first of the callbacks, for the others to look at.

    Attributes: `epoch` (from 0); `step`, the batches of this epoch that are done; `total`, those
    of the run; `fresh`, whether the batch that ended now was trained on and not skipped.

    Args:
        epochs: Epochs of the whole run.
        steps_per_epoch: Batches in each.
        first_epoch: The epoch that the run goes on with.
        first_step: The batches of that epoch that an earlier process did.
    """

    def __init__(self, epochs, steps_per_epoch, first_epoch=0, first_step=0):
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.first_epoch, self.first_step = first_epoch, first_step
        self.epoch, self.step, self.fresh = first_epoch, first_step, False

    @property
    def total(self):
        """Batches done in the whole run."""
        return self.epoch * self.steps_per_epoch + self.step

    def on_epoch_begin(self, epoch, logs=None):
        """Goes to the beginning of an epoch."""
        self.epoch, self.step = epoch, self.first_step if epoch == self.first_epoch else 0

    def on_train_batch_end(self, batch, logs=None):
        """Counts."""
        done = min(batch + 1, self.steps_per_epoch)  # an execution ends with its epoch
        self.fresh = done > self.step
        self.step = max(done, self.step)


class ProgressLine(keras.callbacks.Callback):
    """Prints epoch, step, loss, accuracy, images/s and the time left.

    On a terminal the line is rewritten every second; elsewhere one line an epoch, and one every
    30 seconds inside a long one.

    Args:
        position: The run's `Position`.
        batch_size: Global batch, in images.
        file: Standard error by default.
    """

    def __init__(self, position, batch_size, file=None):
        super().__init__()
        self.position, self.batch_size = position, batch_size
        self.file = file or sys.stderr
        self.every = 1 if self.file.isatty() else 30
        self.begun = None

    def on_train_batch_end(self, batch, logs=None):
        """Prints now and then; the clock starts after the first step, which compiles."""
        if not self.position.fresh:
            return
        now = time.monotonic()
        if self.begun is None:
            self.begun = self.printed = now
            self.first = self.position.total
        if now - self.printed >= self.every:
            self._print(logs, end="\r" if self.file.isatty() else "\n")

    def on_epoch_end(self, epoch, logs=None):
        """Prints the epoch's line, with whatever validation added."""
        self._print(logs, end="\n")

    def _print(self, logs, end):
        at = self.position
        self.printed = time.monotonic()
        seconds = self.printed - self.begun
        text = f"epoch {at.epoch + 1}/{at.epochs} step {at.step}/{at.steps_per_epoch}"
        text += "".join(f" {key} {float(value):.4f}" for key, value in (logs or {}).items())
        if at.total > self.first:
            rate = (at.total - self.first) / seconds
            left = duration((at.epochs * at.steps_per_epoch - at.total) / rate)
            text += f" | {rate * self.batch_size:.0f} images/s, {left} left"
        print(text, end=end, file=self.file, flush=True)


class MetricsFile(keras.callbacks.Callback):
    """Writes `metrics.csv`, one row an epoch, whole or not at all.

    Args:
        path: The file; None to keep the rows only.
        rows: Rows of earlier epochs, when a run goes on.
        position: The run's `Position`.
    """

    def __init__(self, path, rows, position):
        super().__init__()
        self.path, self.rows, self.position = path, list(rows), position

    def on_epoch_end(self, epoch, logs=None):
        """Adds the epoch's row."""
        rate = float(self.model.optimizer.learning_rate)
        row = {"epoch": epoch + 1, "step": self.position.total, "learning_rate": rate}
        self.rows.append(row | {key: float(value) for key, value in logs.items()})
        if self.path is None:
            return
        text = io.StringIO()
        names = dict.fromkeys(key for row in self.rows for key in row)
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.path, text.getvalue().encode())


class FiniteLoss(keras.callbacks.Callback):
    """Stops a run whose loss is no number any more, before anything of it is saved.

    Args:
        position: The run's `Position`.
    """

    def __init__(self, position):
        super().__init__()
        self.position = position

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the epoch's mean so far.

        Raises:
            RunError: If it is not finite.
        """
        loss, step = float(logs["loss"]), self.position.total
        if not math.isfinite(loss):
            spread = min(self.model.steps_per_execution, self.position.step)
            where = f"step {step}" if spread == 1 else f"one of steps {step - spread + 1} to {step}"
            raise RunError(
                f"The loss is {loss} after {where}; nothing was saved since, so the states and "
                "models that are kept are good. Lower the learning rate, or clip the gradient "
                "(clip_norm=1)."
            )


class ModelKeeper(keras.callbacks.Callback):
    """Now and then evaluates on the validation split, and keeps the best and the last model.

    With a moving average of the weights, it is the averaged model that is evaluated and kept; the
    weights that train are never touched.

    Args:
        run: The `RunDirectory`; None on hosts that write nothing.
        model: A clone of the model that trains; it receives the weights to keep.
        evaluate: Returns the clone's "accuracy" and "loss", which enter the logs as val_accuracy
            and val_loss.
        every: Epochs between two evaluations; the last epoch is always evaluated.
        best: The best so far, when a run goes on: [accuracy, -loss], so that of equal accuracies
            the lower loss is the better.
    """

    def __init__(self, run, model, evaluate, every=1, best=None):
        super().__init__()
        self.run, self.kept, self.evaluate = run, model, evaluate
        self.every, self.best = every, best

    def due(self, epoch):
        """Whether the epoch that ends now is evaluated and saved."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.params["epochs"]

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates and saves."""
        if not self.due(epoch):
            return
        self._take_weights()
        result = self.evaluate()
        logs |= {"val_accuracy": result["accuracy"], "val_loss": result["loss"]}
        score = [result["accuracy"], -result["loss"]]
        better = self.best is None or score > self.best
        if better:
            self.best = score
        if self.run is not None:
            if better:
                self.run.save_model(self.kept, "best")
            self.run.save_model(self.kept, "last")

    def _take_weights(self):
        self.kept.set_weights(self.model.get_weights())
        optimizer = self.model.optimizer
        if optimizer.use_ema:
            averages = moving_averages(optimizer)
            for kept, average in zip(self.kept.trainable_variables, averages, strict=True):
                kept.assign(average)


class StateKeeper(keras.callbacks.Callback):
    """Saves everything that going on needs: now and then, after evaluations, and when stopped.

    Args:
        writer: A `StateWriter`; None on hosts that write nothing.
        keeper: The `ModelKeeper`, for the best so far.
        metrics: The `MetricsFile`, for its rows.
        position: The run's `Position`.
        stop: An `Interruption`: whether to save and stop.
        steps: Batches between two saves; None for no such saves.
        minutes: Minutes between two saves; None for no such saves.
        arrays: Those of the state that the run goes on from; None for a new run.
    """

    def __init__(
        self, writer, keeper, metrics, position, stop, steps=None, minutes=None, arrays=None
    ):
        super().__init__()
        self.writer, self.keeper, self.metrics = writer, keeper, metrics
        self.position, self.stop = position, stop
        self.steps, self.minutes, self.arrays = steps, minutes, arrays
        self.saved_step, self.saved_time = position.total, time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        """Takes over the state that the run goes on from; by now Keras has made all variables."""
        if self.arrays is not None:
            checkpoints.restore(self.model, self.arrays)
            self.arrays = None
            if self.position.step == 0:
                self.model.reset_metrics()  # what is saved after an epoch still counts that one

    def on_train_batch_end(self, batch, logs=None):
        """Saves inside an epoch; at its end `on_epoch_end` does."""
        at = self.position
        if at.fresh and at.step < at.steps_per_epoch:
            stop, save = self._wishes()
            if stop or save:
                self._save(at.epoch, at.step)
            if stop:
                self.stop.carry_out(at.total)

    def on_epoch_end(self, epoch, logs=None):
        """Saves after an evaluation, when it is time, and when asked to stop."""
        stop, save = self._wishes()
        if stop or save or self.keeper.due(epoch):
            self._save(epoch + 1, 0)
        if stop and epoch + 1 < self.position.epochs:
            self.stop.carry_out(self.position.total)

    def on_train_end(self, logs=None):
        """Waits for the last save."""
        if self.writer is not None:
            self.writer.wait()

    def _wishes(self):
        """Returns whether to stop and whether it is time to save, the same on all hosts."""
        by_steps = self.steps and self.position.total - self.saved_step >= self.steps
        by_time = self.minutes and time.monotonic() - self.saved_time >= 60 * self.minutes
        return self.stop.agree(self.stop.asked, bool(by_steps or by_time))

    def _save(self, epoch, step):
        extra = {"epoch": epoch, "epoch_step": step}
        extra |= {"best": self.keeper.best, "rows": self.metrics.rows}
        arrays = checkpoints.arrays_of(self.model)  # on every host: metrics are summed over them
        self.saved_step, self.saved_time = self.position.total, time.monotonic()
        if self.writer is not None:
            self.writer.save(self.position.total, arrays, extra)
