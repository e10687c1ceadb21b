"""From a source to batches. Whole batches train; evaluation counts every example exactly once."""

import tensorflow as tf

from vitkeras.data.augmentation import Augmentation
from vitkeras.errors import InputError


def steps_per_epoch(source, batch_size):
    """Returns the number of whole batches in an epoch.

    Raises:
        InputError: If `batch_size` is not positive or there is not even one batch.
    """
    examples = source.num_examples("train")
    if not 1 <= batch_size <= examples:
        raise InputError(
            "`batch_size` must be at least 1 and not larger than the training split. "
            f"Received: batch_size={batch_size}, {examples} training images."
        )
    return examples // batch_size


def training_batches(
    source,
    preprocessing,
    batch_size,
    epochs,
    seed=0,
    augmentation=Augmentation(),  # noqa: B008 (it cannot be changed)
    first_epoch=0,
    first_step=0,
):
    """Returns batches of epochs `first_epoch` to `epochs` - 1, one after the other.

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone, so a run that
    starts later sees what it would have seen. Under several hosts each takes its part of every
    batch.

    Args:
        source: What `open_source` returns.
        preprocessing: The run's `Preprocessing`.
        batch_size: Global batch, in images.
        epochs: Epochs of the whole run.
        seed: Chooses order and augmentation.
        augmentation: An `Augmentation`.
        first_epoch: The epoch to begin with.
        first_step: Batches of the first epoch that are left out.
    Returns:
        A tf.data.Dataset of images uint8 `(b, h, w, 3)` and labels int32 `(b,)`, or float32
        `(b, classes)` where the augmentation mixes; each epoch has `steps_per_epoch` whole batches,
        and leaves out what is over.
    """
    steps, classes = steps_per_epoch(source, batch_size), len(source.class_names)

    def pair(kind, epoch, index):
        fold = tf.random.experimental.stateless_fold_in
        return fold(fold([seed, kind], epoch), index)

    def example(epoch, index, encoded):
        image = augmentation.image(preprocessing, encoded["image_bytes"], pair(1, epoch, index))
        return image, tf.cast(encoded["label"], tf.int32), epoch, index

    def mixed(images, labels, epochs, indices):
        return augmentation.batch(images, labels, pair(2, epochs[0], indices[0]), classes)

    def of_epoch(epoch):
        first = batch_size * tf.where(epoch == first_epoch, tf.cast(first_step, tf.int64), 0)
        order = source.examples("train", seed * 1_000_003 + epoch, first)
        numbered = order.take(steps * batch_size - first).enumerate(first)
        return numbered.map(lambda index, encoded: (epoch, index, encoded))

    return _by_batch(
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(of_epoch)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .map(mixed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(source, split, preprocessing, batch_size):
    """Returns whole batches with weights: 1 for an example, 0 for what fills the last batch.

    Returns:
        A tf.data.Dataset of images uint8 `(b, h, w, 3)`, labels int32 `(b,)` and weights
        float32 `(b,)`, in the order of the source.
    """
    examples = source.num_examples(split)
    padding = -examples % batch_size

    def example(encoded):
        image = preprocessing.evaluation_image(encoded["image_bytes"])
        return image, tf.cast(encoded["label"], tf.int32), 1.0

    def filler(_):
        image = tf.zeros((*preprocessing.image_size, 3), tf.uint8)
        return image, tf.zeros((), tf.int32), 0.0

    real = source.examples(split).map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return _by_batch(
        real.concatenate(tf.data.Dataset.range(padding).map(filler))
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _by_batch(batches):
    """Has hosts divide each batch. TensorFlow's default divides files: then batches are others."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)
