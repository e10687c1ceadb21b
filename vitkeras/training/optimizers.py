"""Learning-rate schedule and optimizers of the paper's recipes."""

import keras
from keras import ops

from vitkeras.errors import InputError, check_range

DECAYS = ("cosine", "linear")
OPTIMIZERS = ("adamw", "sgd")


@keras.saving.register_keras_serializable(package="vitkeras")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then a cosine or linear decay to 0.

    Args:
        learning_rate: The peak, reached after `warmup_steps`.
        total_steps: Steps of the whole run, warm-up included; the rate is 0 from there on.
        warmup_steps: Steps of the warm-up.
        decay: "cosine" or "linear".
    Raises:
        InputError: If `decay` is unknown, the rate is not positive, or the warm-up does not end
            before the run.
    Source: Dosovitskiy et al. 2021, tables 3 and 4.
    """

    def __init__(self, learning_rate, total_steps, warmup_steps=0, decay="cosine"):
        super().__init__()
        if decay not in DECAYS:
            raise InputError(f"`decay` must be one of {DECAYS}. Received: decay={decay!r}.")
        check_range("learning_rate", learning_rate, 0 < learning_rate, "positive")
        if not 0 <= warmup_steps < total_steps:
            raise InputError(
                "`warmup_steps` must be less than the steps of the whole run. "
                f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}."
            )
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay = decay

    def __call__(self, step):
        """Returns the rate of the update that follows `step` updates."""
        step = ops.cast(step, "float32")
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        progress = ops.clip(progress, 0.0, 1.0)
        falling = (
            1 - progress if self.decay == "linear" else (1 + ops.cos(progress * 3.1415927)) / 2
        )
        rising = (step + 1) / max(self.warmup_steps, 1)
        return self.learning_rate * ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self):
        """The constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
        }


def make_optimizer(
    name, learning_rate, weight_decay=0.0, clip_norm=None, ema_momentum=None, variables=()
):
    """Returns AdamW or SGD with momentum 0.9, as the paper sets them.

    Weight decay is decoupled, multiplied by the learning rate, and applied to kernels only: not to
    biases, LayerNorm, LayerScale, the class token or position embeddings.

    Args:
        name: "adamw" (0.9, 0.999) or "sgd".
        learning_rate: Number or schedule.
        weight_decay: 0 for none.
        clip_norm: Global norm to clip gradients to; None for none.
        ema_momentum: Keeps an exponential moving average of the weights; None for none.
        variables: The trainable variables, to tell kernels from the rest.
    Raises:
        InputError: If `name` is unknown or a number out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"`optimizer` must be one of {OPTIMIZERS}. Received: optimizer={name!r}.")
    check_range("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
    if clip_norm is not None:
        check_range("clip_norm", clip_norm, clip_norm > 0, "positive")
    if ema_momentum is not None:
        check_range("ema_momentum", ema_momentum, 0 < ema_momentum < 1, "between 0 and 1")
    common = {
        "name": name,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay or None,
        "global_clipnorm": clip_norm,
        "use_ema": ema_momentum is not None,
        "ema_momentum": 0.99 if ema_momentum is None else ema_momentum,
    }
    if name == "adamw":
        common["weight_decay"] = weight_decay
        optimizer = keras.optimizers.AdamW(beta_1=0.9, beta_2=0.999, epsilon=1e-8, **common)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, **common)
    optimizer.exclude_from_weight_decay([v for v in variables if not v.path.endswith("/kernel")])
    return optimizer
