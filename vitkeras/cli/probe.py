"""Evaluates the features of pretrained weights on a data set, and writes a run with a linear head.

  vitkeras probe --weights=FILE --config.dataset=folder:photos --workdir=runs/probe

The backbone is not trained: the features of every image are computed once, without augmentation,
and cached. Ridge regression (with 5 images per class, and with all), k nearest neighbors and a
linear probe are evaluated on them. The model of the run has the head with the best validation
accuracy, of the ridge regression with all images and the linear probe. Fields of the config that
describe training, such as epochs, are not used.
"""

import json
import statistics

from absl import flags as absl_flags

from vitkeras.errors import InputError

REQUIRED = ("workdir",)
ARGUMENTS = None
#: Without --config, the config is that of the run in --workdir, if there is one.
RESUMES = True
#: Else it is this recipe.
DEFAULT_CONFIG = "probe"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string(
        "workdir", None, "The run directory: new, or of the same command.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "weights", None, "The pretrained weights; the same as --config.init_from.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "features", None, "Folder of the cached features, which several runs may share; "
        "WORKDIR/features by default.", flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the run directory and returns the accuracy of its model."""
    from vitkeras.cli import from_config
    from vitkeras.cli.config_validation import validate
    from vitkeras.evaluation.probing import check_classes
    from vitkeras.io.run_directory import RunDirectory
    from vitkeras.training.checkpoints import has_state
    from vitkeras.training.strategy import check_global_batch, is_multi_worker, make_strategy

    config, run = flags.config, RunDirectory(flags.workdir)
    _set_config(config, flags.weights)
    from_config.make_paths_absolute(config)
    if has_state(run.path / "state"):
        raise InputError(
            "`workdir` must be a new directory, or a run of `vitkeras probe`. "
            f"Received: workdir={flags.workdir}, a run of `vitkeras train`."
        )
    validate(config, run)
    strategy = make_strategy(config.strategy)
    if is_multi_worker(strategy) or getattr(strategy.extended, "num_hosts", 1) > 1:
        raise InputError(
            "`strategy` of `vitkeras probe` must be one of a single host. "
            f"Received: strategy={config.strategy}, {type(strategy).__name__}."
        )
    check_global_batch(config.batch_size, strategy.num_replicas_in_sync)
    source = from_config.open_source(config)
    check_classes(source.class_names, list(source.labels("train")))
    return _probe(config, run, strategy, source, flags.features)


def _set_config(config, weights):
    """Sets what a probe determines: frozen weights, no augmentation, a new head with softmax."""
    if weights and config.init_from not in (None, weights):
        raise InputError(
            "`weights` and `init_from` are the same. "
            f"Received: weights={weights}, init_from={config.init_from}."
        )
    config.init_from = weights or config.init_from
    if not config.init_from:
        raise InputError("`--weights` must be given. Received: no pretrained weights.")
    config.update(
        freeze="backbone", crop="none", color_jitter=0.0, randaug_layers=0, erasing_rate=0.0,
        mixup_alpha=0.0, cutmix_alpha=0.0, loss="softmax", class_weights=None, keep_head=False,
    )  # fmt: skip


def _probe(config, run, strategy, source, folder):
    from absl import logging

    from vitkeras import data
    from vitkeras.cli import from_config
    from vitkeras.cli.train import print_next_commands, write_bad_images
    from vitkeras.evaluation.features import FeatureCache, backbone_key, extract_features
    from vitkeras.evaluation.probing import probe_features
    from vitkeras.io.atomic import write_file
    from vitkeras.io.run_directory import PROBE_RESULTS
    from vitkeras.models.builder import build_model
    from vitkeras.serving.signatures import make_forward
    from vitkeras.training.freezing import freeze
    from vitkeras.training.loop import exclusive_run

    class_names, preprocessing = source.class_names, from_config.preprocessing(config)
    sizes = {split: source.num_examples(split) for split in data.SPLITS}
    from_config.check_bad_images(source.bad_images, sum(sizes.values()), config.max_bad_percent)
    if not all(sizes.values()):
        raise InputError(f"Every split must have an image. Received: {sizes}.")
    with strategy.scope():
        model = from_config.build_model(_in_float32(config), len(class_names))
    run.create(config.to_dict(), class_names, preprocessing.to_json(), source.fingerprint())
    logging.info(
        "%s parameters, %d classes; %s", f"{model.count_params():,}", len(class_names),
        ", ".join(f"{count:,} {split}" for split, count in sizes.items()) + " images",
    )  # fmt: skip
    with exclusive_run(run, strategy):
        write_bad_images(source, run)
        cache = FeatureCache(folder or run.path / "features", backbone_key(model, preprocessing))
        with strategy.scope():
            forward = make_forward(model)
            features = extract_features(
                source, preprocessing, lambda images: forward(images)["features"],
                config.batch_size, cache,
            )  # fmt: skip
        results, best, head = probe_features(features, len(class_names))
        saved = build_model(model.config, config.dtype)
        saved.set_weights(model.get_weights())
        for variable, value in zip(saved.get_layer("head").weights, head, strict=True):
            variable.assign(value)
        freeze(saved, config.freeze)
        run.save_model(saved, "best")
        (validation_accuracy,), (accuracy,) = best.validation, best.test
        record = {
            "head": best.name, "validation_accuracy": validation_accuracy,
            "results": [each._asdict() for each in results],
        }  # fmt: skip
        write_file(run.path / PROBE_RESULTS, (json.dumps(record, indent=1) + "\n").encode())
    _print_table(results, best)
    print_next_commands(run, source)
    return {
        "workdir": str(run.path), "head": best.name, "validation_accuracy": validation_accuracy,
        "split": "test", "accuracy": accuracy, "examples": sizes["test"],
    }  # fmt: skip


def _in_float32(config):
    """Returns a copy of a config: features are float32, whatever the dtype of the run is."""
    copy = config.copy_and_resolve_references()
    copy.dtype = "float32"
    return copy


def _print_table(results, best):
    """Prints the accuracies; of several draws, mean and standard deviation."""
    width = max(len(result.name) for result in results)
    print(f"{'Accuracy':{width}}  {'validation':>14}  {'test':>14}")
    for result in results:
        cells = (f"{_format(each):>14}" for each in (result.validation, result.test))
        mark = "  (head of the model)" if result is best else ""
        print(f"{result.name:{width}}  {'  '.join(cells)}{mark}")


def _format(accuracies):
    deviation = f" +- {statistics.stdev(accuracies):.1%}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.1%}{deviation}"
