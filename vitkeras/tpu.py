"""Attention for a TPU, whose matrix unit waits for memory: scores stay in the chip's fast memory.

Scores `(b, k, t, t)` were what a training step moved most to and from the large memory. Here a few
images at a time are attended to, and the way back makes their scores again, as Dao et al. 2022
("FlashAttention") do within an image. docs/tpu.md shows what it buys.
"""

import contextlib

import keras

from vitkeras import private

#: Of scores in bfloat16, so that they, their softmax and its gradient fit the 128 MiB of a v5e.
PIECE_BYTES = 20 * 2**20
#: More would take the compiler too long.
MOST_PIECES = 16

_targets = []


@contextlib.contextmanager
def as_target():
    """Layers called inside compute as on a TPU, wherever they are: to compile for one."""
    _targets.append(True)
    try:
        yield
    finally:
        _targets.pop()


def is_target():
    """Whether what is called now is to run on a TPU, under TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    kinds = (tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy)
    wanted = bool(_targets) or isinstance(tf.distribute.get_strategy(), kinds)
    # In the scope of such a strategy layers are also called on the host, where they are made.
    return wanted and private.in_xla()


def images_at_once(images, heads, tokens):
    """Returns how many images' scores are held at a time; all where `images` is None."""
    if images is None:
        return None
    # Rows of 8 and columns of 128, as they lie in memory.
    scores = heads * (-(-tokens // 8) * 8) * (-(-tokens // 128) * 128) * 2
    at_once = max(1, PIECE_BYTES // scores, -(-images // MOST_PIECES))
    return min(images, at_once // 8 * 8 or at_once)


def attend(query, key, value):
    """Returns softmax(query key') value, each `(b, t, k, d/k)`, for XLA.

    Queries are scaled already. The gradient is that of the formula, in the same types.
    """
    import tensorflow as tf

    return tf.custom_gradient(_attend)(query, key, value)


def _pieces(*tensors):
    images, tokens, heads = tensors[0].shape[:3]
    size = images_at_once(images, heads, tokens)
    if size is None:
        return [tensors]
    return [[x[i : i + size] for x in tensors] for i in range(0, images, size)]


def _attend(query, key, value):
    import tensorflow as tf

    def scores_of(q, k):
        return tf.nn.softmax(tf.einsum("btkh,bskh->bkts", q, k))

    outputs, before = [], []
    for piece in _pieces(query, key, value):
        # One after the other: else the compiler takes them up together.
        q, k, v = private.barrier([*piece, *before])[:3] if before else piece
        outputs.append(tf.einsum("bkts,bskh->btkh", scores_of(q, k), v))
        before = outputs[-1:]

    def gradient(upstream):
        gradients, before = [], []
        for piece in _pieces(query, key, value, upstream):
            # It also keeps the compiler from finding that these scores were there before.
            q, k, v, up = private.barrier([*piece, *before])[:4]
            scores = scores_of(q, k)
            of_value = tf.einsum("bkts,btkh->bskh", scores, up)
            change = tf.einsum("btkh,bskh->bkts", up, v)
            change = (change - tf.reduce_sum(change * scores, -1, keepdims=True)) * scores
            of_query = tf.einsum("bkts,bskh->btkh", change, k)
            before = [tf.einsum("bkts,btkh->bskh", change, q)]
            gradients.append((of_query, *before, of_value))
        return tuple(tf.concat(parts, 0) for parts in zip(*gradients, strict=True))

    return tf.concat(outputs, 0), gradient
