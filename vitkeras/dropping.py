"""Layers that drop something at random in training, with masks of their own on each replica."""

import contextlib

import keras
from keras import ops

register = keras.saving.register_keras_serializable(package="vitkeras")


class SeedGenerator(keras.random.SeedGenerator):
    """Keras's, but each replica of a tf.distribute strategy draws numbers of its own."""

    _given = None

    @contextlib.contextmanager
    def giving(self, seed):
        """Inside, `next` returns this seed, and draws none: to compute again what was computed."""
        self._given = seed
        try:
            yield
        finally:
            self._given = None

    def next(self, ordered=True):
        """Returns the next seed `(2,)`; that of the first replica is Keras's."""
        if self._given is not None:
            return self._given
        seed = super().next(ordered)
        if keras.backend.backend() != "tensorflow":
            return seed
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        # Keras's own first numbers are below 2**30.
        return seed + tf.stack([replica * 2**32, tf.zeros_like(replica)])


@register
class Dropout(keras.layers.Dropout):
    """Keras's, with a mask of its own on each replica."""

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if self.rate > 0:
            # The layer is locked by now, and this adds no state.
            self.seed_generator.__class__ = SeedGenerator


@register
class StochasticDepth(keras.layers.Layer):
    """In training, drops a residual branch for whole examples and scales up the ones it keeps.

    Args:
        rate: Probability that an example's branch is dropped.
        seed: Optional integer seed.
    Input shape: `(b, ...)`.
    Output shape: as the input.
    Source: Huang et al. 2016; per example and scaled by 1 / (1 - rate), as is usual for ViTs.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must lie in [0, 1). Received: rate={rate}.")
        self.rate = float(rate)
        self.seed = seed
        # One without a rate has no generator, as keras.layers.Dropout does it.
        self.seed_generator = SeedGenerator(seed) if self.rate else None
        self.built = True

    def compute_output_shape(self, input_shape):
        """As the input."""
        return input_shape

    def call(self, x, training=None):
        """Drops whole examples."""
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return x * ops.cast(kept, x.dtype) / (1 - self.rate)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
