"""Accuracy and loss over a complete split, and the results of its examples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from vitkeras.arguments import check_choice
from vitkeras.errors import InputError
from vitkeras.models.config import check_model

#: An example counts in the top-5 accuracy if its class is among this number of best classes.
TOP = 5


class ExampleResults(NamedTuple):
    """What is kept of each example of a batch or a split, in the order of the examples.

    Attributes:
        labels: int32 `(b,)`.
        predicted: Label with the highest logit, int32 `(b,)`.
        probabilities: Probability of the predicted label, float32 `(b,)`.
        label_probabilities: Probability of the label, float32 `(b,)`.
        losses: Loss in nats, float32 `(b,)`.
        in_top: Whether the label has one of the `TOP` highest logits, bool `(b,)`.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    losses: np.ndarray
    in_top: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether the predicted label is the label, bool `(b,)`."""
        return self.predicted == self.labels

    @classmethod
    def concatenate(cls, batches: Iterable["ExampleResults"]) -> "ExampleResults":
        """Returns the results of all batches."""
        return cls(*map(np.concatenate, zip(*batches, strict=True)))


def make_evaluator(model: keras.Model, loss: str = "softmax") -> Callable[..., dict[str, Any]]:
    """Returns a function that computes the metrics of a model.

    It sums over examples, not over means of batches: the metrics do not depend on the batch size or
    the number of replicas. Call this in the strategy's scope.

    Args:
        model: A model that returns logits `(b, classes)`.
        loss: "softmax" for the cross-entropy, or "sigmoid" for the sigmoid cross-entropy, summed
            over the classes.
    Returns:
        A function of a (distributed) dataset of (images, labels, weights), as `evaluation_batches`
        makes it, that returns `{"accuracy": ..., "loss": ..., "examples": ...}`, the loss in nats.
        With sigmoid, there is also `"loss_function": "sigmoid"`.
    Raises:
        InputError: (a ValueError) If `model` is not a Keras model with logits as its only output.
    """
    _check_arguments(model, loss)
    strategy = tf.distribute.get_strategy()

    def replica_sums(images, labels, weights):
        logits = tf.cast(model(images, training=False), tf.float32)  # (b, classes)
        losses = _losses(labels, logits, loss)
        correct = tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32)
        return tf.stack(
            [tf.reduce_sum(x * weights) for x in (losses, correct, tf.ones_like(weights))]
        )

    @tf.function
    def batch_sums(batch):
        per_replica = strategy.run(replica_sums, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    def evaluate(batches):
        batches = _distributed(strategy, batches)
        total = sum(batch_sums(batch).numpy().astype("float64") for batch in batches)
        losses, correct, examples = (float(x) for x in total)
        result = {
            "accuracy": correct / examples, "loss": losses / examples, "examples": int(examples)
        }  # fmt: skip
        return result if loss == "softmax" else result | {"loss_function": loss}

    return evaluate


def make_example_evaluator(
    model: keras.Model, loss: str = "softmax"
) -> Callable[..., Iterator[ExampleResults]]:
    """Returns a function that computes the result of each example.

    The results do not depend on the batch size or the number of replicas, up to rounding. Call this
    in the strategy's scope.

    Args:
        model: A model that returns logits `(b, classes)`.
        loss: As in `make_evaluator`; also the activation from logits to probabilities.
    Returns:
        A function of a (distributed) dataset of (images, labels, weights), as `evaluation_batches`
        makes it, that yields the `ExampleResults` of each batch, without its padding. On several
        hosts, each of them gets the results of all.
    Raises:
        InputError: (a ValueError) If `model` is not a Keras model with logits as its only output.
    """
    _check_arguments(model, loss)
    strategy = tf.distribute.get_strategy()
    activation = getattr(tf.nn, loss)

    def replica_results(images, labels, weights):
        logits = tf.cast(model(images, training=False), tf.float32)  # (b, classes)
        predicted = tf.argmax(logits, 1, tf.int32)
        best = tf.math.top_k(logits, min(TOP, logits.shape[-1])).indices
        in_top = tf.reduce_any(best == labels[:, None], axis=1)
        probabilities = activation(logits)
        own = tf.gather(probabilities, labels, batch_dims=1)
        # float32 represents labels below 2**24; one tensor is gathered once.
        columns = (
            weights, labels, predicted, tf.reduce_max(probabilities, axis=1), own,
            _losses(labels, logits, loss), in_top,
        )  # fmt: skip
        return tf.stack([tf.cast(column, tf.float32) for column in columns], axis=1)

    @tf.function
    def batch_results(batch):
        per_replica = strategy.run(replica_results, args=batch)
        return strategy.gather(per_replica, axis=0)  # (b, 7), in the order of the batch

    def evaluate(batches):
        for batch in _distributed(strategy, batches):
            rows = batch_results(batch).numpy()
            _, labels, predicted, *values, in_top = rows[rows[:, 0] > 0].T
            yield ExampleResults(
                labels.astype("int32"), predicted.astype("int32"), *values, in_top.astype(bool)
            )

    return evaluate


def _check_arguments(model, loss):
    """Checks the arguments of an evaluator: the model must have one output."""
    check_model(model)
    check_choice("loss", loss, ("softmax", "sigmoid"))
    outputs = getattr(model, "outputs", None) or [None]  # a subclass or an unbuilt model has none
    if len(outputs) != 1:
        raise InputError(
            "`model` must have one output, the logits. "
            f"Received: {model.name} with {len(outputs)} outputs."
        )


def _losses(labels, logits, loss):
    """Returns the loss of each example, `(b,)`."""
    if loss == "softmax":
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    targets = tf.one_hot(labels, logits.shape[-1])
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), -1)


def _distributed(strategy, batches):
    if isinstance(batches, tf.data.Dataset):
        return strategy.experimental_distribute_dataset(batches)
    return batches
