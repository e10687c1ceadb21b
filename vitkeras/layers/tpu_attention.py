"""Self-attention for TPUs that keeps the attention scores in on-chip memory.

A plain training step moves more scores `(b, k, t, t)` to and from HBM than anything else. Here the
batch is processed in chunks, and the backward pass recomputes the scores of each chunk, as
FlashAttention (Dao et al. 2022) does within an image. docs/tpu.md has the figures.
"""

import contextlib

import keras

from vitkeras import keras_internals

#: Bytes of the bfloat16 scores of a chunk. Scores, their softmax and its gradient then fit into the
#: 128 MiB of on-chip memory of a v5e.
CHUNK_BYTES = 20 * 2**20
#: Compile time grows with the number of chunks.
MAX_CHUNKS = 16

_targets: list[bool] = []


@contextlib.contextmanager
def as_target():
    """Within the context, layers build their TPU form on any device: for AOT compilation."""
    _targets.append(True)
    try:
        yield
    finally:
        _targets.pop()


def is_target():
    """Returns whether the operations that are being traced will run on a TPU, with TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    tpu_strategies = (tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy)
    wanted = bool(_targets) or isinstance(tf.distribute.get_strategy(), tpu_strategies)
    # Within the scope of a TPU strategy, layers are also called on the host when they are built.
    return wanted and keras_internals.in_xla_context()


def chunk_size(images, heads, tokens):
    """Returns the number of images in a chunk; None if the batch size is not static."""
    if not images:
        return None
    # A TPU pads matrices to tiles of 8 rows and 128 columns.
    scores = heads * (-(-tokens // 8) * 8) * (-(-tokens // 128) * 128) * 2
    largest, smallest = max(1, CHUNK_BYTES // scores), -(-images // MAX_CHUNKS)
    size = largest // 8 * 8 or largest
    if size < smallest:
        size = smallest if smallest < 8 else -(-smallest // 8) * 8
    return min(images, size)


def chunks(x, heads):
    """Splits `(b, t, d)` along the batch into the chunks that are processed one after the other."""
    images, tokens = x.shape[:2]
    size = chunk_size(images, heads, tokens)
    return [x] if size is None else [x[i : i + size] for i in range(0, images, size)]


def optimization_barrier(tensor):
    """Returns the tensor, which XLA treats as a different value; gradients pass unchanged."""
    import tensorflow as tf

    def identity(x):
        return keras_internals.xla_optimization_barrier([x])[0], lambda upstream: upstream

    return tf.custom_gradient(identity)(tensor)


def attend(operands):
    """Computes softmax(query key') value for each chunk. Only for functions compiled by XLA.

    The gradient is exact; second derivatives are not supported.

    Args:
        operands: A list of (scaled query, key, value), each `(b, k, d/k, t)`.
    Returns:
        A list of outputs `(b, k, d/k, t)`.
    """
    import tensorflow as tf

    return tf.custom_gradient(_attend)(*(x for chunk in operands for x in chunk))


def _attend(*operands):
    import tensorflow as tf

    operands = [operands[i : i + 3] for i in range(0, len(operands), 3)]

    def softmax_scores(q, k):
        return tf.nn.softmax(tf.einsum("bkht,bkhs->bkts", q, k))

    outputs, previous = [], []
    for chunk in operands:
        # The barrier orders the chunks; without it XLA processes them together.
        barrier = keras_internals.xla_optimization_barrier
        q, k, v = barrier([*chunk, *previous])[:3] if previous else chunk
        outputs.append(tf.einsum("bkts,bkhs->bkht", softmax_scores(q, k), v))
        previous = outputs[-1:]

    def gradient(*upstream):
        gradients, previous = [], []
        for chunk, up in zip(operands, upstream, strict=True):
            # Also prevents XLA from reusing the scores of the forward pass, which would store them.
            q, k, v, up = keras_internals.xla_optimization_barrier([*chunk, up, *previous])[:4]
            scores = softmax_scores(q, k)
            d_value = tf.einsum("bkts,bkht->bkhs", scores, up)
            d_scores = tf.einsum("bkht,bkhs->bkts", up, v)
            d_scores = (d_scores - tf.reduce_sum(d_scores * scores, -1, keepdims=True)) * scores
            d_key = tf.einsum("bkts,bkht->bkhs", d_scores, q)
            d_query = tf.einsum("bkts,bkhs->bkht", d_scores, k)
            previous = [d_key]
            gradients += [d_query, d_key, d_value]
        return gradients

    return outputs, gradient
