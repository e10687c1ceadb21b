"""Exports a run's model: as a SavedModel for TF Serving, or as a weight file for others.

python -m experiments.export --workdir=runs/digits --output=saved_models/digits
python -m experiments.export --workdir=runs/photos --output=photos.npz
python -m experiments.export --workdir=runs/photos --output=photos_hf --format=hugging_face

With `ema_momentum` in the run's config, its kept models are moving averages of the weights: it is
them that are exported.
"""

import csv
import json
import shlex
import sys

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
from absl import flags

import vitkeras as vk
from vitkeras import data, serving
from vitkeras.errors import InputError
from vitkeras.runs import RunDirectory

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the versions, saved_models/NAME; or a folder or a .npz file."
)
FORMATS = ("saved_model", "google", "hugging_face")
FORMAT = flags.DEFINE_enum(
    "format", None, FORMATS, "What to write; google for a .npz, saved_model else."
)
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")
# Of a SavedModel
VERSION = flags.DEFINE_integer("version", None, "The version; the next free one by default.")
TOP = flags.DEFINE_integer("top", serving.TOP, "How many classes an answer names.")
COMPUTE_DTYPE = flags.DEFINE_string(
    "compute_dtype", None, "float32 or mixed_bfloat16; the run's by default."
)
XLA = flags.DEFINE_bool(
    "xla", False, "Adds a signature xla. Stock servers do not compile: see saved_models/README.md."
)
LICENCE = flags.DEFINE_string("licence", None, "Of the weights, for the model card.")


def tell(line):
    """Prints a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def about(run):
    """Returns what the model card says of the run, from title to text."""
    config = run.config
    dataset = json.loads((run.path / "dataset.json").read_text())
    start, average = config["init_from"], config["ema_momentum"]
    unknown = f"that of {start}, not stated here" if start else "not stated"
    return {
        "data": ", ".join([config["dataset"], *(f"{key} {v}" for key, v in dataset.items())]),
        "accuracy": accuracy(run, dataset["validation"]),
        "weights": f"{WEIGHTS.value}.keras of the run"
        + (f", a moving average (momentum {average})" if average else "")
        + (f"; training started from {start}" if start else "; trained from random weights"),
        "licence of the weights": LICENCE.value or f"{unknown} (--licence)",
        "command": f"`python -m experiments.export {shlex.join(sys.argv[1:])}`",
    }


def accuracy(run, examples):
    """Returns a text on the accuracy of the model, as the run's metrics.csv has it."""
    path = run.path / "metrics.csv"
    rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
    rows = [row for row in rows if row["val_accuracy"]]
    if not rows:
        return "not measured yet"
    if WEIGHTS.value == "best":  # as ModelKeeper chooses
        rows.sort(key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    row = rows[-1]
    return (
        f"{float(row['val_accuracy']):.1%} of {examples} validation images, epoch {row['epoch']}; "
        f"test images: `python -m experiments.evaluate --workdir={run.path}`"
    )


def main(_):
    """Exports."""
    run = RunDirectory(WORKDIR.value)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    model = run.load_model(WEIGHTS.value)
    is_npz = OUTPUT.value.endswith(".npz")
    kind = FORMAT.value or ("google" if is_npz else "saved_model")
    if is_npz != (kind == "google"):
        raise InputError(
            "`output` must end in .npz for a Google file, and name a folder otherwise. "
            f"Received: output={OUTPUT.value}, format={kind}."
        )
    if kind != "saved_model":
        vk.save_weights(model, OUTPUT.value, run.class_names)
        return {"weights": OUTPUT.value, "format": kind}
    folder = serving.export(
        model, preprocessing, run.class_names, OUTPUT.value, VERSION.value, TOP.value,
        COMPUTE_DTYPE.value, XLA.value, about(run), tell,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"saved_model": str(folder), "version": int(folder.name), "bytes": size}


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
