"""Classifies image files: with a run directory, an exported SavedModel, or a TF Serving server.

vitkeras predict --workdir=runs/digits IMAGE...
vitkeras predict --saved_model=saved_models/digits IMAGE...
vitkeras predict --server=HOST:8500 --model_name=digits IMAGE...
vitkeras predict --server=http://HOST:8501 --model_name=digits IMAGE...
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from vitkeras.errors import InputError

REQUIRED = ()
ARGUMENTS = "IMAGE..."
TOP = 5


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string("workdir", None, "A run directory.", flag_values=flags)
    absl_flags.DEFINE_string(
        "saved_model", None, "An exported folder, or one of its versions.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "server", None, "A TF Serving server: HOST:PORT for gRPC, http://HOST:PORT for REST.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum(
        "weights", "best", ["best", "last"], "Which model of the run.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "model_name", "default", "Name of the model on the server.", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "timeout", 30.0, "Seconds until a request is given up.", lower_bound=0.01,
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "retries", 3, "How often a request is repeated.", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "batch_size", 8, "Images per request.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Prints a table to standard error and returns all predictions."""
    origins = [flags[name].value for name in ("workdir", "saved_model", "server")]
    if sum(origin is not None for origin in origins) != 1:
        raise InputError(
            "One of --workdir=DIR, --saved_model=DIR and --server=HOST:PORT must be given. "
            f"Received: {sum(origin is not None for origin in origins)} of them."
        )
    if not arguments:
        raise InputError("At least one image file must follow the flags. Received: none.")
    from vitkeras.data.folder_listing import printable
    from vitkeras.data.images import check_decodable, read_file

    contents = [read_file(path) for path in arguments]
    if flags.workdir is not None:
        for path, content in zip(arguments, contents, strict=True):
            check_decodable(path, content)
        predict = _from_run(flags.workdir, flags.weights)
    elif flags.saved_model is not None:
        predict = _from_saved_model(flags.saved_model)
    else:
        from vitkeras.serving.client import make_client

        predict = make_client(
            flags.server, flags.model_name, flags.timeout, flags.retries, flags.batch_size
        )
    predictions = []
    for path, answer in zip(arguments, predict(contents), strict=True):
        pairs = zip(*answer, strict=True) if answer else ()
        top = [{"class": name, "probability": float(score)} for name, score in pairs]
        predictions.append({"image": path, "valid": answer is not None, "top": top})
        line = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top)
        line = printable(f"{path}: {line or 'not a complete JPEG, PNG or WebP file'}")
        print(line, file=sys.stderr)
    return {"predictions": predictions}


def _from_run(path, weights):
    """Returns a function from image files, as bytes, to names and scores of each, best first."""
    import numpy as np
    import tensorflow as tf

    from vitkeras import data
    from vitkeras.io.run_directory import RunDirectory

    run = RunDirectory(path)
    model, names = run.load_model(weights), run.class_names
    preprocessing = data.Preprocessing.from_json(run.preprocessing)

    def predict_one(image_bytes):
        images = preprocessing.evaluation_image(image_bytes)[None]  # (1, h, w, 3)
        probabilities = tf.nn.softmax(model(images, training=False))[0].numpy()
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        return [names[i] for i in best], probabilities[best]

    return lambda contents: [predict_one(content) for content in contents]


def _from_saved_model(path):
    """As `_from_run`, with None for a file that is not an image. Does not import Keras."""
    import tensorflow as tf

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

    def predict_one(image_bytes):
        answer = signature(image_bytes=tf.constant([image_bytes]))
        if not answer["valid"][0]:
            return None
        names = [name.decode() for name in answer["classes"][0].numpy()]
        return names, answer["scores"][0].numpy()

    return lambda contents: [predict_one(content) for content in contents]
