"""Learning-rate schedule and optimizers of the paper's recipes."""

import keras
from keras import ops

from vitkeras.errors import InputError, check_range
from vitkeras.finetuning import layer_factors
from vitkeras.private import DecaysInStep, decays, index_of

DECAYS = ("cosine", "linear")

register = keras.saving.register_keras_serializable(package="vitkeras")


@register
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


@register
class Momentum(keras.optimizers.Optimizer):
    """SGD with momentum as the paper's authors have it: v = momentum * v + g; w = w - rate * v.

    Keras's SGD takes the rate into the velocity, so its weights follow a schedule late, and move on
    when the rate is 0; these stand still.

    Args:
        learning_rate: Number or schedule.
        momentum: What is left of the velocity after a step.
    Source: https://github.com/google-research/vision_transformer, which trains with optax.sgd.
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        """Makes the velocities."""
        if not self.built:
            super().build(variables)
            self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        """Updates one weight and its velocity."""
        velocity = self.velocities[index_of(self, variable)]
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign(velocity, velocity * self.momentum + gradient)
        self.assign_sub(variable, velocity * rate)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum}


class Layerwise(DecaysInStep):
    """Stands before a Keras optimizer, and gives each layer of a ViT a rate of its own.

    With L blocks, the rate of block i is that of the optimizer times `layer_decay ** (L - i)`; of
    stem and patch encoder, times `layer_decay ** (L + 1)`; of what comes after the blocks, the
    optimizer's. Weight decay is multiplied by the same rate. Clipping comes before.

    Args:
        layer_decay: 1 for one rate.
    Source: Bao et al. 2022, "BEiT"; He et al. 2022, "Masked Autoencoders Are Scalable Vision
        Learners".
    """

    def __init__(self, *args, layer_decay=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.layer_decay = layer_decay

    def build(self, variables):
        """Takes each weight's factor from its layer's name."""
        if not self.built:
            self.factors = layer_factors([v.path for v in variables], self.layer_decay)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        """Decays and updates one weight."""
        rate = ops.cast(learning_rate * self.factors[index_of(self, variable)], variable.dtype)
        if self.weight_decay and decays(self, variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "layer_decay": self.layer_decay}


@register
class LayerwiseAdamW(Layerwise, keras.optimizers.AdamW):
    """`AdamW` with a rate for each layer."""


@register
class LayerwiseMomentum(Layerwise, Momentum):
    """`Momentum` with a rate for each layer."""


#: Of each name: the class, and that with a rate for each layer.
OPTIMIZERS = {
    "adamw": (keras.optimizers.AdamW, LayerwiseAdamW),
    "sgd": (Momentum, LayerwiseMomentum),
}


def make_optimizer(
    name,
    learning_rate,
    weight_decay=0.0,
    clip_norm=None,
    ema_momentum=None,
    variables=(),
    layer_decay=1.0,
):
    """Returns AdamW or SGD with momentum 0.9, as the paper sets them.

    Weight decay is decoupled, multiplied by the learning rate, and applied to kernels only: not to
    biases, LayerNorm, LayerScale, the class token or position embeddings.

    Args:
        name: "adamw" (0.9, 0.999) or "sgd" (`Momentum`, 0.9).
        learning_rate: Number or schedule.
        weight_decay: 0 for none.
        clip_norm: Global norm to clip gradients to; None for none.
        ema_momentum: Keeps an exponential moving average of the weights; None for none.
        variables: The trainable variables, to tell kernels from the rest.
        layer_decay: Rate of each block over that of the next one, see `Layerwise`; 1 for one rate.
    Raises:
        InputError: If `name` is unknown or a number out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(
            f"`optimizer` must be one of {', '.join(OPTIMIZERS)}. Received: optimizer={name!r}."
        )
    check_range("layer_decay", layer_decay, 0 < layer_decay <= 1, "above 0 and at most 1")
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
        common |= {"weight_decay": weight_decay, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
    else:
        common["momentum"] = 0.9
    if layer_decay != 1:
        common["layer_decay"] = layer_decay
    optimizer = OPTIMIZERS[name][layer_decay != 1](**common)
    optimizer.exclude_from_weight_decay([v for v in variables if not v.path.endswith("/kernel")])
    return optimizer
