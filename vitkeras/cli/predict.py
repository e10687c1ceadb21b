"""Classifies images: with a run directory, an exported SavedModel, or a TF Serving server.

A PATH is a file, a folder, or a glob pattern. Each file gives a row: path, the best classes and
their probabilities, whether it is a valid image, and the reason if not.

vitkeras predict --workdir=runs/digits PATH...
vitkeras predict --workdir=runs/photos --output=predictions.csv photos/ "more/**/*.jpg"
vitkeras predict --saved_model=saved_models/digits PATH...
vitkeras predict --server=HOST:8500 --model_name=digits PATH...
vitkeras predict --server=http://HOST:8501 --model_name=digits PATH...
"""

import contextlib
import itertools
import sys
import time
from pathlib import Path

from absl import flags as absl_flags

from vitkeras.errors import InputError

REQUIRED = ()
ARGUMENTS = "PATH..."
#: Images per batch of a model in this process, and per request to a server.
BATCH_SIZE, REQUEST_SIZE = 64, 8


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
        "batch_size", None, f"Images per batch; {BATCH_SIZE} if not given, {REQUEST_SIZE} with "
        "--server.", lower_bound=1, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "top", 5, "Maximum number of classes per image. An export has a maximum of its own.",
        lower_bound=1, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "output", None, "A new file for the rows, .csv or .jsonl, written as they come: for many "
        "images.", flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes rows to --output, or prints them to standard error and returns them."""
    origins = [flags[name].value for name in ("workdir", "saved_model", "server")]
    if sum(origin is not None for origin in origins) != 1:
        raise InputError(
            "One of --workdir=DIR, --saved_model=DIR and --server=HOST:PORT must be given. "
            f"Received: {sum(origin is not None for origin in origins)} of them."
        )
    if not arguments:
        raise InputError("At least one image or folder must follow the flags. Received: none.")
    from vitkeras.data.image_files import ImageFiles
    from vitkeras.evaluation.prediction import predict_files
    from vitkeras.io import rows

    if flags.output is not None:
        rows.check_path(flags.output)
    files = ImageFiles(arguments)
    predictor, num_classes = _make_predictor(flags)
    batch_size = flags.batch_size or (REQUEST_SIZE if flags.server else BATCH_SIZE)
    batches = predict_files(files, predictor, batch_size)
    if flags.output is None:
        return {"predictions": [record for batch in batches for record in _print(batch)]}
    return _write(flags.output, batches, files.count(), min(flags.top, num_classes))


def _write(output, batches, num_files, top):
    """Writes the rows to a file and returns a summary."""
    from vitkeras.io.progress import Progress
    from vitkeras.io.rows import RowFile

    columns = [f"{name}_{i}" for i in range(1, top + 1) for name in ("class", "probability")]
    columns = ["path", "valid", "reason", *columns]
    start, num_images, num_invalid = time.monotonic(), 0, 0
    with (
        contextlib.closing(Progress(num_files, "predict")) as bar,
        RowFile(output, columns) as file,
    ):
        for batch in batches:
            file.write(map(_csv_record if output.endswith(".csv") else _json_record, batch))
            num_images += len(batch)
            num_invalid += sum(each.reason is not None for each in batch)
            bar.update(len(batch))
    rate = num_images / (time.monotonic() - start)
    return {
        "output": output, "images": num_images, "invalid": num_invalid,
        "images_per_second": round(rate, 1),
    }  # fmt: skip


def _json_record(prediction):
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return {
        "path": prediction.path,
        "valid": prediction.reason is None,
        "reason": prediction.reason,
        "top": [{"class": name, "probability": float(f"{p:.6g}")} for name, p in pairs],
    }


def _csv_record(prediction):
    record = _json_record(prediction)
    for i, entry in enumerate(record.pop("top"), 1):
        record |= {f"class_{i}": entry["class"], f"probability_{i}": entry["probability"]}
    return record | {"valid": str(record["valid"]).lower()}


def _print(batch):
    """Prints the rows of a batch as a table and returns them."""
    from vitkeras.data.folder_listing import printable

    records = [_json_record(prediction) for prediction in batch]
    cells = [
        [printable(record["path"])]
        + [printable(f"{each['probability']:6.1%} {each['class']}") for each in record["top"]]
        for record in records
    ]
    columns = itertools.zip_longest(*cells, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    for record, row in zip(records, cells, strict=True):
        if record["reason"]:
            row.append(f"invalid: {printable(record['reason'])}")
        padded = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
        print("  ".join([*padded, *row[len(widths) :]]).rstrip(), file=sys.stderr)
    return records


def _make_predictor(flags):
    """Returns the predictor, and the number of classes that it gives at most."""
    if flags.workdir is not None:
        return _from_run(flags.workdir, flags.weights, flags.top)
    from vitkeras.evaluation.prediction import client_predictor

    if flags.saved_model is not None:
        return _from_saved_model(flags.saved_model, flags.top)
    from vitkeras.serving.client import make_client

    client = make_client(
        flags.server, flags.model_name, flags.timeout, flags.retries,
        flags.batch_size or REQUEST_SIZE,
    )  # fmt: skip
    return client_predictor(client, flags.top), flags.top


def _from_run(path, weights, top):
    from vitkeras import data
    from vitkeras.evaluation.prediction import model_predictor
    from vitkeras.io.run_directory import RunDirectory

    run = RunDirectory(path)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    model, names = run.load_model(weights), run.class_names
    return model_predictor(model, names, preprocessing, top, run.loss), len(names)


def _from_saved_model(path, top):
    """Loads an export without importing Keras."""
    import tensorflow as tf

    from vitkeras.evaluation.prediction import saved_model_predictor

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
    scores = loaded.signatures["serving_default"].structured_outputs["scores"]
    return saved_model_predictor(loaded, top), scores.shape[1]
