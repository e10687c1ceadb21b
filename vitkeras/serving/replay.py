"""Runs samples through an export in a process without Keras and vitkeras.

python replay.py EXPORT SAMPLES.tfrecord OUTPUTS.npz
"""

import sys

import numpy as np


def main(export: str, samples: str, outputs: str) -> None:
    """Sends all image files to each signature; signatures of pixels get those of the first file.

    Args:
        export: Folder of the SavedModel.
        samples: TFRecord file of image files.
        outputs: The .npz file to write: "SIGNATURE/OUTPUT" to array, except for strings.
    """
    # Importing them now raises an ImportError.
    sys.modules.update(dict.fromkeys(("keras", "vitkeras")))  # type: ignore[arg-type]
    import tensorflow as tf

    loaded = tf.saved_model.load(export)
    images = list(tf.data.TFRecordDataset(samples).as_numpy_iterator())
    pixels = tf.io.decode_image(images[0], channels=3)[None]  # (1, h, w, 3)
    arrays = {}
    for name, signature in loaded.signatures.items():
        ((argument, spec),) = signature.structured_input_signature[1].items()
        values = tf.constant(images) if argument == "image_bytes" else tf.cast(pixels, spec.dtype)
        for key, value in signature(**{argument: values}).items():
            if value.dtype != tf.string:
                arrays[f"{name}/{key}"] = value.numpy()
    np.savez(outputs, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
