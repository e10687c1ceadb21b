"""Evaluates the model of a run on a split of its data.

vitkeras evaluate --workdir=runs/digits
vitkeras evaluate --workdir=runs/photos --dataset=folder:MOVED
"""

from absl import flags as absl_flags

REQUIRED = ("workdir",)
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    splits, models = ["train", "validation", "test"], ["best", "last"]
    absl_flags.DEFINE_string("workdir", None, "The run directory.", flag_values=flags)
    absl_flags.DEFINE_string(
        "dataset", None, "Where the data of the run are now, if they were moved.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_enum("split", "test", splits, "The split.", flag_values=flags)
    absl_flags.DEFINE_enum("weights", "best", models, "Which model.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "batch_size", 64, "Images per batch.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns accuracy and loss."""
    from vitkeras import data
    from vitkeras.evaluation.metrics import make_evaluator
    from vitkeras.io.run_directory import RunDirectory

    run = RunDirectory(flags.workdir)
    config = run.config
    model = run.load_model(flags.weights)
    source = data.open_source(
        flags.dataset or config["dataset"], config["data_dir"], config["seed"],
        config["validation_percent"], config["shots"],
    )  # fmt: skip
    run.check_data(source.class_names, source.fingerprint())
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    batches = data.evaluation_batches(source, flags.split, preprocessing, flags.batch_size)
    result = make_evaluator(model, run.loss)(batches)
    return {"workdir": str(run.path), "weights": flags.weights, "split": flags.split, **result}
