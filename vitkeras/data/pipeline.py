"""Batches from a source: full batches for training, padded and weighted batches for evaluation."""

import tensorflow as tf

from vitkeras.data.augmentation import Augmentation
from vitkeras.data.examples import Source
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.data.sharding import HostShard, exact_shard
from vitkeras.errors import InputError
from vitkeras.keras_internals import tf_data_debug_mode

# The functions below use no Python control flow on tensors. Without the conversion by AutoGraph, a
# pipeline with RandAugment starts several seconds earlier.
_no_autograph = tf.autograph.experimental.do_not_convert


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns the number of full batches in an epoch.

    Raises:
        InputError: If `batch_size` is not positive or larger than the training split.
    """
    examples = source.num_examples("train")
    if not 1 <= batch_size <= examples:
        raise InputError(
            "`batch_size` must be at least 1 and at most the number of training images. "
            f"Received: batch_size={batch_size}, {examples} training images."
        )
    return examples // batch_size


def training_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    epochs: int,
    seed: int = 0,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is immutable)
    first_epoch: int = 0,
    first_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Returns the batches of epochs `first_epoch` to `epochs` - 1.

    Order and augmentation depend on (seed, epoch, index in the epoch) only: a resumed run gets the
    batches that it would have got, on any number of hosts.

    Args:
        source: The data source.
        preprocessing: The preprocessing of the run.
        batch_size: Global batch size.
        epochs: Number of epochs of the run.
        seed: Determines order and augmentation.
        augmentation: The augmentation of the run.
        first_epoch: Index of the first epoch.
        first_step: Number of batches of the first epoch to skip.
        host: Index of the host.
        num_hosts: Number of hosts; must divide `batch_size`. Each host reads, decodes and returns
            its own part of every batch.
    Returns:
        Dataset of images uint8 `(b, h, w, 3)` and labels, with b = `batch_size / num_hosts`. Labels
        are int32 `(b,)`, or float32 `(b, classes)` if the augmentation mixes images. Each epoch has
        `steps_per_epoch` batches; the remaining examples are dropped.
    """
    if tf_data_debug_mode():
        raise InputError(
            "`tf.data.experimental.enable_debug_mode` must not be used with `training_batches`: "
            "TensorFlow loses the functions of nested data sets in it. Received: debug mode."
        )
    steps, num_classes = steps_per_epoch(source, batch_size), len(source.class_names)
    examples = source.examples("train")
    shard = HostShard.for_batches(batch_size, examples.max_groups, host, num_hosts)

    def derive_seed(stream, epoch, index):
        fold = tf.random.experimental.stateless_fold_in
        return fold(fold([seed, stream], epoch), index)

    @_no_autograph
    def read(epoch):
        first = tf.where(epoch == first_epoch, tf.cast(first_step, tf.int64), 0)
        order = examples.shuffled(seed * 1_000_003 + epoch, shard, first, steps)
        start = first * batch_size
        return order.enumerate().map(
            lambda i, example: (epoch, start + shard.global_index(i), example)
        )

    @_no_autograph
    def augment(epoch, index, example):
        image_seed = derive_seed(1, epoch, index)
        image = augmentation.image(preprocessing, example["image_bytes"], image_seed)
        return image, _check_label(example["label"], num_classes), epoch, index

    @_no_autograph
    def mix(images, labels, epochs, indices):
        batch_seed = derive_seed(2, epochs[0], indices[0] - shard.slice.start)
        images, labels = augmentation.batch(images, labels, batch_seed, num_classes, shard)
        return shard.trim(images), shard.trim(labels)

    return _with_options(
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(read)
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(len(shard.slice), drop_remainder=True)
        .map(mix, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(
    source: Source,
    split: str,
    preprocessing: Preprocessing,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Returns full batches with weights: 1 for an example, 0 for the padding of the last batch.

    Args:
        source: The data source.
        split: train, validation or test.
        preprocessing: The preprocessing of the run.
        batch_size: Global batch size.
        host: Index of the host.
        num_hosts: Number of hosts; must divide `batch_size`.
    Returns:
        Dataset of images uint8 `(b, h, w, 3)`, labels int32 `(b,)` and weights float32 `(b,)`, with
        b = `batch_size / num_hosts`, in the order of the source.
    """
    shard, examples = exact_shard(batch_size, host, num_hosts), source.num_examples(split)
    num_classes = len(source.class_names)
    # The padding is at the end of the last global batch; this is the host's part of it.
    filled = batch_size - -examples % batch_size
    padding = len(range(max(filled, shard.slice.start), shard.slice.stop))

    @_no_autograph
    def preprocess(example):
        image = preprocessing.evaluation_image(example["image_bytes"])
        return image, _check_label(example["label"], num_classes), 1.0

    @_no_autograph
    def pad(_):
        image = tf.zeros((*preprocessing.image_size, 3), tf.uint8)
        return image, tf.zeros((), tf.int32), 0.0

    data = (
        source.examples(split)
        .in_order(shard)
        .map(preprocess, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )
    return _with_options(
        data.concatenate(tf.data.Dataset.range(padding).map(pad))
        .batch(len(shard.slice), drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _check_label(label, num_classes):
    """Returns a label as int32; fails when executed if no class has it."""
    message = f"A label must be an integer from 0 to {num_classes - 1}. Received:"
    check = tf.debugging.Assert((label >= 0) & (label < num_classes), [message, label])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.cast(label, tf.int32)


def _with_options(batches):
    options = tf.data.Options()
    # TensorFlow's default shards by file, which would change the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.threading.max_intra_op_parallelism = 1  # the images of a batch are the parallelism
    return batches.with_options(options)
