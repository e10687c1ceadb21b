"""Exports a run's model: as a SavedModel for TF Serving, or as a weight file for others.

python -m experiments.export --workdir=runs/digits --output=saved_models/digits
python -m experiments.export --workdir=runs/photos --output=photos.npz
python -m experiments.export --workdir=runs/photos --output=photos_hf --format=hugging_face
"""

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
VERSION = flags.DEFINE_integer("version", None, "The version; the next free one by default.")
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")


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
    folder = serving.export(model, preprocessing, run.class_names, OUTPUT.value, VERSION.value)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"saved_model": str(folder), "version": int(folder.name), "bytes": size}


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
