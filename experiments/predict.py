"""Predicts the classes of images, from a run directory or from an exported SavedModel.

python -m experiments.predict --workdir=runs/digits IMAGE...
python -m experiments.predict --saved_model=saved_models/digits IMAGE...
"""

import sys
from pathlib import Path

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import numpy as np
import tensorflow as tf
from absl import flags

from vitkeras.errors import InputError

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "An exported folder, or one of its versions."
)
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")
TOP = 5


def from_run(path, weights):
    """Returns a function from image bytes to probabilities, and the class names."""
    from vitkeras import data
    from vitkeras.runs import RunDirectory

    run = RunDirectory(path)
    model = run.load_model(weights)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)

    def probabilities(image_bytes):
        images = preprocessing.evaluation_image(image_bytes)[None]  # (1, h, w, 3)
        return tf.nn.softmax(model(images, training=False))[0].numpy()

    return probabilities, run.class_names


def from_saved_model(path):
    """Returns a function from image bytes to the signature's answer. Loads no Keras."""
    folder = Path(path)
    if not (folder / "saved_model.pb").exists():
        versions = [p for p in folder.glob("*") if p.name.isdecimal()]
        if not versions:
            raise InputError(
                "`saved_model` must be a SavedModel or a folder of its versions. "
                f"Received: saved_model={path}."
            )
        folder = max(versions, key=lambda p: int(p.name))
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]

    def answer(image_bytes):
        found = signature(image_bytes=tf.constant([image_bytes]))
        return [name.decode() for name in found["classes"][0].numpy()], found["scores"][0].numpy()

    return answer


def read_image(path):
    """Returns the bytes of a file.

    Raises:
        InputError: If it is missing or no image that TensorFlow decodes.
    """
    try:
        content = Path(path).read_bytes()
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except OSError as error:
        raise InputError(
            f"An image must be a readable file. Received: {path} ({error.strerror})."
        ) from error
    except tf.errors.InvalidArgumentError as error:
        raise InputError(
            "An image must be a whole JPEG, PNG, BMP or GIF file. "
            f"Received: {path}, {len(content)} bytes."
        ) from error
    return content


def main(paths):
    """Predicts; prints a short table to standard error."""
    if (WORKDIR.value is None) == (SAVED_MODEL.value is None):
        raise InputError("Give either --workdir=DIR or --saved_model=DIR.")
    if not paths:
        raise InputError("Give at least one image file after the flags.")
    contents = [read_image(path) for path in paths]
    if WORKDIR.value:
        probabilities, names = from_run(WORKDIR.value, WEIGHTS.value)

        def answer(image_bytes):
            values = probabilities(image_bytes)
            best = np.argsort(-values, kind="stable")[:TOP]
            return [names[i] for i in best], values[best]
    else:
        answer = from_saved_model(SAVED_MODEL.value)

    predictions = []
    for path, content in zip(paths, contents, strict=True):
        classes, scores = answer(content)
        top = [{"class": c, "probability": float(s)} for c, s in zip(classes, scores, strict=True)]
        predictions.append({"image": path, "top": top})
        line = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top)
        print(f"{path}: {line}", file=sys.stderr)
    return {"predictions": predictions}


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
