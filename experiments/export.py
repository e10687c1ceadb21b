"""Exports a run's model as a SavedModel for TF Serving.

python -m experiments.export --workdir=runs/digits --output=saved_models/digits
"""

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
from absl import flags

from vitkeras import data, serving
from vitkeras.runs import RunDirectory

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the versions: saved_models/NAME.")
VERSION = flags.DEFINE_integer("version", None, "The version; the next free one by default.")
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")


def main(_):
    """Exports."""
    run = RunDirectory(WORKDIR.value)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    model = run.load_model(WEIGHTS.value)
    folder = serving.export(model, preprocessing, run.class_names, OUTPUT.value, VERSION.value)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"saved_model": str(folder), "version": int(folder.name), "bytes": size}


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
