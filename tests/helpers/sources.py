"""A data source of numbered images, and what a source holds."""

import functools

import numpy as np
import tensorflow as tf

from vitkeras.data.examples import InMemoryExamples
from vitkeras.data.sharding import exact_shard


class NumberedSource:
    """100 training images and 50 others; the first pixel of each has its index."""

    class_names = ["even", "odd"]
    bad_images = []
    content = "1"

    def num_examples(self, split):
        return 100 if split == "train" else 50

    def version(self, split):
        return self.content

    def examples(self, split):
        count = self.num_examples(split)
        return InMemoryExamples(
            {"image_bytes": numbered_images(count), "label": tf.range(count) % 2}
        )


@functools.cache
def numbered_images(count):
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return tf.stack([tf.io.encode_png(image) for image in images])


def number(image):
    """Returns the index of an image of `NumberedSource`."""
    return int(image[0, 0, 0])


def sizes(source):
    return [source.num_examples(split) for split in ("train", "validation", "test")]


def labels_of(source, split):
    return _read(source.examples(split).in_order(), "label")


def images_of(source, split, shuffle_seed=None):
    examples = source.examples(split)
    data = examples.in_order()
    if shuffle_seed is not None:
        data = examples.shuffled(shuffle_seed, exact_shard(len(examples)), 0, 1)
    return _read(data, "image_bytes")


def _read(examples, name):
    batches = examples.batch(500).as_numpy_iterator()
    return [value for batch in batches for value in batch[name].tolist()]
