"""Metrics over a whole split, exact to the last example."""

import tensorflow as tf


def make_evaluator(model):
    """Returns a function from batches of `evaluation_batches` to a dict of metrics.

    It sums over examples, not over means of batches, so the numbers do not depend on the batch
    size or the number of replicas. Call this in the strategy's scope.

    Args:
        model: Gives logits `(b, classes)`.
    Returns:
        A function of a tf.data.Dataset of (images, labels, weights), or one that is distributed
        already, that returns `{"accuracy": ..., "loss": ..., "examples": ...}`, loss being
        cross-entropy in nats.
    """
    strategy = tf.distribute.get_strategy()

    def sums_of_replica(images, labels, weights):
        logits = tf.cast(model(images, training=False), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        correct = tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32)
        return tf.stack(
            [tf.reduce_sum(x * weights) for x in (losses, correct, tf.ones_like(weights))]
        )

    @tf.function
    def sums_of_batch(batch):
        per_replica = strategy.run(sums_of_replica, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    def evaluate(batches):
        if isinstance(batches, tf.data.Dataset):
            batches = strategy.experimental_distribute_dataset(batches)
        total = sum(sums_of_batch(batch).numpy().astype("float64") for batch in batches)
        loss, correct, examples = (float(x) for x in total)
        return {"accuracy": correct / examples, "loss": loss / examples, "examples": int(examples)}

    return evaluate
