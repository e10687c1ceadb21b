"""Checks data, input pipeline, memory and TPU compilation of a config before training.

  vitkeras preflight --config=folder --config.dataset=folder:photos --images_per_second=900
  vitkeras preflight --config=digits --tpu=v5e:2x4 --largest_batch

Writes an HTML page with statistics and figures of the data, and prints all results as JSON. The
exit code is 0 if the run can start, and 2 if there are problems.

With --tpu, the training and evaluation steps are compiled for that slice, which needs no TPU but
the extra `aot`, and takes minutes: whether they compile, how much memory they need, and what bounds
their speed. --largest_batch compiles until the largest batch that fits is found, to an eighth.
"""

import functools
import json
from pathlib import Path

from absl import flags as absl_flags

from vitkeras.errors import InputError
from vitkeras.preflight.tpu_slices import parse_slice

REQUIRED = ("config",)
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string("output", "preflight.html", "The page to write.", flag_values=flags)
    absl_flags.DEFINE_bool("full", False, "Decode every image, not a sample.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "sample", 1000, "Images of each split to decode.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_float(
        "seconds", 12.0, "Duration of the pipeline measurement.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer("replicas", 1, "Number of devices.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_float(
        "memory_gib", 16.0, "Memory of each device in GiB.", lower_bound=1e-3, flag_values=flags
    )
    absl_flags.DEFINE_float(
        "images_per_second", None, "Training speed of all devices together, for the duration of "
        "the run.", lower_bound=1e-3, flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "tpu", None, "TPU slice to compile for, such as v5e:2x4, instead of --replicas and "
        "--memory_gib.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_bool(
        "largest_batch", False, "Find the largest batch that fits on --tpu.", flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Runs all checks, writes the page, and returns the results."""
    tpu_slice = None if flags.tpu is None else parse_slice(flags.tpu)
    if tpu_slice and (flags["replicas"].present or flags["memory_gib"].present):
        raise InputError(
            "`tpu` determines the number of replicas and the memory; leave out `replicas` and "
            f"`memory_gib`. Received: tpu={flags.tpu} and at least one of them."
        )
    import keras
    from absl import logging

    from vitkeras import data
    from vitkeras.cli import from_config
    from vitkeras.cli.config_validation import validate
    from vitkeras.io.atomic import write_file
    from vitkeras.preflight import data_checks, memory, pipeline_checks, report
    from vitkeras.preflight.advice import advise_on_run
    from vitkeras.training.strategy import check_global_batch

    config = flags.config
    validate(config)
    sample_size = None if flags.full else flags.sample
    source = from_config.open_source(config, sample_size)
    steps = data.steps_per_epoch(source, config.batch_size)
    from_config.check_warmup(config, steps)
    augmentation, preprocessing = (
        from_config.augmentation(config),
        from_config.preprocessing(config),
    )
    keras.utils.set_random_seed(config.seed)

    logging.info("building the model ...")
    replicas = tpu_slice.replicas if tpu_slice else flags.replicas
    microbatches, device_rate = config.accumulation_steps, flags.images_per_second
    per_replica = check_global_batch(config.batch_size, replicas, microbatches)
    if tpu_slice:
        built = _build_model(config, source, steps)
        device = _check_tpu(config, built, source, steps, tpu_slice, flags.largest_batch)
        device_rate = device_rate or device.values.get("train", {}).get("images_per_second")
    else:  # the estimate is that of one microbatch
        built = _build_model(config, source, steps, accumulation_steps=1)
        device = memory.check_memory(
            built, per_replica // microbatches, replicas, microbatches, flags.memory_gib
        )
    run = _check_run(config, steps, flags.images_per_second)
    run.values |= {
        "parameters": built.count_params(), "images_per_microbatch": per_replica // microbatches
    }  # fmt: skip
    run.warnings += advise_on_run(
        source.num_examples("train"), config.batch_size, built.count_params(),
        config.init_from is not None,
    )  # fmt: skip
    logging.info("decoding images ...")
    sample = data_checks.decode_sample(source, sample_size)
    num_examples = {split: source.num_examples(split) for split in data.SPLITS}
    images = data_checks.check_images(sample, num_examples, preprocessing)
    try:
        from_config.check_bad_images(sample.bad, len(sample.sizes), config.max_bad_percent)
    except InputError as error:
        images.problems.append(str(error))
    labels = data_checks.check_labels(
        data_checks.read_labels(source, sample_size), source.class_names, num_examples["train"],
        config.class_weights is not None,
    )  # fmt: skip
    logging.info("measuring the input pipeline ...")
    pipeline = pipeline_checks.check_pipeline(
        source, preprocessing, augmentation, config.batch_size, config.seed, flags.seconds,
        device_rate,
    )  # fmt: skip

    checks = [images, labels, pipeline, run, device]
    page = report.render(f"Preflight: {config.variant} on {config.dataset}", checks)
    write_file(Path(flags.output).absolute(), page.encode())
    problems = [problem for check in checks for problem in check.problems]
    warnings = [warning for check in checks for warning in check.warnings]
    result = {
        "ready": not problems, "problems": problems, "warnings": warnings,
        "data": images.values | labels.values, "pipeline": pipeline.values, "run": run.values,
        "tpu" if tpu_slice else "memory": device.values, "page": flags.output,
    }  # fmt: skip
    for warning in warnings:
        logging.warning("%s", warning)
    if problems:
        print(json.dumps(result))
        raise InputError(f"The run cannot start. {' '.join(problems)} See {flags.output}.")
    return result


def _build_model(config, source, steps_per_epoch, **changes):
    """Returns the compiled model of a config with changed fields."""
    from vitkeras.cli import from_config
    from vitkeras.training.freezing import freeze

    config = config.copy_and_resolve_references()
    config.update(changes)
    model = from_config.build_model(config, len(source.class_names))
    freeze(model, config.freeze)
    from_config.compile_model(model, config, from_config.run_length(config, steps_per_epoch)[0])
    return model


def _check_run(config, steps_per_epoch, images_per_second):
    """Returns the length of the run."""
    from vitkeras.cli import from_config
    from vitkeras.preflight.report import CheckResult

    total_steps, epochs = from_config.run_length(config, steps_per_epoch)
    steps = epochs * steps_per_epoch
    result = CheckResult("Model and run")
    result.values |= {"steps_per_epoch": steps_per_epoch, "steps": steps, "epochs": epochs}
    if images_per_second:
        result.values["hours"] = round(steps * config.batch_size / images_per_second / 3600, 2)
    if config.warmup_steps > total_steps / 2:
        result.warnings.append(
            f"warmup_steps={config.warmup_steps} is more than half of the {total_steps} steps."
        )
    return result


def _check_tpu(config, model, source, steps_per_epoch, tpu_slice, find_largest_batch):
    """Compiles the steps of a config; for a ViT without remat, also the training step with it."""
    from vitkeras.cli import from_config
    from vitkeras.models.config import ViTConfig
    from vitkeras.preflight import lowering
    from vitkeras.preflight.tpu_compilation import Step, check_steps

    soft_labels, microbatches = from_config.augmentation(config).mixes, config.accumulation_steps

    def train_step(model, required=True):
        lower = functools.partial(lowering.train_module, model, soft_labels=soft_labels)
        return Step(lower, microbatches, required)

    steps = {
        "train": train_step(model),
        "evaluate": Step(functools.partial(lowering.evaluation_module, model)),
    }
    if isinstance(model.config, ViTConfig) and not config.remat:
        with_remat = _build_model(config, source, steps_per_epoch, remat=True)
        steps["train_remat"] = train_step(with_remat, required=False)
    images = config.batch_size // tpu_slice.replicas
    return check_steps(steps, tpu_slice, images, find_largest_batch)
