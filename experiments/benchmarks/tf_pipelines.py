"""TensorFlow pipelines of the benchmark `input_pipeline`, which process one JPEG repeatedly."""

from collections.abc import Callable

import keras
import tensorflow as tf

from experiments.benchmarks.pil_pipeline import MAGNITUDE, NUM_LAYERS, WORKERS
from vitkeras import data


def photo() -> bytes:
    """Returns a JPEG file of 640x427 pixels, from scikit-learn."""
    from sklearn.datasets import load_sample_image

    return tf.io.encode_jpeg(load_sample_image("china.jpg"), quality=95).numpy()


def tensorflow_pipeline(
    image_bytes: bytes, image_size: int, randaugment: str | None = None
) -> Callable[[int], None]:
    """Returns a function that processes a number of images with this package's pipeline.

    Args:
        image_bytes: Content of a JPEG file.
        image_size: Side of the result in pixels.
        randaugment: Implementation of RandAugment: "vitkeras", "keras", or None for none.
    """
    layers = NUM_LAYERS if randaugment == "vitkeras" else 0
    augmentation = data.Augmentation(
        "inception_flip", randaug_layers=layers, randaug_magnitude=MAGNITUDE
    )
    preprocessing = data.Preprocessing((image_size, image_size))
    layer = None
    if randaugment == "keras":
        factor = min(MAGNITUDE / 10, 1.0)
        layer = keras.layers.RandAugment((0, 255), num_ops=NUM_LAYERS, factor=factor)

    def load(index):
        seed = tf.stack([tf.cast(index, tf.int32), 1])
        image = augmentation.image(preprocessing, image_bytes, seed)
        return image if layer is None else tf.cast(layer(tf.cast(image, tf.float32)), tf.uint8)

    images = tf.data.Dataset.counter().map(load, num_parallel_calls=2 * WORKERS)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1  # as in `vitkeras.data.pipeline`
    batches = images.batch(10, drop_remainder=True).prefetch(2).with_options(options)

    def run(count):
        for _ in batches.take(count // 10):  # a new iterator: no work between two calls
            pass

    return run
