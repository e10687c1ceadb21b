"""Trains a ViT from a config into a run directory; the same command again goes on.

python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits
"""

import math
import os
import shlex
import sys

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import keras
from absl import flags

from experiments import curves, pictures
from experiments.plan import (
    build_model,
    check_bad_images,
    compile_model,
    open_data,
    read_config,
    run_length,
    say,
    shrink,
)
from vitkeras import analysis, data, training
from vitkeras.evaluation import make_evaluator
from vitkeras.finetuning import freeze
from vitkeras.runs import RunDirectory
from vitkeras.storage import write_file

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory, new or to go on with.")
SMOKE = flags.DEFINE_bool("smoke", False, "A tiny fresh model for two steps: does it run?")


def main(_):
    """Trains, then evaluates the best model on the test split."""
    config, run = read_config(), RunDirectory(WORKDIR.value)
    if SMOKE.value:
        shrink(config)
    strategy = training.make_strategy(config.strategy)
    replicas, chief = strategy.num_replicas_in_sync, training.is_chief(strategy)
    tell = say if chief else (lambda text: None)
    per_replica = training.check_global_batch(
        config.batch_size, replicas, config.accumulation_steps
    )

    source, augmentation, preprocessing = open_data(config, tell)
    steps = 2 if SMOKE.value else data.steps_per_epoch(source, config.batch_size)
    total_steps, epochs = run_length(config, steps)
    sizes = {split: source.num_examples(split) for split in ("train", "validation", "test")}
    check_bad_images(source.bad_images, sum(sizes.values()), config.max_bad_percent)
    # Not earlier: writing a data set on first use draws from the same generators.
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = build_model(config, len(source.class_names), tell, run)
        freeze(model, config.freeze)
        compile_model(model, config, total_steps)
        # Not compiled: what is kept loads with nothing but vitkeras imported.
        kept_model = model.from_config(model.get_config())
        evaluator = make_evaluator(kept_model)
    if config.pictures_every:
        analysis.layout(model)  # refuses what has no attention before anything is written
    record = (config.to_dict(), source.class_names, preprocessing.to_json(), source.fingerprint())
    training.check_same_on_hosts(strategy, record)
    if chief:
        run.create(*record)
    count = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    trained = f", of which {count:,} train" if config.freeze else ""
    tell(
        f"{type(strategy).__name__}, {replicas} replica{'s' * (replicas > 1)} of {per_replica} "
        f"images; "
        f"{model.count_params():,} parameters{trained}; {len(source.class_names)} classes; "
        + ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    )

    def training_batches(first_epoch, first_step):
        def of_host(host, hosts):
            return data.training_batches(
                source, preprocessing, config.batch_size, epochs, config.seed,
                augmentation, first_epoch, first_step, host, hosts,
            )  # fmt: skip

        return training.distribute(strategy, of_host, config.batch_size)

    def evaluate(split):
        def of_host(host, hosts):
            return data.evaluation_batches(
                source, split, preprocessing, config.batch_size, host, hosts
            )

        return evaluator(training.distribute(strategy, of_host, config.batch_size))

    with training.hold(run, strategy):
        looks = []
        if chief:
            name_bad_images(source, run)
            if config.pictures_every:
                images = pictures.first_images(source, preprocessing)
                folder = run.path / "tensorboard" / "pictures"
                looks.append(pictures.AttentionPictures(images, config.pictures_every, folder))
        rows = training.train(
            run, model, kept_model, training_batches, lambda: evaluate("validation"),
            epochs=epochs, steps_per_epoch=steps, batch_size=config.batch_size,
            evaluate_every=config.evaluate_every, save_steps=config.save_steps,
            save_minutes=config.save_minutes, callbacks=looks, say=tell,
        )  # fmt: skip
        if chief:
            curves.draw(rows, run.path / "curves.png")
        kept_model.set_weights(run.load_model("best").get_weights())
        result = evaluate("test")
    if chief:
        say_next(run, config)
    return {"workdir": str(run.path), "split": "test", "epochs": epochs, **result}


def name_bad_images(source, run):
    """Lists the files that were left out, in the run directory and, the first of them, here."""
    if source.bad_images:
        lines = [f"{path}\t{reason}" for path, reason in source.bad_images]
        write_file(run.path / "bad_images.txt", "".join(f"{line}\n" for line in lines).encode())
        say(f"{len(lines)} images cannot be decoded and are left out, see bad_images.txt:")
        say("\n".join(lines[:5]))


def say_next(run, config):
    """Prints the commands that use the run."""
    image = "IMAGE..." if config.dataset != "digits" else "docs/digit.png"
    here = os.path.relpath(sys.executable)
    python = shlex.quote(sys.executable if here.startswith("..") else here)
    workdir, output = shlex.quote(str(run.path)), shlex.quote(f"saved_models/{run.path.name}")
    print("Next:")
    print(f"  {python} -m experiments.evaluate --workdir={workdir}")
    print(f"  {python} -m experiments.predict --workdir={workdir} {image}")
    print(f"  {python} -m experiments.export --workdir={workdir} --output={output}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
