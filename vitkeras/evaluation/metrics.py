"""Accuracy and loss over a complete split."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from vitkeras.arguments import check_choice
from vitkeras.errors import InputError
from vitkeras.models.config import check_model


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
    check_model(model)
    check_choice("loss", loss, ("softmax", "sigmoid"))
    outputs = getattr(model, "outputs", None) or [None]  # a subclass or an unbuilt model has none
    if len(outputs) != 1:
        raise InputError(
            "`model` must have one output, the logits. "
            f"Received: {model.name} with {len(outputs)} outputs."
        )
    strategy = tf.distribute.get_strategy()

    def replica_sums(images, labels, weights):
        logits = tf.cast(model(images, training=False), tf.float32)  # (b, classes)
        if loss == "softmax":
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        else:
            targets = tf.one_hot(labels, logits.shape[-1])
            losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)  # (b, classes)
            losses = tf.reduce_sum(losses, -1)
        correct = tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32)
        return tf.stack(
            [tf.reduce_sum(x * weights) for x in (losses, correct, tf.ones_like(weights))]
        )

    @tf.function
    def batch_sums(batch):
        per_replica = strategy.run(replica_sums, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    def evaluate(batches):
        if isinstance(batches, tf.data.Dataset):
            batches = strategy.experimental_distribute_dataset(batches)
        total = sum(batch_sums(batch).numpy().astype("float64") for batch in batches)
        losses, correct, examples = (float(x) for x in total)
        result = {
            "accuracy": correct / examples, "loss": losses / examples, "examples": int(examples)
        }  # fmt: skip
        return result if loss == "softmax" else result | {"loss_function": loss}

    return evaluate
