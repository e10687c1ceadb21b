"""Training: where it runs, how it steps, what it keeps and what it prints."""

from vitkeras.training.callbacks import MetricsFile, ModelKeeper, ProgressLine, StateKeeper
from vitkeras.training.checkpoints import latest_state, save_state
from vitkeras.training.optimizers import WarmupDecay, make_optimizer
from vitkeras.training.strategy import STRATEGIES, check_global_batch, make_strategy

__all__ = [
    "STRATEGIES",
    "MetricsFile",
    "ModelKeeper",
    "ProgressLine",
    "StateKeeper",
    "WarmupDecay",
    "check_global_batch",
    "latest_state",
    "make_optimizer",
    "make_strategy",
    "save_state",
]
