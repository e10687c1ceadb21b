"""Learning-rate schedule and optimizers of the paper's recipes."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from vitkeras.arguments import check_choice, check_range
from vitkeras.errors import InputError
from vitkeras.keras_internals import DecayInUpdateStep, uses_weight_decay, variable_index
from vitkeras.training.freezing import layer_factors

LR_SCHEDULES = ("cosine", "linear")

register = keras.saving.register_keras_serializable(package="vitkeras")


@register
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then cosine or linear decay to 0.

    Args:
        learning_rate: Peak learning rate, reached after `warmup_steps`.
        total_steps: Number of steps of the whole run, with the warm-up; the rate is 0 afterwards.
        warmup_steps: Number of steps of the warm-up.
        lr_schedule: "cosine" or "linear".
    Raises:
        InputError: If `lr_schedule` is unknown, the rate is not positive, or the warm-up does not
            end before the run.
    Source: Dosovitskiy et al. 2021, tables 3 and 4.
    """

    def __init__(
        self,
        learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        lr_schedule: str = "cosine",
    ):
        super().__init__()
        check_choice("lr_schedule", lr_schedule, LR_SCHEDULES)
        check_range("learning_rate", learning_rate, 0 < learning_rate, "positive")
        if not 0 <= warmup_steps < total_steps:
            raise InputError(
                "`warmup_steps` must be less than the number of steps of the run. "
                f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}."
            )
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule

    def __call__(self, step):
        step = ops.cast(step, "float32")  # updates done so far
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        progress = ops.clip(progress, 0.0, 1.0)
        if self.lr_schedule == "linear":
            decay = 1 - progress
        else:
            decay = (1 + ops.cos(progress * 3.1415927)) / 2
        warmup = (step + 1) / max(self.warmup_steps, 1)
        return self.learning_rate * ops.where(step < self.warmup_steps, warmup, decay)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "lr_schedule": self.lr_schedule,
        }


@register
class Momentum(keras.optimizers.Optimizer):
    """SGD with momentum as in optax: v = momentum * v + g, w = w - learning_rate * v.

    Keras's SGD multiplies the gradient by the learning rate before it enters the velocity: weights
    then follow a schedule with a delay and still change when the rate is 0.

    Args:
        learning_rate: Number or schedule.
        momentum: Decay of the velocity per step.
    Source: https://github.com/google-research/vision_transformer, which trains with optax.sgd.
    """

    def __init__(self, learning_rate=0.01, momentum: float = 0.9, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        """Updates one weight and its velocity."""
        velocity = self.velocities[variable_index(self, variable)]
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign(velocity, velocity * self.momentum + gradient)
        self.assign_sub(variable, velocity * rate)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


class Layerwise(DecayInUpdateStep):
    """Mixin that gives a Keras optimizer one learning rate per layer of a ViT.

    With L blocks, the learning rate is multiplied by `layer_decay ** (L - i)` for block i, by
    `layer_decay ** (L + 1)` for stem and patch encoder, and by 1 for the layers after the blocks.
    Weight decay is multiplied by the same learning rate. Gradients are clipped before.

    Args:
        layer_decay: Ratio of the learning rates of a block and the next one; 1 for one rate.
    Source: Bao et al. 2022, "BEiT"; He et al. 2022, "Masked Autoencoders Are Scalable Vision
        Learners".
    """

    def __init__(self, *args, layer_decay: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.layer_decay = layer_decay

    def build(self, variables):
        if not self.built:
            self.factors = layer_factors([v.path for v in variables], self.layer_decay)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        """Decays and updates one weight."""
        rate = ops.cast(
            learning_rate * self.factors[variable_index(self, variable)], variable.dtype
        )
        if self.weight_decay and uses_weight_decay(self, variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay}


@register
class LayerwiseAdamW(Layerwise, keras.optimizers.AdamW):
    """`AdamW` with one learning rate per layer."""


@register
class LayerwiseMomentum(Layerwise, Momentum):
    """`Momentum` with one learning rate per layer."""


#: By name: the class with one learning rate, and the class with one per layer.
OPTIMIZERS: dict[str, tuple[type[keras.optimizers.Optimizer], ...]] = {
    "adamw": (keras.optimizers.AdamW, LayerwiseAdamW),
    "sgd": (Momentum, LayerwiseMomentum),
}


def check_optimizer(
    name: str,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    ema_momentum: float | None = None,
    layer_decay: float = 1.0,
) -> None:
    """Checks the arguments of `make_optimizer` without making variables.

    Raises:
        InputError: If `name` is unknown or a number is out of range.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    check_range("layer_decay", layer_decay, 0 < layer_decay <= 1, "above 0 and at most 1")
    check_range("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
    if clip_norm is not None:
        check_range("clip_norm", clip_norm, clip_norm > 0, "positive")
    if ema_momentum is not None:
        check_range("ema_momentum", ema_momentum, 0 < ema_momentum < 1, "between 0 and 1")


def make_optimizer(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    ema_momentum: float | None = None,
    variables: Iterable[keras.Variable] = (),
    layer_decay: float = 1.0,
) -> keras.optimizers.Optimizer:
    """Returns AdamW or SGD with momentum 0.9, as the paper uses them.

    Weight decay is decoupled, multiplied by the learning rate, and applied to kernels only: not to
    biases, LayerNorm, LayerScale, class token or position embeddings.

    Args:
        name: "adamw" (beta 0.9, 0.999) or "sgd" (`Momentum`, 0.9).
        learning_rate: Number or schedule.
        weight_decay: Weight decay; 0 for none.
        clip_norm: Global norm that gradients are clipped to; None for no clipping.
        ema_momentum: Momentum of a moving average of the weights; None for none.
        variables: The trainable variables; those that are not kernels get no weight decay.
        layer_decay: Ratio of the learning rates of a block and the next one, see `Layerwise`; 1 for
            one rate.
    Raises:
        InputError: If `name` is unknown or a number is out of range.
    """
    check_optimizer(name, weight_decay, clip_norm, ema_momentum, layer_decay)
    arguments: dict[str, Any] = {
        "name": name,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay or None,
        "global_clipnorm": clip_norm,
        "use_ema": ema_momentum is not None,
        "ema_momentum": 0.99 if ema_momentum is None else ema_momentum,
    }
    if name == "adamw":
        arguments |= {"weight_decay": weight_decay, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
    else:
        arguments["momentum"] = 0.9
    if layer_decay != 1:
        arguments["layer_decay"] = layer_decay
    optimizer = OPTIMIZERS[name][layer_decay != 1](**arguments)
    optimizer.exclude_from_weight_decay([v for v in variables if not v.path.endswith("/kernel")])
    return optimizer
