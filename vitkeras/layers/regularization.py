"""Dropout and stochastic depth with independent masks on each replica of a strategy."""

import contextlib

import keras
from keras import ops

from vitkeras.arguments import check_float

register = keras.saving.register_keras_serializable(package="vitkeras")


class SeedGenerator(keras.random.SeedGenerator):
    """A Keras seed generator with other seeds on each replica of a `tf.distribute` strategy."""

    _fixed_seed = None

    @contextlib.contextmanager
    def with_seed(self, seed):
        """Within the context, `next` returns `seed` and does not advance: for recomputation."""
        self._fixed_seed = seed
        try:
            yield
        finally:
            self._fixed_seed = None

    def next(self, ordered=True):
        """Returns the next seed `(2,)`; the first replica gets the seed of plain Keras."""
        if self._fixed_seed is not None:
            return self._fixed_seed
        seed = super().next(ordered)
        if keras.backend.backend() != "tensorflow":
            return seed
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        # Keras draws first elements below 2**30, so that no two replicas collide.
        return seed + tf.stack([replica * 2**32, tf.zeros_like(replica)])


@register
class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with an independent mask on each replica."""

    def __init__(self, rate: float, noise_shape=None, seed: int | None = None, **kwargs):
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if self.rate > 0:
            # The layer no longer accepts new attributes here; the subclass has no state of its own.
            self.seed_generator.__class__ = SeedGenerator


@register
class StochasticDepth(keras.layers.Layer):
    """Drops a residual branch for complete examples during training and rescales the others.

    Args:
        rate: Probability that the branch of an example is dropped.
        seed: Optional integer seed.
    Input shape: `(b, ...)`.
    Output shape: Same as the input.
    Raises:
        ValueError: If `rate` is not in [0, 1).
    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth"; applied per example and scaled
        by 1 / (1 - rate), as is usual in ViTs.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate = check_float("rate", rate, 0, 1, "in [0, 1)")
        self.seed = seed
        # No generator at rate 0, as in keras.layers.Dropout.
        self.seed_generator = SeedGenerator(seed) if self.rate else None
        self.built = True

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return x * ops.cast(kept, x.dtype) / (1 - self.rate)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
