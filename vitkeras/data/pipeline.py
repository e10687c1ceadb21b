"""From a source to batches. Whole batches train; evaluation counts every example exactly once."""

import tensorflow as tf

from vitkeras.data.augmentation import Augmentation
from vitkeras.data.hosts import Share, whole
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
    host=0,
    hosts=1,
):
    """Returns batches of epochs `first_epoch` to `epochs` - 1, one after the other.

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone, so a run that
    starts later sees what it would have seen, on any number of hosts.

    Args:
        source: What `open_source` returns.
        preprocessing: The run's `Preprocessing`.
        batch_size: Global batch, in images.
        epochs: Epochs of the whole run.
        seed: Chooses order and augmentation.
        augmentation: An `Augmentation`.
        first_epoch: The epoch to begin with.
        first_step: Batches of the first epoch that are left out.
        host: 0 to `hosts` - 1.
        hosts: How many share the work: each reads, decodes and returns only its part of every
            batch. A divisor of `batch_size`.
    Returns:
        A tf.data.Dataset of images uint8 `(b, h, w, 3)` and labels int32 `(b,)`, or float32
        `(b, classes)` where the augmentation mixes, b being `batch_size / hosts`; each epoch has
        `steps_per_epoch` whole batches, and leaves out what is over.
    """
    steps, classes = steps_per_epoch(source, batch_size), len(source.class_names)
    stored = source.stored("train")
    share = Share.of(batch_size, stored.most_groups, host, hosts)

    def pair(kind, epoch, index):
        fold = tf.random.experimental.stateless_fold_in
        return fold(fold([seed, kind], epoch), index)

    def example(epoch, index, encoded):
        image = augmentation.image(preprocessing, encoded["image_bytes"], pair(1, epoch, index))
        return image, _label(encoded["label"], classes), epoch, index

    def mixed(images, labels, epochs, indices):
        batch_seed = pair(2, epochs[0], indices[0] - share.slots.start)
        images, labels = augmentation.batch(images, labels, batch_seed, classes, share)
        return share.own(images), share.own(labels)

    def of_epoch(epoch):
        first = tf.where(epoch == first_epoch, tf.cast(first_step, tf.int64), 0)
        order = stored.shuffled(seed * 1_000_003 + epoch, share, first, steps)
        start = first * batch_size
        return order.enumerate().map(lambda i, encoded: (epoch, start + share.place(i), encoded))

    return _by_batch(
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(of_epoch)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(len(share.slots), drop_remainder=True)
        .map(mixed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(source, split, preprocessing, batch_size, host=0, hosts=1):
    """Returns whole batches with weights: 1 for an example, 0 for what fills the last batch.

    Args:
        source: What `open_source` returns.
        split: train, validation or test.
        preprocessing: The run's `Preprocessing`.
        batch_size: Global batch, in images.
        host: 0 to `hosts` - 1.
        hosts: How many share the work; a divisor of `batch_size`.
    Returns:
        A tf.data.Dataset of images uint8 `(b, h, w, 3)`, labels int32 `(b,)` and weights
        float32 `(b,)`, b being `batch_size / hosts`, in the order of the source.
    """
    share, examples = whole(batch_size, host, hosts), source.num_examples(split)
    classes = len(source.class_names)
    # The last places of the last batch, as far as they are this host's.
    filled = batch_size - -examples % batch_size
    padding = len(range(max(filled, share.slots.start), share.slots.stop))

    def example(encoded):
        image = preprocessing.evaluation_image(encoded["image_bytes"])
        return image, _label(encoded["label"], classes), 1.0

    def filler(_):
        image = tf.zeros((*preprocessing.image_size, 3), tf.uint8)
        return image, tf.zeros((), tf.int32), 0.0

    real = (
        source.stored(split)
        .in_order(share)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )
    return _by_batch(
        real.concatenate(tf.data.Dataset.range(padding).map(filler))
        .batch(len(share.slots), drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _label(label, num_classes):
    """Returns the label as int32, once it is sure that there is such a class."""
    message = f"A label must be an integer from 0 to {num_classes - 1}. Received:"
    check = tf.debugging.Assert((label >= 0) & (label < num_classes), [message, label])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.cast(label, tf.int32)


def _by_batch(batches):
    """Has hosts divide each batch, and each operation take one thread."""
    options = tf.data.Options()
    # TensorFlow's default divides files: then batches are others.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.threading.max_intra_op_parallelism = 1  # images are many enough to fill the cores
    return batches.with_options(options)
