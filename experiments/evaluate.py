"""Evaluates a run's model on a whole split of its data.

python -m experiments.evaluate --workdir=runs/digits
"""

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
from absl import flags

from vitkeras import data
from vitkeras.evaluation import make_evaluator
from vitkeras.runs import RunDirectory

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to evaluate on.")
WEIGHTS = flags.DEFINE_enum("weights", "best", ["best", "last"], "Which of the run's models.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at once.", lower_bound=1)


def main(_):
    """Evaluates."""
    run = RunDirectory(WORKDIR.value)
    config = run.config
    model = run.load_model(WEIGHTS.value)
    source = data.open_source(
        config["dataset"], config["data_dir"], config["seed"], config["validation_percent"],
        config["shots"],
    )  # fmt: skip
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    batches = data.evaluation_batches(source, SPLIT.value, preprocessing, BATCH_SIZE.value)
    result = make_evaluator(model)(batches)
    return {"workdir": str(run.path), "weights": WEIGHTS.value, "split": SPLIT.value, **result}


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main)
