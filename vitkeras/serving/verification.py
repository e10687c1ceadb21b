"""Verifies in a fresh process that an export computes what the Keras model computes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vitkeras.data.preprocessing import Preprocessing
from vitkeras.errors import RunError
from vitkeras.models.features import features
from vitkeras.serving import replay
from vitkeras.serving.signatures import make_forward

#: Largest difference of probabilities, by compute dtype. That of features, relative to the largest
#: feature, is ten times as large.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}


def verify_export(
    folder: Path,
    model: keras.Model,
    preprocessing: Preprocessing,
    images: Sequence[bytes],
    compute_dtype: str,
    feature_layers: Sequence[int] = (),
    activation: str = "softmax",
) -> dict[str, float]:
    """Runs an export in a fresh process without Keras and compares its outputs with the model's.

    Both run on the CPU, where float32 is computed in full precision.

    Args:
        folder: The SavedModel.
        model: The model that was exported.
        preprocessing: Its preprocessing.
        images: Valid image files. An invalid one is sent with them.
        compute_dtype: Compute dtype of the export, a key of `TOLERANCE`.
        feature_layers: As for the export.
        activation: See `make_forward`.
    Returns:
        The largest difference of "probabilities" and of "features", feature maps included.
    Raises:
        RunError: If the export cannot be run, accepts the invalid image or differs from the model.
    """
    outputs = _replay(folder, [*images, b"not an image"])
    with tf.device("CPU:0"):
        pixels = tf.stack([preprocessing.evaluation_image(content) for content in images])
        outputs_of_model = make_forward(model, activation)(pixels)
        if feature_layers:
            outputs_of_model |= features(model, feature_layers)(pixels, training=False)
        expected = {key: value.numpy() for key, value in outputs_of_model.items()}
    differences = {"probabilities": 0.0, "features": 0.0}
    for name, values in outputs.items():
        signature, key = name.split("/")
        takes_bytes = not signature.startswith("pixels")
        good = values[: len(images)] if takes_bytes else values
        if key in expected:
            difference = np.abs(good - expected[key][: len(good)]).max()
            kind = "probabilities" if key == "probabilities" else "features"
            scale = np.abs(expected[key]).max() if kind == "features" else 1.0
            differences[kind] = float(np.maximum(differences[kind], difference / scale))
        good_is_valid = np.all(good) if key == "valid" else np.all(np.isfinite(good))
        bad_is_blank = not takes_bytes or key == "label_ids" or not values[-1].any()
        if not good_is_valid or not bad_is_blank:
            raise RunError(
                f"The output {name} of the export must be finite for valid images and zero for "
                f"invalid ones. Received: {values.tolist()}."
            )
    tolerance = TOLERANCE[compute_dtype]
    # "not <=" is true for NaN too.
    if not (
        differences["probabilities"] <= tolerance and differences["features"] <= 10 * tolerance
    ):
        raise RunError(
            f"The export must match the model: probabilities to {tolerance}, features to "
            f"{10 * tolerance} of the largest. Received differences: {differences}."
        )
    return differences


def _replay(folder, contents):
    """Returns the outputs of all signatures, "SIGNATURE/OUTPUT" to array."""
    with tempfile.TemporaryDirectory() as temporary:
        samples, outputs = Path(temporary, "samples.tfrecord"), Path(temporary, "outputs.npz")
        with tf.io.TFRecordWriter(str(samples)) as writer:
            for content in contents:
                writer.write(content)
        process = subprocess.run(
            [sys.executable, "-P", replay.__file__, folder, samples, outputs],
            capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no error message"])[-1]
            raise RunError(f"The export could not be loaded and run: {last}")
        with np.load(outputs) as file:
            return dict(file)
