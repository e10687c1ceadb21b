"""Answers samples from an export in a process that has neither Keras nor vitkeras.

python replaying.py EXPORT SAMPLES.tfrecord ANSWERS.npz
"""

import sys

import numpy as np


def main(export, samples, answers):
    """Sends all samples to each signature; of pixels it sends those of the first sample."""
    sys.modules["keras"] = sys.modules["vitkeras"] = None  # an import of them would fail
    import tensorflow as tf

    loaded = tf.saved_model.load(export)
    images = list(tf.data.TFRecordDataset(samples).as_numpy_iterator())
    pixels = tf.io.decode_image(images[0], channels=3)[None]  # (1, h, w, 3)
    found = {}
    for name, signature in loaded.signatures.items():
        ((field, spec),) = signature.structured_input_signature[1].items()
        values = tf.constant(images) if field == "image_bytes" else tf.cast(pixels, spec.dtype)
        for key, value in signature(**{field: values}).items():
            if value.dtype != tf.string:
                found[f"{name}/{key}"] = value.numpy()
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
