"""Exports the model of a run: as a SavedModel for TF Serving, or as a weight file.

  vitkeras export --workdir=runs/digits --output=saved_models/digits
  vitkeras export --workdir=runs/photos --output=photos.npz
  vitkeras export --workdir=runs/photos --output=photos_hf --format=hugging_face

If the run has `ema_momentum`, its models, and so the export, are moving averages of the weights.
"""

import csv
import os
import shlex

from absl import flags as absl_flags

from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote

REQUIRED = ("workdir", "output")
ARGUMENTS = None
#: Flags that have a meaning for SavedModels only.
OF_SAVED_MODELS = ("version", "top", "compute_dtype", "xla", "features", "license")
FORMATS = ["saved_model", "google", "hugging_face"]


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string("workdir", None, "The run directory.", flag_values=flags)
    absl_flags.DEFINE_string(
        "output", None, "Folder of the versions, such as saved_models/NAME; or a folder or .npz "
        "file for weights.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum(
        "format", None, FORMATS, "The format: google for a .npz file, otherwise saved_model by "
        "default.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum("weights", "best", ["best", "last"], "Which model.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "version", None, "Version of the SavedModel; the next free one by default.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer("top", 5, "Number of classes in an answer.", flag_values=flags)
    absl_flags.DEFINE_string(
        "compute_dtype", None, "float32 or mixed_bfloat16; that of the run by default.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_bool(
        "xla", False, "Add a signature that XLA compiles. Stock servers do not run it.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_list(
        "features", [], "Blocks whose feature maps a signature feature_maps returns, such as "
        "2,5,8,11; the last one is -1.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "license", None, "License of the weights, for the model card.", flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the export."""
    import vitkeras as vk
    from vitkeras import data, serving
    from vitkeras.io.run_directory import RunDirectory

    is_npz = flags.output.endswith(".npz")
    kind = flags.format or ("google" if is_npz else "saved_model")
    if is_npz != (kind == "google"):
        raise InputError(
            "`output` must end in .npz for the format google, and be a folder otherwise. "
            f"Received: output={flags.output}, format={kind}."
        )
    given = [flags[name].serialize() for name in OF_SAVED_MODELS if flags[name].present]
    if given and kind != "saved_model":
        raise InputError(
            f"{given[0].partition('=')[0]} must not be given for weights, only for a SavedModel. "
            f"Received: {given[0]}, format={kind}."
        )
    feature_layers = _feature_layers(flags.features)
    run = RunDirectory(flags.workdir)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    model = run.load_model(flags.weights)
    if kind != "saved_model":
        vk.save_weights(model, flags.output, run.class_names)
        return {"weights": flags.output, "format": kind}
    folder = serving.export_saved_model(
        model, preprocessing, run.class_names, flags.output, flags.version, flags.top,
        flags.compute_dtype, flags.xla, feature_layers, _model_card_rows(run, flags), run.loss,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"saved_model": str(folder), "version": int(folder.name), "bytes": size}


def _feature_layers(texts):
    """Returns the blocks of --features."""
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise InputError(
            "`features` must be integers with commas between them. "
            f"Received: features={','.join(texts)}."
        ) from error


def _model_card_rows(run, flags):
    """Returns the rows of the model card that describe the run, from title to text."""
    config, dataset = run.config, run.dataset
    source, momentum = _shared_name(config["init_from"] or ""), config["ema_momentum"]
    prefix, colon, path = config["dataset"].partition(":")
    data = prefix + colon + _shared_name(path)
    average = f", a moving average (momentum {momentum})" if momentum else ""
    origin = f"initialized from {source}" if source else "trained from random initialization"
    unknown = f"that of {source}, not stated here" if source else "not stated"
    command = [flags[name].serialize() for name in flags if flags[name].present]
    return {
        "data": ", ".join([data, *(f"{key} {v}" for key, v in dataset.items())]),
        "accuracy": _accuracy(run, flags.weights, dataset["validation"]),
        "weights": f"{flags.weights}.keras of the run{average}; {origin}",
        "license of the weights": flags.license or f"{unknown} (--license)",
        "command": f"`vitkeras export {shlex.join(command)}`",
    }


def _shared_name(path):
    """Returns the name of a local path, without the folders of this machine; others as they are."""
    return path if is_remote(path) else os.path.basename(path)


def _accuracy(run, which, num_examples):
    """Returns the validation accuracy of a model in probe.json or metrics.csv, as text."""
    probe = run.probe_results
    if probe is not None:
        accuracy, origin = probe["validation_accuracy"], f"{probe['head']} of frozen features"
    else:
        path = run.path / "metrics.csv"
        rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
        rows = [row for row in rows if row["val_accuracy"]]
        if not rows:
            return "not measured yet"
        if which == "best":  # the criterion of ModelSaver
            rows.sort(key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
        accuracy, origin = float(rows[-1]["val_accuracy"]), f"epoch {rows[-1]['epoch']}"
    return (
        f"{accuracy:.1%} of {num_examples} validation images, {origin}; on test images: "
        f"`vitkeras evaluate --workdir={run.path}`"
    )
