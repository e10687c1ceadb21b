"""Predicts the classes of images: from a run directory, an exported SavedModel, or a server.

python -m experiments.predict --workdir=runs/digits IMAGE...
python -m experiments.predict --saved_model=saved_models/digits IMAGE...
python -m experiments.predict --server=HOST:8500 --model_name=digits IMAGE...
python -m experiments.predict --server=http://HOST:8501 --model_name=digits IMAGE...
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
SERVER = flags.DEFINE_string(
    "server", None, "HOST:PORT of a TF Serving server for gRPC, http://HOST:PORT for REST."
)
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")
# Of a server
MODEL_NAME = flags.DEFINE_string("model_name", "default", "The name that the server has it by.")
TIMEOUT = flags.DEFINE_float("timeout", 30.0, "Seconds that a request may take.", lower_bound=0.01)
RETRIES = flags.DEFINE_integer("retries", 3, "How often a request is sent again.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images of a request.", lower_bound=1)
TOP = 5


def from_run(path, weights):
    """Returns a function from image files, as bytes, to names and scores of each, best first."""
    from vitkeras import data
    from vitkeras.runs import RunDirectory

    run = RunDirectory(path)
    model, names = run.load_model(weights), run.class_names
    preprocessing = data.Preprocessing.from_json(run.preprocessing)

    def answer(image_bytes):
        images = preprocessing.evaluation_image(image_bytes)[None]  # (1, h, w, 3)
        values = tf.nn.softmax(model(images, training=False))[0].numpy()
        best = np.argsort(-values, kind="stable")[:TOP]
        return [names[i] for i in best], values[best]

    return lambda contents: [answer(content) for content in contents]


def from_saved_model(path):
    """As `from_run`, with None for a file that the signature calls no image. Loads no Keras."""
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
        if not found["valid"][0]:
            return None
        return [name.decode() for name in found["classes"][0].numpy()], found["scores"][0].numpy()

    return lambda contents: [answer(content) for content in contents]


def from_server(server):
    """As `from_saved_model`, by a server that has the export."""
    from experiments.client import make_client

    return make_client(server, MODEL_NAME.value, TIMEOUT.value, RETRIES.value, BATCH_SIZE.value)


def read_image(path, decoded):
    """Returns the bytes of a file.

    Args:
        path: The file.
        decoded: Whether it has to be an image that TensorFlow decodes.
    Raises:
        InputError: If it is missing, or no such image.
    """
    from vitkeras.data import decode_image

    try:
        content = Path(path).read_bytes()
        if decoded:
            decode_image(content)
    except OSError as error:
        raise InputError(
            f"An image must be a readable file. Received: {path} ({error.strerror})."
        ) from error
    except tf.errors.InvalidArgumentError as error:
        raise InputError(
            "An image must be a whole JPEG, PNG, BMP or GIF file of at most 100 million pixels. "
            f"Received: {path}, {len(content)} bytes."
        ) from error
    return content


def main(paths):
    """Predicts; prints a short table to standard error."""
    if sum(flag.value is not None for flag in (WORKDIR, SAVED_MODEL, SERVER)) != 1:
        raise InputError("Give one of --workdir=DIR, --saved_model=DIR and --server=HOST:PORT.")
    if not paths:
        raise InputError("Give at least one image file after the flags.")
    contents = [read_image(path, decoded=WORKDIR.value is not None) for path in paths]
    if WORKDIR.value is not None:
        answers = from_run(WORKDIR.value, WEIGHTS.value)
    elif SAVED_MODEL.value is not None:
        answers = from_saved_model(SAVED_MODEL.value)
    else:
        answers = from_server(SERVER.value)

    predictions = []
    for path, answer in zip(paths, answers(contents), strict=True):
        pairs = zip(*answer, strict=True) if answer else ()
        top = [{"class": name, "probability": float(score)} for name, score in pairs]
        predictions.append({"image": path, "valid": answer is not None, "top": top})
        line = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top)
        print(f"{path}: {line or 'no whole JPEG or PNG file'}", file=sys.stderr)
    return {"predictions": predictions}


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
