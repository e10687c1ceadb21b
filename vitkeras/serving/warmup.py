"""Requests that a server answers before it takes others, so that the first client waits no longer.

Written as what they are on the wire, so that an export does not need tensorflow-serving-api.
"""

import numpy as np
import tensorflow as tf

from vitkeras.serving.server_files import BATCH_SIZES

WARMUP = "assets.extra/tf_serving_warmup_requests"


def sample_images(image_size):
    """Returns a JPEG and a PNG file, larger and smaller than what the model takes.

    Args:
        image_size: `(height, width)` that the model takes.
    """
    height, width = image_size

    def smooth(height, width, seed):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3))
        fine = tf.image.resize(coarse, (height, width), "bicubic")
        return tf.cast(tf.clip_by_value(fine, 0.0, 255.0), tf.uint8)

    return [
        tf.io.encode_jpeg(smooth(height + 16, 2 * width + 8, seed=0), quality=95).numpy(),
        tf.io.encode_png(smooth(height // 2 + 3, width // 2 + 5, seed=1)).numpy(),
    ]


def write_warmup(file, name, image_size, images):
    """Writes a TFRecord of PredictionLog: each allowed batch size, and every plain signature.

    The signature `xla` is left out: where a server cannot compile it, a request that fails would
    keep the whole model from loading.

    Args:
        file: Path to write to.
        name: Of the model.
        image_size: `(height, width)` that the model takes.
        images: Files as bytes, in turn.
    """
    pixels = np.zeros((1, *image_size, 3))
    requests = [
        ("serving_default", "image_bytes", [images[i % len(images)] for i in range(size)])
        for size in BATCH_SIZES
    ]
    requests += [
        ("features", "image_bytes", images[:1]),
        ("pixels", "pixels", pixels.astype("uint8")),
        ("pixels_float", "pixels", pixels.astype("float32")),
    ]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, key, values in requests:
            writer.write(_prediction_log(name, signature, key, tf.make_tensor_proto(values)))


def _prediction_log(name, signature, key, tensor):
    """Returns a PredictionLog of a PredictRequest; the numbers are those of its .proto files."""
    model = _field(1, name.encode()) + _field(3, signature.encode())  # ModelSpec
    entry = _field(1, key.encode()) + _field(2, tensor.SerializeToString())
    request = _field(1, model) + _field(2, entry)  # PredictRequest
    return _field(6, _field(1, request))  # PredictionLog of a PredictLog


def _field(number, content):
    """Returns a length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
