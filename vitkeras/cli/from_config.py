"""Builds what a config describes: data source, model, optimizer."""

import dataclasses
import math
import os
from typing import Any

import numpy as np
from absl import logging

from vitkeras import configs, data
from vitkeras.arguments import check_choice, check_range, parse_image_size
from vitkeras.data.examples import Source
from vitkeras.data.folder_listing import printable
from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote
from vitkeras.io.run_directory import RunDirectory
from vitkeras.models.builder import build_model as model_from_config
from vitkeras.models.config import RESNETS, ResNetConfig, ViTConfig
from vitkeras.models.vit import VisionModel
from vitkeras.preflight.advice import advise_on_classes, advise_on_run
from vitkeras.pretrained import load_weights
from vitkeras.pretrained.loading import read_config
from vitkeras.pretrained.transfer import copy_head
from vitkeras.training import WarmupDecay, make_optimizer
from vitkeras.training.checkpoints import has_state
from vitkeras.training.early_stopping import EarlyStopping
from vitkeras.training.losses import LOSSES, balanced_class_weights

#: Config fields that a model of any origin can override, and those that describe a ViT.
OVERRIDES = ("image_size", "dropout_rate", "stochastic_depth_rate", "remat")
ARCHITECTURE = (
    "classifier", "positions", "positions_at", "num_registers", "pre_logits", "layer_scale", "gelu",
    "epsilon", "hidden_dim", "mlp_dim", "num_heads", "num_layers",
)  # fmt: skip
RESIZES = ("squash", "crop")
#: The default of timm, and 224 of 256 pixels in big_vision.
CROP_FRACTION = 0.875
#: Labels of larger data sets are not read only for advice.
MAX_COUNTED_LABELS = 100_000
AUGMENTATION = (
    "crop", "color_jitter", "randaug_layers", "randaug_magnitude", "erasing_rate", "mixup_alpha",
    "mixup_per_example", "cutmix_alpha",
)  # fmt: skip


def shrink(config) -> None:
    """Changes any config to one that runs in seconds, on the digits unless it names a folder."""
    config.init_from, config.keep_head = None, False  # it has another size
    if config.variant == "auto":
        config.variant = "Ti/16"
    patch = config.variant.partition("/")[2]
    side = 4 * int(patch) if patch.isdecimal() else 32
    if config.variant in RESNETS:
        config.variant = "R50x1"
    elif "+" not in config.variant:
        config.variant = f"Ti/{patch}"
    config.update(
        hidden_dim=48, mlp_dim=96, num_heads=3, num_layers=2, batch_size=8,
        epochs=2, evaluate_every=1, warmup_steps=1, image_size=(side, side),
    )  # fmt: skip
    if config.total_steps:
        config.total_steps = 4
    if config.shots:
        config.shots = 8
    if config.freeze and config.freeze.startswith("blocks:"):
        config.freeze = "blocks:1"
    if not config.dataset.startswith("folder:"):
        config.dataset = "digits"


def make_paths_absolute(config) -> None:
    """Makes local paths absolute, so that the run can be used from any current directory."""

    def absolute(path):
        return path if not path or is_remote(path) else os.path.abspath(path)

    for name, prefix in (("dataset", "folder:"), ("cache", "disk:")):
        if config[name].startswith(prefix):
            config[name] = prefix + absolute(config[name].removeprefix(prefix))
    config.data_dir, config.init_from = absolute(config.data_dir), absolute(config.init_from)


def run_length(config, steps_per_epoch: int) -> tuple[int, int]:
    """Returns the steps of the schedule, and the epochs of the run, which may be longer."""
    if not config.total_steps:
        return config.epochs * steps_per_epoch, config.epochs
    epochs = -(-config.total_steps // steps_per_epoch)
    return config.total_steps, epochs


def check_warmup(config, steps_per_epoch: int) -> None:
    """Checks that the warm-up ends before the run.

    Raises:
        InputError: If it does not.
    """
    total_steps, _ = run_length(config, steps_per_epoch)
    if not 0 <= config.warmup_steps < total_steps:
        raise InputError(
            "`warmup_steps` must be less than the number of steps of the run. "
            f"Received: warmup_steps={config.warmup_steps}, {total_steps} steps."
        )


def augmentation(config) -> data.Augmentation:
    """Returns the augmentation of a config."""
    return data.Augmentation(**{field: config[field] for field in AUGMENTATION})


def preprocessing(config) -> data.Preprocessing:
    """Returns the preprocessing of a config."""
    background = tuple(config.background)
    valid = len(background) == 3 and all(isinstance(x, int) and 0 <= x <= 255 for x in background)
    check_range("background", background, valid, "three integers from 0 to 255")
    check_choice("resize", config.resize, RESIZES)
    crop_fraction = config.crop_fraction
    if config.resize == "crop":
        crop_fraction = CROP_FRACTION if crop_fraction is None else crop_fraction
    elif crop_fraction is not None:
        raise InputError(
            "`crop_fraction` must not be set unless `resize` is crop. "
            f"Received: crop_fraction={crop_fraction}, resize={config.resize}."
        )
    image_size = parse_image_size(config.image_size)
    return data.Preprocessing(
        image_size, config.antialias, background, config.exif_orientation, crop_fraction
    )


def open_source(config, sample: int | None = None):
    """Returns the data source of a config.

    Args:
        config: The config.
        sample: Number of files of each split that are validated; None for all.
    """
    return data.open_source(
        config.dataset, config.data_dir, config.seed, config.validation_percent, config.shots,
        config.cache, sample,
    )  # fmt: skip


def architecture(config, num_classes: int) -> ViTConfig | ResNetConfig:
    """Returns the architecture that the fields of a config describe; not for `variant=auto`."""
    if config.variant in RESNETS:
        return ResNetConfig.from_variant(
            config.variant, image_size=config.image_size, num_classes=num_classes
        )
    fields = {field: config[field] for field in (*OVERRIDES, *ARCHITECTURE)}
    return ViTConfig.from_variant(config.variant, num_classes=num_classes, **fields)


def check_auto(config) -> None:
    """Checks that a config with `variant=auto` names weights and does not describe a model too.

    Raises:
        InputError: If it does not.
    """
    if not config.init_from:
        raise InputError(
            "`init_from` must be given with `variant=auto`. "
            f"Received: init_from={config.init_from!r}."
        )
    base = configs.base_config()
    changed = [f"{f}={config[f]!r}" for f in ARCHITECTURE if config[f] != base[f]]
    if changed:
        raise InputError(
            "With `variant=auto` the architecture is that of `init_from` and cannot be changed. "
            f"Received: {', '.join(changed)}."
        )


def build_model(config, num_classes: int, run: RunDirectory | None = None) -> VisionModel:
    """Returns the model of a config, with the weights of `init_from` if given.

    A run with a saved state takes all weights from there and does not read `init_from`.
    """
    resumed = run if run is not None and has_state(run.path / "state") else None
    if config.variant == "auto":
        check_auto(config)
        if resumed and (resumed.path / "best.keras").exists():
            model = resumed.load_model("best")
            return model.from_config(model.get_config())
        described = resolve(read_config(config.init_from), config, num_classes)
        logging.info("The architecture is that of %s, with a new head", config.init_from)
    else:
        described = architecture(config, num_classes)
    model = model_from_config(described, config.dtype)
    if config.loss == "sigmoid" and num_classes > 1 and not resumed:
        # Each score starts as 1 / classes. -10 in big_vision, for 21,843 classes.
        model.get_layer("head").bias.assign([-math.log(num_classes - 1)] * num_classes)
    if config.init_from and not resumed:
        report = load_weights(model, config.init_from, head=False)
        logging.info("Initialized from %s: %s", config.init_from, report)
    return model


def keep_head(model: VisionModel, config, class_names: list[str]) -> None:
    """Copies the head of the run `init_from` for the classes that have a name of that run."""
    origin = RunDirectory(config.init_from)
    kept = copy_head(origin.load_model("best"), model, origin.class_names, class_names)
    kept = list(map(printable, kept))
    logging.info(
        "The head is kept for %d of %d classes: %s%s", len(kept), len(class_names),
        ", ".join(kept[:8]), ", ..." if len(kept) > 8 else "",
    )  # fmt: skip


def early_stopping(config) -> EarlyStopping | None:
    """Returns when a run ends before its last epoch; None for never."""
    patience = 1 if config.early_stopping is None else config.early_stopping
    criterion = EarlyStopping(patience, config.early_stopping_metric)
    return None if config.early_stopping is None else criterion


def class_weights(config, source: Source) -> list[float] | None:
    """Returns the weights of the classes in the loss, None for equal weights.

    Every host computes the same from the labels of the whole training split.
    """
    if config.class_weights is None or config.shots:  # every class has `shots` images
        return None
    weights = balanced_class_weights(_class_counts(source))
    order = np.argsort(weights)
    logging.info(
        "The weights of the classes in the loss are %.3g (%s) to %.3g (%s).",
        weights[order[0]], printable(source.class_names[order[0]]),
        weights[order[-1]], printable(source.class_names[order[-1]]),
    )  # fmt: skip
    return weights


def _class_counts(source):
    """Returns the number of training images of each class, without `shots`."""
    num_classes = len(source.class_names)
    labels = np.fromiter(source.labels("train"), np.int64)
    return np.bincount(labels, minlength=num_classes)[:num_classes]


def advice(config, source: Source, num_parameters: int) -> list[str]:
    """Returns sentences on small and skewed data."""
    num_examples, sentences = source.num_examples("train"), []
    if config.shots is None and num_examples <= MAX_COUNTED_LABELS:
        is_weighted = config.class_weights is not None
        sentences += advise_on_classes(_class_counts(source), source.class_names, is_weighted)
    return sentences + advise_on_run(
        num_examples, config.batch_size, num_parameters, config.init_from is not None
    )


def compile_model(
    model: VisionModel, config, total_steps: int, class_weights: list[float] | None = None
) -> None:
    """Compiles the model with loss and optimizer of a config, and creates all variables."""
    schedule = WarmupDecay(
        config.learning_rate, total_steps, config.warmup_steps, config.lr_schedule
    )
    optimizer = make_optimizer(
        config.optimizer, schedule, config.weight_decay, config.clip_norm, config.ema_momentum,
        model.trainable_variables, config.layer_decay,
    )  # fmt: skip
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer,
        LOSSES[config.loss](config.label_smoothing, class_weights),
        metrics=["accuracy"],
        accumulation_steps=config.accumulation_steps,
        steps_per_execution=config.steps_per_execution,
    )


def check_bad_images(bad: list, num_good: int, max_percent: float) -> None:
    """Checks that few of the images are bad, so that a broken data set stops a run at once.

    Raises:
        InputError: If more than ten images and more than `max_percent` cannot be decoded.
    """
    percent = 100 * len(bad) / (len(bad) + num_good)
    if len(bad) > 10 and percent > max_percent:
        examples = "; ".join(f"{path}: {reason}" for path, reason in bad[:3])
        raise InputError(
            "The percentage of images that cannot be decoded must be at most `max_bad_percent`. "
            f"Received: max_bad_percent={max_percent}, {len(bad)} of {len(bad) + num_good} images "
            f"({percent:.1f} %), such as {examples}."
        )


def resolve(
    described: ViTConfig | ResNetConfig, config, num_classes: int
) -> ViTConfig | ResNetConfig:
    """Returns the architecture of `init_from` with a new head and the overrides of a config."""
    fields: dict[str, Any] = {"num_classes": num_classes, "include_rescaling": True}
    if isinstance(described, ResNetConfig):
        return dataclasses.replace(described, image_size=config.image_size, **fields)
    overrides = {field: config[field] for field in OVERRIDES}
    # pre_logits belongs to the task of the file
    return dataclasses.replace(described, pre_logits=False, **overrides, **fields)
