"""`train(...)`: `model.fit` that saves to a run directory and resumes from it."""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import tensorflow as tf
from absl import logging

from vitkeras.errors import RunError
from vitkeras.io.atomic import remove_stale_staging
from vitkeras.io.locks import exclusive_lock
from vitkeras.io.read_errors import read_errors
from vitkeras.io.run_directory import RunDirectory
from vitkeras.models.config import check_model
from vitkeras.training.callbacks import (
    LossGuard,
    MetricsWriter,
    ModelSaver,
    ProgressBar,
    StateSaver,
    StepCounter,
)
from vitkeras.training.checkpoints import StateWriter, latest_state, remove_newer
from vitkeras.training.early_stopping import EarlyStopper, EarlyStopping
from vitkeras.training.interruption import StopSignal
from vitkeras.training.strategy import is_chief, is_multi_worker, mean_over_hosts

#: Errors that TensorFlow raises after another host was lost.
LOST_HOST_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)
#: Errors of a full disk, and of a run directory that is read-only, removed or renamed.
WRITE_ERRORS = (
    errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EACCES, errno.EIO, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM, errno.EROFS, errno.ESTALE,
)  # fmt: skip


def train(
    run: RunDirectory,
    model: keras.Model,
    kept_model: keras.Model,
    batches: Callable[[int, int], object],
    evaluate: Callable[[], Mapping[str, float]],
    *,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    evaluate_every: int = 1,
    save_steps: int | None = None,
    save_minutes: float | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict]:
    """Trains to the last epoch, starting from the newest state in the run directory.

    On one device a resumed run gives the same result as an uninterrupted one, bit for bit. SIGTERM
    and SIGINT finish the step, save the state and raise `Interrupted`.

    Args:
        run: The run directory, on storage that all hosts share.
        model: The model, compiled, with the variables of its optimizer.
        kept_model: A clone of the model, which is evaluated and saved.
        batches: Function of (first epoch, first step) that returns the batches from there on.
        evaluate: Returns the metrics of `kept_model` on the validation split.
        epochs: Number of epochs of the whole run.
        steps_per_epoch: Number of steps of each epoch.
        batch_size: Global batch size.
        evaluate_every: Number of epochs between evaluations; models and state are saved after each.
        save_steps: Number of steps between further saves of the state; None for no such saves.
        save_minutes: Minutes between further saves of the state; None for no such saves.
        early_stopping: When the run ends before the last epoch; None for never.
        callbacks: Further Keras callbacks, which run on the chief.
    Returns:
        The rows of metrics.csv, one dict per epoch.
    Raises:
        Interrupted: After a signal, when the state is saved.
        RunError: If the loss is not finite, a state cannot be saved or read, hosts see different
            states, or the data ends early.
    """
    for name, value in (("model", model), ("kept_model", kept_model)):
        check_model(value, name)
    strategy = model.distribute_strategy
    chief = is_chief(strategy)
    state = latest_state(run.path / "state")
    arrays, record = state or (None, {"epoch": 0, "epoch_step": 0, "best": None, "rows": []})
    counter = StepCounter(epochs, steps_per_epoch, record["epoch"], record["epoch_step"])
    if mean_over_hosts(strategy, [counter.global_step]) != [counter.global_step]:
        raise RunError(
            "All hosts must see the same run directory. Received: states of different steps, here "
            f"step {counter.global_step} in {run.path}. Use a directory on shared storage."
        )
    if record["epoch"] >= epochs:
        logging.info("All %d epochs are done already.", epochs)
        return record["rows"]
    if early_stopping and early_stopping.is_reached(record["rows"]):
        logging.info(early_stopping.describe(record["rows"]))
        return record["rows"]
    if state:
        if chief:
            remove_newer(run.path / "state", counter.global_step)
        logging.info("Resuming after step %d of %d.", counter.global_step, counter.total_steps)

    writer = StateWriter(run.path / "state") if chief else None
    model_saver = ModelSaver(
        run if chief else None, kept_model, evaluate, evaluate_every, record["best"]
    )
    metrics = MetricsWriter(run.path / "metrics.csv" if chief else None, record["rows"], counter)
    chief_callbacks = []
    with contextlib.ExitStack() as stack:
        if chief:
            progress = ProgressBar(counter, batch_size)
            stack.callback(progress.close)
            folder = str(run.path / "tensorboard")
            tensorboard = keras.callbacks.TensorBoard(folder, write_graph=False)
            chief_callbacks = [progress, tensorboard, *callbacks]
        stop = stack.enter_context(StopSignal(strategy, writer))
        state_saver = StateSaver(
            writer, model_saver, metrics, counter, stop, save_steps, save_minutes, arrays
        )
        stoppers = [EarlyStopper(early_stopping, metrics, stop, chief)] if early_stopping else []
        try:
            model.fit(
                batches(counter.first_epoch, counter.first_step),
                epochs=epochs,
                initial_epoch=counter.first_epoch,
                steps_per_epoch=steps_per_epoch,
                first_step=counter.first_step,
                shuffle=False,  # the batches are shuffled already
                verbose=0,
                callbacks=[
                    counter, LossGuard(counter), model_saver, *chief_callbacks, metrics, *stoppers,
                    state_saver,
                ],
            )  # fmt: skip
        finally:
            if writer is not None:
                writer.wait()
        if early_stopping and model.stop_training:
            logging.info(early_stopping.describe(metrics.rows))
        elif counter.global_step < counter.total_steps:
            raise RunError(
                f"The training data must last for {counter.total_steps} steps. "
                f"Received: data that ended after step {counter.global_step}."
            )
        mean_over_hosts(strategy, [0])  # a barrier: the chief has written the models
    return metrics.rows


@contextlib.contextmanager
def host_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Converts the errors that TensorFlow raises after another host was lost.

    Raises:
        RunError: If another host is lost.
    """
    try:
        yield
    except LOST_HOST_ERRORS as error:
        if not is_multi_worker(strategy):
            raise
        raise RunError(
            f"Another host was lost ({type(error).__name__}). The same command on all hosts "
            "resumes the run from its last saved state, if there is one."
        ) from error


@contextlib.contextmanager
def exclusive_run(run: RunDirectory, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Locks a run directory and removes temporary files that a killed process left there.

    Converts environment failures (unreadable example, full disk, removed directory) to `RunError`.

    Raises:
        InputError: If another process holds the lock.
        RunError: If an example cannot be read, or a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if is_chief(strategy):
            stack.enter_context(exclusive_lock(run.path))
            remove_stale_staging(run.path)
            remove_stale_staging(run.path / "state")
        try:
            with read_errors("The saved states are intact, and the same command resumes the run."):
                yield
        except OSError as error:
            if error.errno not in WRITE_ERRORS:
                raise
            kept = (
                "What was saved before is intact, and the same command resumes the run."
                if run.exists()
                else "The run is not there any more."
            )
            raise RunError(
                f"A file could not be written in {run.path} ({error.strerror}). {kept}"
            ) from error
