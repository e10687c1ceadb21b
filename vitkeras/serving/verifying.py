"""Whether an export answers as the live model does, in a fresh process."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from vitkeras.errors import RunError
from vitkeras.serving import replaying
from vitkeras.serving.signatures import make_forward

#: How far probabilities may be off; features, as a share of the largest of them, ten times as far.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}


def verify(folder, model, preprocessing, images, compute):
    """Has a fresh process without Keras answer from an export, and compares with the live model.

    Both compute on the CPU, where float32 is float32.

    Args:
        folder: The SavedModel.
        model: What it was made from.
        preprocessing: Its `Preprocessing`.
        images: Good image files, as bytes; a bad one is sent with them.
        compute: What it computes in, a key of `TOLERANCE`.
    Returns:
        Dict from "probabilities" and "features" to the largest difference.
    Raises:
        RunError: If it does not answer, or a difference is larger than `TOLERANCE`.
    """
    sent = [*images, b"no image"]
    with tempfile.TemporaryDirectory() as place:
        samples, answers = Path(place, "samples"), Path(place, "answers.npz")
        with tf.io.TFRecordWriter(str(samples)) as writer:
            for content in sent:
                writer.write(content)
        process = subprocess.run(
            [sys.executable, "-P", replaying.__file__, folder, samples, answers],
            capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise RunError(f"The export cannot be loaded or does not answer: {last}")
        with np.load(answers) as file:
            found = dict(file)
    with tf.device("CPU:0"):
        pixels = tf.stack([preprocessing.evaluation_image(content) for content in images])
        live = {key: value.numpy() for key, value in make_forward(model)(pixels).items()}
    differences = {"probabilities": 0.0, "features": 0.0}
    for name, values in found.items():
        signature, key = name.split("/")
        takes_bytes = not signature.startswith("pixels")
        good = values[: len(images)] if takes_bytes else values
        if key in live:
            difference = np.abs(good - live[key][: len(good)]).max()
            largest = np.abs(live[key]).max() if key == "features" else 1.0
            differences[key] = float(np.maximum(differences[key], difference / largest))
        right = np.all(good) if key == "valid" else np.all(np.isfinite(good))
        bad_is_blank = not takes_bytes or key == "label_ids" or not values[-1].any()
        if not right or not bad_is_blank:
            raise RunError(f"The export's {name} does not tell good images from bad ones.")
    most = TOLERANCE[compute]
    if not (differences["probabilities"] <= most and differences["features"] <= 10 * most):
        raise RunError(
            f"An export must answer as the live model does, to {most}, with features to "
            f"{10 * most}. It is off by {differences}."
        )
    return differences
