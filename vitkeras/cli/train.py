"""Trains a model from a config into a run directory, or resumes a run.

  vitkeras train --config=digits --workdir=runs/digits
  vitkeras train --config=folder --config.dataset=folder:photos --workdir=runs/photos
  vitkeras train --workdir=runs/photos
  vitkeras train --workdir=runs/photos --extend_epochs=20

SIGTERM and Ctrl-C finish the step, save the state and exit with code 75.
"""

import collections
import math
import os
import shlex
import shutil
import sys

from absl import flags as absl_flags

from vitkeras.errors import InputError

REQUIRED = ("config", "workdir")
ARGUMENTS = None
#: Without --config, the config is that of the run in --workdir.
RESUMES = True


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string(
        "workdir", None, "The run directory: new, or to resume.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "smoke", False, "Train a tiny model for two epochs of two steps, as a test of the config.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "extend_epochs", None, "Continue a finished run for this number of epochs, with the "
        "learning-rate schedule of the new length.", lower_bound=1, flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Trains, then evaluates the best model on the test split."""
    from vitkeras.cli import from_config
    from vitkeras.cli.config_validation import check_finished, validate
    from vitkeras.io.run_directory import RunDirectory
    from vitkeras.training.loop import host_errors
    from vitkeras.training.strategy import check_same_versions, make_strategy

    config, run = flags.config, RunDirectory(flags.workdir)
    if flags.smoke:
        from_config.shrink(config)
    from_config.make_paths_absolute(config)
    if run.probe_results is not None:
        raise InputError(
            "`workdir` must be a new directory, or a run of `vitkeras train`. Received: "
            f"workdir={flags.workdir}, a run of `vitkeras probe`. To start from its weights: "
            f"--config.init_from={flags.workdir} and another directory."
        )
    if flags.extend_epochs:
        check_finished(config, run)
        config.epochs += flags.extend_epochs
    validate(config, run)
    strategy = make_strategy(config.strategy)
    with host_errors(strategy):
        check_same_versions(strategy)
        return _train(config, run, strategy, flags.smoke, flags.extend_epochs or 0)


def _train(config, run, strategy, smoke, new_epochs):
    import keras
    from absl import logging

    from vitkeras import configs, data
    from vitkeras.cli import from_config
    from vitkeras.evaluation.metrics import make_evaluator
    from vitkeras.interpret import tensorboard
    from vitkeras.io.atomic import write_file
    from vitkeras.io.figures import to_png
    from vitkeras.training import curves
    from vitkeras.training.checkpoints import has_state
    from vitkeras.training.freezing import freeze
    from vitkeras.training.loop import exclusive_run, train
    from vitkeras.training.strategy import (
        check_global_batch,
        check_same_on_hosts,
        distribute,
        is_chief,
    )

    replicas, chief = strategy.num_replicas_in_sync, is_chief(strategy)
    if not chief:
        logging.set_verbosity(logging.ERROR)
    per_replica = check_global_batch(config.batch_size, replicas, config.accumulation_steps)

    source = from_config.open_source(config)
    if not smoke:  # an upper bound: images are decoded later
        from_config.check_warmup(config, max(source.num_listed("train") // config.batch_size, 1))
    augmentation, preprocessing = (
        from_config.augmentation(config),
        from_config.preprocessing(config),
    )
    steps = 2 if smoke else data.steps_per_epoch(source, config.batch_size)
    total_steps, epochs = from_config.run_length(config, steps)
    sizes = {split: source.num_examples(split) for split in data.SPLITS}
    from_config.check_bad_images(source.bad_images, sum(sizes.values()), config.max_bad_percent)
    class_weights = from_config.class_weights(config, source)
    # Not earlier: preparing a data set draws from the same generators.
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = from_config.build_model(config, len(source.class_names), run)
        if config.keep_head and not has_state(run.path / "state"):
            from_config.keep_head(model, config, source.class_names)
        freeze(model, config.freeze)
        from_config.compile_model(model, config, total_steps, class_weights)
        # Not compiled: the saved model needs only `import vitkeras` to load.
        kept_model = model.from_config(model.get_config())
        evaluator = make_evaluator(kept_model, config.loss)
    record = (config.to_dict(), source.class_names, preprocessing.to_json(), source.fingerprint())
    names = ("config", "class names", "preprocessing", "data")
    check_same_on_hosts(
        strategy, dict(zip(names, record, strict=True)), "the same config and the same data"
    )
    if chief and not (smoke or run.exists()):
        for sentence in from_config.advice(config, source, model.count_params()):
            logging.warning("%s", sentence)
    if chief:
        run.create(
            record[0] | {"epochs": config.epochs - new_epochs}, *record[1:],
            defaults=configs.base_config().to_dict(),
        )  # fmt: skip
        if new_epochs:
            run.extend(config.epochs)
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    logging.info(
        "%s, %d replica%s, %d images per replica and step; %s parameters%s; %d classes; %s",
        type(strategy).__name__, replicas, "s" * (replicas > 1), per_replica,
        f"{model.count_params():,}", f", {trainable:,} trainable" if config.freeze else "",
        len(source.class_names),
        ", ".join(f"{count:,} {split}" for split, count in sizes.items()) + " images",
    )  # fmt: skip

    def training_batches(first_epoch, first_step):
        def batches_of_host(host, num_hosts):
            return data.training_batches(
                source, preprocessing, config.batch_size, epochs, config.seed,
                augmentation, first_epoch, first_step, host, num_hosts,
            )  # fmt: skip

        return distribute(strategy, batches_of_host, config.batch_size)

    def evaluate(split):
        def batches_of_host(host, num_hosts):
            return data.evaluation_batches(
                source, split, preprocessing, config.batch_size, host, num_hosts
            )

        return evaluator(distribute(strategy, batches_of_host, config.batch_size))

    with exclusive_run(run, strategy):
        callbacks = []
        if chief:
            write_bad_images(source, run)
            if config.pictures_every:
                images = tensorboard.first_images(source, preprocessing)
                folder = run.path / "tensorboard" / "pictures"
                callbacks.append(
                    tensorboard.AttentionPictures(images, config.pictures_every, folder)
                )
        rows = train(
            run, model, kept_model, training_batches, lambda: evaluate("validation"),
            epochs=epochs, steps_per_epoch=steps, batch_size=config.batch_size,
            evaluate_every=config.evaluate_every, save_steps=config.save_steps,
            save_minutes=config.save_minutes, callbacks=callbacks,
            early_stopping=from_config.early_stopping(config),
        )  # fmt: skip
        if chief:
            write_file(run.path / "curves.png", to_png(curves.draw(rows)))
        kept_model.set_weights(run.load_model("best").get_weights())
        result = evaluate("test")
    if chief:
        print_next_commands(run, source)
    return {"workdir": str(run.path), "split": "test", "epochs": rows[-1]["epoch"], **result}


def write_bad_images(source, run):
    """Lists the files that are left out in the run directory, and logs them by kind."""
    from absl import logging

    from vitkeras.io.atomic import write_file

    lines = [f"{path}\t{reason}" for path, reason in source.bad_images]
    lines += [f"{path}\tnot an image" for path in source.other_files]
    if lines:
        write_file(run.path / "bad_images.txt", "".join(f"{line}\n" for line in lines).encode())
    for what, paths in (
        ("images cannot be read", [path for path, _ in source.bad_images]),
        ("files are not images", source.other_files),
    ):
        if paths:
            kinds = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
            logging.warning(
                "%d %s and are left out, see bad_images.txt (%s), such as %s.",
                len(paths), what,
                ", ".join(f"{count} {kind or 'no suffix'}" for kind, count in kinds.most_common(9)),
                ", ".join(paths[:3]),
            )  # fmt: skip


def print_next_commands(run, source):
    """Prints commands that use the run, as they work from the current directory."""
    program = "vitkeras"
    found = shutil.which(program)
    if not found or os.path.dirname(found) != os.path.dirname(sys.executable):
        program = f"{shlex.quote(sys.executable)} -m vitkeras"
    workdir = shlex.quote(str(run.path))
    image = shlex.quote(_example_image(run, source))
    output = shlex.quote(f"saved_models/{run.path.name}")
    print("Next:")
    print(f"  {program} evaluate --workdir={workdir}")
    print(f"  {program} predict --workdir={workdir} {image}")
    print(f"  {program} export --workdir={workdir} --output={output}")


def _example_image(run, source):
    """Returns the path of a test image; writes it to the run directory if it is not a file yet."""
    from vitkeras.io.atomic import is_remote, write_file

    paths = source.example_paths("test")
    if paths or is_remote(run.path):
        return paths[0] if paths else "IMAGE"
    (example,) = source.examples("test").in_order().take(1).as_numpy_iterator()
    content = example["image_bytes"]
    path = run.path / ("example.jpg" if content.startswith(b"\xff\xd8") else "example.png")
    write_file(path, content)
    return str(path)
