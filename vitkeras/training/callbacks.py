"""Keras callbacks: progress, metrics on disk, the models and the state that are kept."""

import csv
import io
import sys
import time

import keras

from vitkeras.runs import write_file
from vitkeras.training import checkpoints


def duration(seconds):
    """Returns "1:02:03"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class ProgressLine(keras.callbacks.Callback):
    """Prints epoch, step, loss, accuracy, images/s and the time left.

    On a terminal the line is rewritten every second; elsewhere one line an epoch, and one every
    30 seconds inside a long one.

    Args:
        epochs: Epochs of the whole run.
        steps_per_epoch: Steps in each.
        batch_size: Global batch, in images.
    """

    def __init__(self, epochs, steps_per_epoch, batch_size, file=None):
        super().__init__()
        self.epochs, self.steps, self.batch_size = epochs, steps_per_epoch, batch_size
        self.file = file or sys.stderr
        self.every = 1 if self.file.isatty() else 30
        self.begun = None

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch begins."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Prints now and then; the clock starts after the first step, which compiles."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = self.printed = now
            self.first = self.epoch * self.steps + batch + 1
        if now - self.printed >= self.every:
            self._print(batch + 1, logs, end="\r" if self.file.isatty() else "\n")

    def on_epoch_end(self, epoch, logs=None):
        """Prints the epoch's line, with whatever validation added."""
        self._print(self.steps, logs, end="\n")

    def _print(self, step, logs, end):
        self.printed = time.monotonic()
        done = self.epoch * self.steps + step
        seconds = self.printed - self.begun
        text = f"epoch {self.epoch + 1}/{self.epochs} step {step}/{self.steps}"
        text += "".join(f" {key} {float(value):.4f}" for key, value in (logs or {}).items())
        if done > self.first:
            rate = (done - self.first) / seconds
            left = duration((self.epochs * self.steps - done) / rate)
            text += f" | {rate * self.batch_size:.0f} images/s, {left} left"
        print(text, end=end, file=self.file, flush=True)


class MetricsFile(keras.callbacks.Callback):
    """Writes `metrics.csv`, one row an epoch, whole or not at all.

    Args:
        path: The file.
        rows: Rows of earlier epochs, when a run goes on.
        steps_per_epoch: To give the step beside the epoch.
    """

    def __init__(self, path, rows, steps_per_epoch):
        super().__init__()
        self.path, self.rows, self.steps = path, list(rows), steps_per_epoch
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the epoch's row."""
        rate = self.model.optimizer.learning_rate
        row = {"epoch": epoch + 1, "step": (epoch + 1) * self.steps, "learning_rate": float(rate)}
        self.rows.append(row | {key: float(value) for key, value in logs.items()})
        text = io.StringIO()
        writer = csv.DictWriter(
            text, fieldnames=list(dict.fromkeys(k for r in self.rows for k in r))
        )
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.path, text.getvalue().encode())


class ModelKeeper(keras.callbacks.Callback):
    """Now and then evaluates on the validation split, and keeps the best and the last model.

    With a moving average of the weights, it is the averaged model that is evaluated and kept; the
    weights that train are never touched.

    Args:
        run: The `RunDirectory`.
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
        if self.best is None or score > self.best:
            self.best = score
            self.run.save_model(self.kept, "best")
        self.run.save_model(self.kept, "last")

    def _take_weights(self):
        self.kept.set_weights(self.model.get_weights())
        optimizer = self.model.optimizer
        if optimizer.use_ema:
            averages = optimizer._model_variables_moving_average
            for kept, average in zip(self.kept.trainable_variables, averages, strict=True):
                kept.assign(average)


class StateKeeper(keras.callbacks.Callback):
    """Saves everything that going on needs, whenever the `ModelKeeper` is due.

    Args:
        folder: For `save_state`.
        keeper: The `ModelKeeper`, for the best so far.
        metrics: The `MetricsFile`, for its rows.
    """

    def __init__(self, folder, keeper, metrics):
        super().__init__()
        self.folder, self.keeper, self.metrics = folder, keeper, metrics

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        if self.keeper.due(epoch):
            extra = {"epoch": epoch + 1, "best": self.keeper.best, "rows": self.metrics.rows}
            step = (epoch + 1) * self.metrics.steps
            checkpoints.save_state(self.folder, step, checkpoints.arrays_of(self.model), extra)
