"""`train(...)`: `model.fit` with all that a run directory keeps, from wherever the run stopped."""

import contextlib
import errno
import re

import keras
import tensorflow as tf

from vitkeras import storage
from vitkeras.errors import RunError
from vitkeras.training.callbacks import (
    FiniteLoss,
    MetricsFile,
    ModelKeeper,
    Position,
    ProgressLine,
    StateKeeper,
)
from vitkeras.training.checkpoints import StateWriter, latest_state, remove_newer
from vitkeras.training.interruption import Interruption
from vitkeras.training.strategy import is_chief, is_multi_worker, mean_over_hosts

#: What TensorFlow raises when another host is gone.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)
FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)


def train(
    run,
    model,
    kept_model,
    batches,
    evaluate,
    *,
    epochs,
    steps_per_epoch,
    batch_size,
    evaluate_every=1,
    save_steps=None,
    save_minutes=None,
    callbacks=(),
    say=print,
):
    """Trains to the end, beginning where the newest whole state of the run directory stands.

    On one device the result is that of a run that never stopped, bit for bit. SIGTERM and SIGINT
    finish the step, save, and raise `Interrupted`.

    Args:
        run: The `RunDirectory`, on storage that all hosts see.
        model: Compiled, its optimizer built.
        kept_model: A clone of it, which is evaluated and saved.
        batches: Function of (first epoch, first step) that returns the training batches from there.
        evaluate: Returns the metrics of `kept_model` on the validation split.
        epochs, steps_per_epoch, batch_size: Of the whole run; the batch is the global one.
        evaluate_every: Epochs between two evaluations with their saves.
        save_steps, save_minutes: Saves of the state in between; None for none.
        callbacks: More of Keras's, for the chief.
        say: Takes a line to print.
    Returns:
        The rows of metrics.csv, one dict an epoch.
    Raises:
        Interrupted: After a signal, once everything is saved.
        RunError: If the loss is not finite, or a state cannot be saved or none be read.
    """
    strategy = model.distribute_strategy
    chief = is_chief(strategy)
    found = latest_state(run.path / "state", warn=say)
    arrays, extra = found or (None, {"epoch": 0, "epoch_step": 0, "best": None, "rows": []})
    position = Position(epochs, steps_per_epoch, extra["epoch"], extra["epoch_step"])
    if mean_over_hosts(strategy, [position.total]) != [position.total]:
        raise RunError(
            "All hosts must see the same run directory, but they found states of different steps "
            f"(here: step {position.total} in {run.path}). Put it on storage that they share."
        )
    if extra["epoch"] >= epochs:
        say(f"all {epochs} epochs are done already")
        return extra["rows"]
    if found:
        if chief:
            remove_newer(run.path / "state", position.total)
        say(f"going on after step {position.total} of {epochs * steps_per_epoch}")

    writer = StateWriter(run.path / "state") if chief else None
    keeper = ModelKeeper(
        run if chief else None, kept_model, evaluate, evaluate_every, extra["best"]
    )
    metrics = MetricsFile(run.path / "metrics.csv" if chief else None, extra["rows"], position)
    own = [position, FiniteLoss(position), keeper]
    if chief:
        board = keras.callbacks.TensorBoard(str(run.path / "tensorboard"), write_graph=False)
        own += [ProgressLine(position, batch_size), board, *callbacks]
    with Interruption(strategy, writer) as stop:
        state = StateKeeper(
            writer, keeper, metrics, position, stop, save_steps, save_minutes, arrays
        )
        try:
            model.fit(
                batches(position.first_epoch, position.first_step),
                epochs=epochs,
                initial_epoch=position.first_epoch,
                steps_per_epoch=steps_per_epoch,
                first_step=position.first_step,
                shuffle=False,  # the batches are shuffled already
                verbose=0,
                callbacks=[*own, metrics, state],
            )
        finally:
            if writer is not None:
                writer.wait()
        if position.total < epochs * steps_per_epoch:
            raise RunError(
                f"The training data ended at step {position.total} of {epochs * steps_per_epoch}."
            )
        mean_over_hosts(strategy, [0])  # the chief has written the models when this returns
    return metrics.rows


@contextlib.contextmanager
def hold(run, strategy):
    """Keeps other processes from training in this run directory, and clears what one left.

    What can go wrong in there by no fault of the program becomes a sentence.

    Raises:
        InputError: If another process holds it.
        RunError: If another host is lost, or nothing can be written.
    """
    with contextlib.ExitStack() as stack:
        if is_chief(strategy):
            stack.enter_context(storage.lock(run.path))
            storage.remove_leftovers(run.path)
            storage.remove_leftovers(run.path / "state")
        try:
            yield
        except LOST as error:
            if not is_multi_worker(strategy):
                raise
            raise RunError(
                "Another host was lost, so no step can be finished; start the same command again "
                "on all hosts, and the run goes on from its last saved state "
                f"({type(error).__name__})."
            ) from error
        except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
            if "IteratorGetNext" not in str(error):  # not of the input pipeline
                raise
            reason = re.sub(r"\{\{.*?\}\}", "", error.message).strip().splitlines()[0]
            raise RunError(
                f"An example could not be read ({reason[:200].strip()}); experiments.preflight "
                "with --full names the files that cannot be. What was saved is whole, and the same "
                "command goes on from there."
            ) from error
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise RunError(
                f"A file could not be written in {run.path} ({error.strerror}); what was saved "
                "before is whole, and the same command goes on from there."
            ) from error
