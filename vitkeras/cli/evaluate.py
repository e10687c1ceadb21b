"""Evaluates the model of a run on a split of its data, or on another folder with its classes.

vitkeras evaluate --workdir=runs/digits
vitkeras evaluate --workdir=runs/photos --dataset=folder:MOVED
vitkeras evaluate --workdir=runs/photos --dataset=folder:OTHER

Writes a report: an HTML page, CSV files and metrics.json.
"""

import os
import sys

from absl import flags as absl_flags

from vitkeras.errors import InputError

REQUIRED = ("workdir",)
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    splits, models = ["train", "validation", "test", "all"], ["best", "last"]
    absl_flags.DEFINE_string("workdir", None, "The run directory.", flag_values=flags)
    absl_flags.DEFINE_string(
        "dataset", None, "The data of the run if they were moved, or folder:PATH with another "
        "folder, whose classes must be classes of the run.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum(
        "split", None, splits, "The split: test if not given, or all of another folder that has "
        "no splits.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum("weights", "best", models, "Which model.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "batch_size", 64, "Images per batch.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "output", None, "The folder to write: new, empty, or of an earlier evaluation. "
        "evaluation/SPLIT in the run directory if not given.", flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Prints a table to standard error, writes the report, and returns the metrics."""
    if flags.output is not None:
        _check_output(flags.output, must_write=True)
    from absl import logging
    from etils import epath

    from vitkeras import data
    from vitkeras.data.evaluation_folder import ALL
    from vitkeras.data.folder_listing import printable
    from vitkeras.evaluation import page, report
    from vitkeras.io.atomic import write_directory
    from vitkeras.io.run_directory import RunDirectory

    run = RunDirectory(flags.workdir)
    model = run.load_model(flags.weights)
    class_names = run.class_names
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    source, split = _open_data(run, flags.dataset, flags.split)
    is_other = isinstance(source, data.EvaluationFolder)
    dataset = flags.dataset or run.config["dataset"]
    folder = _folder(dataset)
    output = flags.output
    if output is None:
        names = [epath.Path(folder).name] if is_other else []
        names += [split, *([] if flags.weights == "best" else [flags.weights])]
        output = run.path / "evaluation" / "-".join(names)
        _check_output(output)

    batches = data.evaluation_batches(source, split, preprocessing, flags.batch_size)
    results = _evaluate(model, run.loss, batches, source.num_examples(split))
    paths = source.example_paths(split)
    evaluation = report.Evaluation(results, class_names, paths, run.loss)
    summary = evaluation.summary()
    notes = _notes(summary["missing_classes"], len(class_names), source if is_other else None)
    for note in notes:
        logging.warning("%s", printable(note))
    print(report.format_table(evaluation), file=sys.stderr)

    header = {
        "workdir": str(run.path), "weights": flags.weights, "split": split,
        "data": "other" if is_other else "run",
        "dataset": dataset if folder is None else f"folder:{folder}",
    }  # fmt: skip
    introduction = [
        f"Data: {header['dataset']}, {'another folder' if is_other else 'the data of the run'}.",
        f"Preprocessing: {preprocessing.describe()}.",
        *notes,
    ]
    part = "all images" if split == ALL else f"{split} split"
    title = f"Evaluation of {run.path.name} ({flags.weights} model), {part}"
    thumbnails = page.mistake_thumbnails(evaluation, source, split, preprocessing)
    text = page.render(title, introduction, evaluation, thumbnails)
    try:
        write_directory(output, report.make_files(evaluation, header, text), replace=True)
    except OSError as error:
        if flags.output is not None:
            raise InputError(_output_error(output, error.strerror)) from error
        logging.warning("The report was not written: %s", _output_error(output, error.strerror))
        output = None
    return {**header, **summary, "output": None if output is None else str(output)}


def _check_output(path, must_write=False):
    """Raises an `InputError` if a report would remove other files, or cannot be written."""
    from etils import epath

    from vitkeras.evaluation.report import FILES
    from vitkeras.io.atomic import is_remote

    path = epath.Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(_output_error(path, "a file"))
    others = sorted(each.name for each in path.iterdir()) if path.exists() else []
    others = [name for name in others if name not in FILES]
    if others:
        raise InputError(_output_error(path, f"which has other files, such as {others[0]}"))
    if must_write and not is_remote(path):
        parent = next(each for each in path.absolute().parents if each.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(_output_error(path, f"{parent} is no folder that can be written"))


def _output_error(path, reason):
    return (
        "`output` must be a new or empty folder, or one of an earlier evaluation. "
        f"Received: output={path} ({reason})."
    )


def _open_data(run, dataset, split):
    """Returns the data source and the split: of the data of the run, or of another folder.

    Data are those of the run if they have its classes and its fingerprint.

    Raises:
        InputError: If they have not and are no other folder, or do not have the split.
    """
    from vitkeras import data
    from vitkeras.data.evaluation_folder import ALL

    recorded, path = run.config["dataset"], _folder(dataset)
    try:
        source = _open_data_of_run(run, dataset or recorded)
    except InputError:
        if path is None or path == _folder(recorded):
            raise
    else:
        if split == ALL:
            raise InputError(
                "`split` must be train, validation or test: all of the data of the run has the "
                f"images that it was trained on. Received: split={split}."
            )
        return source, split or "test"
    other = data.EvaluationFolder(path, run.class_names)
    split = split or ("test" if "test" in other.files else ALL)
    if split not in other.files:
        raise InputError(
            f"`split` must be {' or '.join(other.files)}: {path} does not have the classes and "
            f"images of the run, and it has no other folders of splits. Received: split={split}."
        )
    return other, split


def _folder(dataset):
    """Returns the absolute path of folder:PATH, or None."""
    from vitkeras.io.atomic import is_remote

    kind, _, path = (dataset or "").partition(":")
    if kind != "folder" or not path:
        return None
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def _open_data_of_run(run, dataset):
    """Returns the data source of a run.

    Raises:
        InputError: If the data are others.
    """
    from vitkeras import data

    config = run.config
    source = data.open_source(
        dataset, config["data_dir"], config["seed"], config["validation_percent"], config["shots"]
    )
    # The fingerprint takes long, as it needs every image: fewer files are enough for a difference.
    fingerprint, listed = run.dataset, {}
    for split in data.SPLITS:
        count = fingerprint.get(split)
        if isinstance(count, int):
            listed[split] = min(count, source.num_listed(split))
    run.check_data(source.class_names, fingerprint | listed)
    run.check_data(source.class_names, source.fingerprint())
    return source


def _evaluate(model, loss, batches, num_examples):
    """Returns the results of all examples of a split."""
    from vitkeras.evaluation.metrics import ExampleResults, make_example_evaluator
    from vitkeras.io.progress import Progress
    from vitkeras.io.read_errors import read_errors

    results = []
    with read_errors(), Progress(num_examples, "evaluate") as progress:
        for each in make_example_evaluator(model, loss)(batches):
            results.append(each)
            progress.update(len(each.labels))
    return ExampleResults.concatenate(results)


def _notes(missing, num_classes, other):
    """Returns sentences on missing classes and, if it is given, on another folder."""
    notes = []
    if other is not None:
        notes.append(
            f"{other.path} does not have the classes and images of the run, so it is evaluated as "
            "another folder. Images that the run was trained on would make the result better than "
            "on new ones."
        )
        left_out = [*other.bad_images, *((path, "not an image") for path in other.other_files)]
        if left_out:
            path, reason = left_out[0]
            notes.append(f"Files that are left out: {len(left_out)}, such as {path} ({reason}).")
    if missing:
        names = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        notes.append(f"{len(missing)} of the {num_classes} classes have no image: {names}.")
    return notes
