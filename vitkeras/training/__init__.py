"""Training: where it runs, how it steps, what it keeps and what it prints."""

from vitkeras.training.callbacks import MetricsFile, ModelKeeper, ProgressLine, StateKeeper
from vitkeras.training.checkpoints import latest_state, restore, save_state
from vitkeras.training.losses import SmoothedCrossEntropy
from vitkeras.training.optimizers import WarmupDecay, make_optimizer
from vitkeras.training.strategy import STRATEGIES, check_global_batch, make_strategy

__all__ = [
    "STRATEGIES",
    "MetricsFile",
    "ModelKeeper",
    "ProgressLine",
    "SmoothedCrossEntropy",
    "StateKeeper",
    "WarmupDecay",
    "check_global_batch",
    "latest_state",
    "make_optimizer",
    "make_strategy",
    "restore",
    "save_state",
]
