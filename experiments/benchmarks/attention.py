"""Times the attention of `SelfAttention` in turn with `keras.ops.dot_product_attention`.

  python -m experiments.benchmarks.attention --rounds=30

Both get queries, keys and values `(b, t, 3, k, d/k)` as the layer computes them. Prints the median
milliseconds of a forward pass and of a forward and backward pass, with and without XLA, on the
TensorFlow backend.
"""

import sys

from absl import flags as absl_flags

from experiments.benchmarks import timing
from vitkeras.cli import runner

REQUIRED = ()
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    timing.define_flags(flags)
    timing.define_batch_size(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns milliseconds, by measurement and implementation."""
    import numpy as np
    import tensorflow as tf
    from keras import ops

    from vitkeras.models.config import ViTConfig

    config = ViTConfig.from_variant(flags.variant, image_size=flags.image_size)
    tokens, k = config.grid[0] * config.grid[1] + 1, config.num_heads
    shape = (flags.batch_size, tokens, 3, k, config.hidden_dim // k)
    x = tf.constant(np.random.default_rng(0).normal(size=shape).astype("float32"))

    def matmul(x):
        query, key, value = ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)))
        scores = ops.matmul(query * shape[-1] ** -0.5, ops.transpose(key, (0, 1, 3, 2)))
        return ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))

    def dot_product_attention(x):
        return ops.dot_product_attention(*ops.unstack(x, axis=2))

    def backward(attend, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(attend(x) ** 2)
        return tape.gradient(loss, x)

    result = {"shape": list(shape)}
    for training in (False, True):
        for jit_compile in (False, True):
            functions = {}
            for attend in (matmul, dot_product_attention):
                function = (lambda x, f=attend: backward(f, x)) if training else attend
                function = tf.function(function, jit_compile=jit_compile)
                functions[attend.__name__] = lambda f=function: f(x).numpy()
            seconds = timing.time_in_turn(functions, flags.rounds)
            label = ("train" if training else "infer") + ("_xla" if jit_compile else "")
            result[label] = {name: round(1000 * each, 2) for name, each in seconds.items()}
            print(f"{label:10s} {result[label]} ms", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.benchmarks.attention")
