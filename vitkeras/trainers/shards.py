"""Batches and their shards, one for each replica, under a distribution strategy."""

import keras
import tensorflow as tf

from vitkeras.errors import InputError


def is_tpu(strategy):
    """Returns whether a strategy runs on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def check_tpu_batches(element_spec) -> None:
    """Checks that a TPU can process the batches of a dataset.

    Args:
        element_spec: `element_spec` of a tf.data.Dataset.
    Raises:
        InputError: If a shape is not fully defined, or an element is a string.
    """
    for spec in tf.nest.flatten(element_spec, expand_composites=True):  # of each replica
        if not spec.shape.is_fully_defined() or spec.dtype == tf.string:
            raise InputError(
                "Batches for a TPU must have a fully defined shape and no strings. "
                f"Received: shape {spec.shape}, {spec.dtype.name}. Use `.batch(n, "
                "drop_remainder=True)`; pad the last batch of an evaluation with examples of "
                "weight 0."
            )


def is_distributed(strategy):
    """Returns whether a batch is split into shards, or compiled for a TPU."""
    return strategy.num_replicas_in_sync > 1 or is_tpu(strategy)


def first_leaf(data):
    """Returns the first tensor of a structure."""
    return next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)


def num_examples(x):
    """Returns the number of examples in a batch, a constant if the shape is static."""
    leaf = first_leaf(x)
    return tf.shape(leaf)[0] if leaf.shape[0] is None else tf.constant(leaf.shape[0])


def has_equal_shards(strategy, batch):
    """Returns whether all shards of a batch are known to have the same number of examples."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False  # the shards of other hosts are not known here
    sizes = {each.shape[0] for each in strategy.experimental_local_results(first_leaf(batch))}
    return len(sizes) == 1 and None not in sizes


def hide_empty(tensor):
    """Makes the size of an empty shard dynamic; some metrics treat a static size of 0 specially."""
    if isinstance(tensor, tf.Tensor) and tensor.shape.rank and tensor.shape[0] == 0:
        return tf.compat.v1.placeholder_with_default(tensor, [None, *tensor.shape[1:]])
    return tensor
