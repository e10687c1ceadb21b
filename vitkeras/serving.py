"""A run's model as a SavedModel that TF Serving takes: image bytes in, class names out.

    BASE/<version>/     saved_model.pb, variables/, fingerprint.pb

Built aside and renamed, so that no half-written version can appear where a server polls.
"""

import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from vitkeras.errors import InputError

TOP = 5


def next_version(base):
    """Returns the next free integer version under `base`."""
    return max((int(p.name) for p in Path(base).glob("*") if p.name.isdecimal()), default=0) + 1


def export(model, preprocessing, class_names, base, version=None):
    """Writes a SavedModel with two signatures.

    `serving_default`: `image_bytes`, strings `(b,)`, each a JPEG or PNG of any size.
    `pixels`: `pixels`, float32 `(b, h, w, 3)` of any size, values 0 to 255.
    Both answer with `classes` (strings) and `scores` `(b, 5)`, best first, `probabilities` and
    `logits` `(b, classes)`.

    Args:
        model: Gives logits; made without a strategy.
        preprocessing: The run's `Preprocessing`; it becomes part of the graph.
        class_names: Names in the order of the logits.
        base: Folder of the versions.
        version: A positive integer; None for the next free one.
    Returns:
        The folder that was written.
    Raises:
        InputError: If the version exists or is not positive, or `base` cannot be a folder.
    """
    base = Path(base)
    version = next_version(base) if version is None else version
    final = base / str(version)
    if version < 1 or final.exists():
        raise InputError(
            "`version` must be a positive integer that does not exist yet. "
            f"Received: version={version}, {final}. Next free: {next_version(base)}."
        )
    names = tf.constant(class_names)

    def answer(images):
        logits = tf.cast(model(images, training=False), tf.float32)
        probabilities = tf.nn.softmax(logits)
        scores, best = tf.math.top_k(probabilities, min(TOP, len(class_names)))
        return {
            "classes": tf.gather(names, best),
            "scores": scores,
            "probabilities": probabilities,
            "logits": logits,
        }

    def from_bytes(image_bytes):
        size = tf.TensorSpec((*preprocessing.image_size, 3), tf.uint8)
        return answer(
            tf.map_fn(preprocessing.evaluation_image, image_bytes, fn_output_signature=size)
        )

    def from_pixels(pixels):
        return answer(preprocessing.pixels(pixels))

    archive = keras.export.ExportArchive()
    archive.track(model)
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    images = tf.TensorSpec((None, None, None, 3), tf.float32, name="pixels")
    archive.add_endpoint("serving_default", from_bytes, input_signature=[strings])
    archive.add_endpoint("pixels", from_pixels, input_signature=[images])
    aside = base / f".version-{version}.{os.getpid()}"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "An export needs a place where a folder of versions can be made. "
            f"Received: {base} ({error.strerror})."
        ) from error
    try:
        archive.write_out(aside, verbose=False)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final
