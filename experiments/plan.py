"""What a config says: its data, its model, and how that is compiled; the scripts share it."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

import vitkeras as vk
from experiments.configs import common
from vitkeras import data, training
from vitkeras.errors import InputError, check_range
from vitkeras.training.checkpoints import has_state

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of experiments/configs.")

EXAMPLE = "experiments/configs/digits.py"
#: Fields that a model of any origin can have another value of, and those that make a ViT.
RUN_FIELDS = ("image_size", "dropout_rate", "stochastic_depth_rate", "remat", "dtype")
MODEL_FIELDS = (
    "variant", "classifier", "positions", "positions_at", "num_registers", "pre_logits",
    "layer_scale", "gelu", "epsilon", "hidden_dim", "mlp_dim", "num_heads", "num_layers",
)  # fmt: skip

AUGMENTATION_FIELDS = (
    "color_jitter", "randaug_layers", "randaug_magnitude", "erasing_rate", "mixup_alpha",
    "mixup_per_example", "cutmix_alpha",
)  # fmt: skip


def say(text):
    """Prints to standard error, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def read_config():
    """Returns the config that the flags give."""
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not Path(path).is_file():
        raise InputError(f"`config` must be a file, such as {EXAMPLE}. Received: config={path}.")
    config = CONFIG.value
    for name in ("epochs", "evaluate_every", "accumulation_steps", "steps_per_execution"):
        check_range(name, config[name], config[name] >= 1, "at least 1")
    for name in ("total_steps", "pictures_every", "save_steps", "save_minutes"):
        if config[name] is not None:
            check_range(name, config[name], config[name] > 0, "positive")
    return config


def shrink(config):
    """Turns any config into one that runs in seconds, on the digits unless it names a folder."""
    config.init_from = None  # of another size
    if config.variant == "auto":
        config.variant = "Ti/16"
    patch = config.variant.partition("/")[2]
    side = 4 * int(patch) if patch.isdecimal() else 32
    if config.variant in vk.RESNETS:
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


def run_length(config, steps_per_epoch):
    """Returns the steps that the schedule spans, and the epochs of the run, which may be longer."""
    if not config.total_steps:
        return config.epochs * steps_per_epoch, config.epochs
    epochs = -(-config.total_steps // steps_per_epoch)
    return config.total_steps, epochs


def open_data(config, tell, sample=None):
    """Returns the source, the augmentation and the preprocessing of a config.

    With `sample`, no more files of each split of a folder are looked at than that.
    """
    source = data.open_source(
        config.dataset, config.data_dir, config.seed, config.validation_percent, config.shots,
        config.cache, tell, sample,
    )  # fmt: skip
    augmentation = data.Augmentation(
        config.augmentation, **{field: config[field] for field in AUGMENTATION_FIELDS}
    )
    preprocessing = data.Preprocessing(vk.models.image_shape(config.image_size), config.antialias)
    return source, augmentation, preprocessing


def check_bad_images(bad, num_good, max_percent):
    """Stops before hours are wasted on a data set that is largely broken; ten files never matter.

    Raises:
        InputError: If more than `max_percent` of the images cannot be decoded.
    """
    percent = 100 * len(bad) / (len(bad) + num_good)
    if len(bad) > 10 and percent > max_percent:
        some = "; ".join(f"{path}: {reason}" for path, reason in bad[:3])
        raise InputError(
            "At most `max_bad_percent` of the images may be broken. "
            f"Received: {len(bad)} of {len(bad) + num_good} ({percent:.1f} %, "
            f"max_bad_percent={max_percent}), such as {some}."
        )


def build_model(config, num_classes, tell, run=None):
    """Returns the model of a config, with the weights of `init_from` where that is given.

    A run that has a saved state takes all weights from there, and needs `init_from` no more.
    """
    resumes = run is not None and has_state(run.path / "state")
    own = {field: config[field] for field in RUN_FIELDS}
    if config.variant == "auto":
        if not config.init_from:
            raise InputError(
                "`variant=auto` is that of `init_from`, which must be given. "
                f"Received: init_from={config.init_from!r}."
            )
        base = common.get_config()
        own_fields = [f for f in MODEL_FIELDS if f != "variant" and config[f] != base[f]]
        if own_fields:
            raise InputError(
                "With `variant=auto` the model is that of `init_from`. Received, and not to be had "
                f"there: {', '.join(f'{f}={config[f]!r}' for f in own_fields)}."
            )
        if resumes and (run.path / "best.keras").exists():
            model = run.load_model("best")
            return model.from_config(model.get_config())
        model = vk.from_pretrained(config.init_from, num_classes, **own)
        tell(f"the model of {config.init_from}, with a fresh head")
        return model
    if config.variant in vk.RESNETS:
        own = {field: own[field] for field in ("image_size", "dtype")}
        model = vk.resnet(config.variant, num_classes=num_classes, **own)
    else:
        own |= {field: config[field] for field in MODEL_FIELDS}
        model = vk.vit(**own, num_classes=num_classes)
    if config.init_from and not resumes:
        report = vk.load_weights(model, config.init_from, head=False)
        tell(f"started from {config.init_from}: {report}")
    return model


def compile_model(model, config, total_steps):
    """Gives the model its loss and the optimizer of the config, with all variables made."""
    rate = training.WarmupDecay(
        config.learning_rate, total_steps, config.warmup_steps, config.decay
    )
    optimizer = training.make_optimizer(
        config.optimizer, rate, config.weight_decay, config.clip_norm, config.ema_momentum,
        model.trainable_variables, config.layer_decay,
    )  # fmt: skip
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer,
        training.SmoothedCrossEntropy(config.label_smoothing),
        metrics=["accuracy"],
        accumulation_steps=config.accumulation_steps,
        steps_per_execution=config.steps_per_execution,
    )
