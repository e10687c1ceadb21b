"""Warm-up requests: a server runs them before it takes others, so the first client does not wait.

They are written in the protobuf wire format, so that an export does not need
tensorflow-serving-api.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vitkeras.serving.server_files import BATCH_SIZES

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def sample_images(image_size: tuple[int, int]) -> list[bytes]:
    """Returns a JPEG and a PNG file, one larger and one smaller than `image_size`.

    Args:
        image_size: `(height, width)` of the model's input.
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


def write_warmup(
    path: Path, model_name: str, image_size: tuple[int, int], images: Sequence[bytes]
) -> None:
    """Writes a TFRecord file of PredictionLogs: each allowed batch size and each signature.

    The signature `xla` is left out: a server that cannot compile it would not load the model after
    the failed request.

    Args:
        path: The file to write.
        model_name: Name of the model on the server.
        image_size: `(height, width)` of the model's input.
        images: Image files, used in turn.
    """
    pixels = np.zeros((1, *image_size, 3))
    requests: list[tuple[str, str, Any]] = [
        ("serving_default", "image_bytes", [images[i % len(images)] for i in range(size)])
        for size in BATCH_SIZES
    ]
    requests += [
        ("features", "image_bytes", images[:1]),
        ("pixels", "pixels", pixels.astype("uint8")),
        ("pixels_float", "pixels", pixels.astype("float32")),
    ]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, key, values in requests:
            tensor = tf.make_tensor_proto(values)
            writer.write(_prediction_log(model_name, signature, key, tensor))


def _prediction_log(model_name, signature, key, tensor):
    """Returns a serialized PredictionLog; field numbers are those of the .proto files."""
    model_spec = _field(1, model_name.encode()) + _field(3, signature.encode())
    entry = _field(1, key.encode()) + _field(2, tensor.SerializeToString())
    request = _field(1, model_spec) + _field(2, entry)  # PredictRequest
    return _field(6, _field(1, request))  # PredictionLog.predict_log.request


def _field(number, content):
    """Returns a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
