"""Training: where it runs, how it steps, what it keeps and what it prints."""

from vitkeras.training.loop import hold, train
from vitkeras.training.losses import SmoothedCrossEntropy
from vitkeras.training.optimizers import WarmupDecay, make_optimizer
from vitkeras.training.strategy import (
    STRATEGIES,
    check_global_batch,
    check_same_on_hosts,
    distribute,
    is_chief,
    make_strategy,
)

__all__ = [
    "STRATEGIES",
    "SmoothedCrossEntropy",
    "WarmupDecay",
    "check_global_batch",
    "check_same_on_hosts",
    "distribute",
    "hold",
    "is_chief",
    "make_optimizer",
    "make_strategy",
    "train",
]
