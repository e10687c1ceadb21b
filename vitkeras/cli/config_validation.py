"""Validates a config before any data is read."""

import math

from vitkeras import training
from vitkeras.arguments import check_choice, check_float, check_int, check_range
from vitkeras.cli import from_config
from vitkeras.data.cache import parse_cache
from vitkeras.errors import InputError
from vitkeras.io.run_directory import RunDirectory
from vitkeras.models.config import ResNetConfig
from vitkeras.models.vit import dtype_policy
from vitkeras.pretrained.loading import read_config
from vitkeras.pretrained.transfer import check_architecture
from vitkeras.training.checkpoints import has_state, latest_state
from vitkeras.training.freezing import check_freeze
from vitkeras.training.losses import LOSSES
from vitkeras.training.optimizers import check_optimizer
from vitkeras.training.strategy import check_strategy_name

POSITIVE = ("batch_size", "accumulation_steps", "steps_per_execution", "epochs", "evaluate_every")
OPTIONAL_POSITIVE = ("shots", "total_steps", "pictures_every", "save_steps")


def validate(config, run: RunDirectory | None = None) -> None:
    """Validates ranges, names, and what must fit together.

    Only what depends on the data is left: the number of classes, and the warm-up if the length of
    the run is given in epochs. Runs no TensorFlow op: strategies of several hosts must come first.

    Args:
        config: The config.
        run: The run directory; a run that is resumed needs `init_from` no more.
    Raises:
        InputError: If a field is invalid.
    """
    check_int("seed", config.seed, 0)
    for name in POSITIVE:
        check_int(name, config[name])
    for name in OPTIONAL_POSITIVE:
        if config[name] is not None:
            check_int(name, config[name])
    if config.save_minutes is not None:
        check_float("save_minutes", config.save_minutes, 1e-9, math.inf, "positive")
    percent = check_float("max_bad_percent", config.max_bad_percent, 0, math.inf, "0 to 100")
    check_range("max_bad_percent", config.max_bad_percent, percent <= 100, "0 to 100")
    if config.validation_percent is not None:
        valid = 0 < config.validation_percent < 90
        check_range("validation_percent", config.validation_percent, valid, "above 0 and below 90")
    check_range("dataset", config.dataset, bool(config.dataset), "a name or folder:PATH")
    check_strategy_name(config.strategy)
    parse_cache(config.cache)
    from_config.augmentation(config)
    from_config.preprocessing(config)
    dtype_policy(config.dtype)
    _validate_training(config)
    _validate_model(config, run)


def check_finished(config, run: RunDirectory) -> None:
    """Checks that a run can be extended: all its epochs are done, and their number decides.

    Args:
        config: The config of the run.
        run: The run directory.
    Raises:
        InputError: If it cannot.
    """
    for name in ("total_steps", "early_stopping"):
        if config[name] is not None:
            raise InputError(
                f"`extend_epochs` must not be given for a run with `{name}`, which decides when it "
                f"ends. Received: {name}={config[name]}."
            )
    state = latest_state(run.path / "state")
    done = state[1]["epoch"] if state else 0
    if done < config.epochs:
        raise InputError(
            "`extend_epochs` must be given for a finished run. "
            f"Received: {run.path}, where {done} of {config.epochs} epochs are done. Without "
            "--extend_epochs the run is resumed."
        )


def _validate_training(config):
    total_steps = config.total_steps or max(config.warmup_steps + 1, 1)
    training.WarmupDecay(config.learning_rate, total_steps, config.warmup_steps, config.lr_schedule)
    check_optimizer(
        config.optimizer, config.weight_decay, config.clip_norm, config.ema_momentum,
        config.layer_decay,
    )  # fmt: skip
    from_config.early_stopping(config)
    check_choice("loss", config.loss, LOSSES)
    if config.class_weights is not None:
        check_choice("class_weights", config.class_weights, ["balanced"])
    LOSSES[config.loss](config.label_smoothing)


def _validate_model(config, run):
    resumes = run is not None and has_state(run.path / "state")
    is_run = bool(config.init_from) and RunDirectory(config.init_from).exists()
    if config.keep_head and not (is_run or resumes):
        raise InputError(
            "`init_from` must be a run directory with `keep_head`: other weights have no class "
            f"names. Received: init_from={config.init_from}."
        )
    if config.variant == "auto":
        from_config.check_auto(config)
        if resumes:
            return
        described = from_config.resolve(read_config(config.init_from), config, num_classes=2)
    else:
        described = from_config.architecture(config, num_classes=2)
        if config.init_from and not resumes:
            check_architecture(read_config(config.init_from), described, config.init_from)
    is_resnet = isinstance(described, ResNetConfig)
    num_blocks = 0 if is_resnet else described.num_layers
    check_freeze(config.freeze, num_blocks)
    if config.layer_decay != 1 and (is_resnet or config.freeze == "backbone"):
        raise InputError(
            "`layer_decay` must be 1 unless blocks of a ViT are trained. Received: "
            f"layer_decay={config.layer_decay}, variant={config.variant}, freeze={config.freeze}."
        )
    if config.pictures_every and is_resnet:
        raise InputError(
            "`pictures_every` draws attention and needs a ViT. "
            f"Received: pictures_every={config.pictures_every}, variant={config.variant}."
        )
