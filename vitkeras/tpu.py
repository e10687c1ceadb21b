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
    """Returns how many images' scores are held at a time; None, for all, if their number is."""
    if not images:
        return None
    # Rows of 8 and columns of 128, as they lie in memory.
    scores = heads * (-(-tokens // 8) * 8) * (-(-tokens // 128) * 128) * 2
    most, least = max(1, PIECE_BYTES // scores), -(-images // MOST_PIECES)
    at_once = most // 8 * 8 or most
    if at_once < least:
        at_once = least if least < 8 else -(-least // 8) * 8
    return min(images, at_once)


def renewed(tensor):
    """Returns the same tensor, which XLA takes for another one; gradients pass."""
    import tensorflow as tf

    def same(x):
        return private.barrier([x])[0], lambda upstream: upstream

    return tf.custom_gradient(same)(tensor)


def pieces(x, heads):
    """Returns `(b, t, d)` as a list of a few images each, to attend to one after the other."""
    images, tokens = x.shape[:2]
    size = images_at_once(images, heads, tokens)
    return [x] if size is None else [x[i : i + size] for i in range(0, images, size)]


def attend(operands):
    """Returns softmax(query key') value for each piece of a batch, for XLA.

    Args:
        operands: Query, scaled already, key and value of each piece.
    Input shape: `(b, k, d/k, t)` each.
    Output shape: As the inputs, one for each piece. The gradient is that of the formula, in the
        same types; a second derivative there is not.
    """
    import tensorflow as tf

    return tf.custom_gradient(_attend)(*(x for piece in operands for x in piece))


def _attend(*operands):
    import tensorflow as tf

    operands = [operands[i : i + 3] for i in range(0, len(operands), 3)]

    def scores_of(q, k):
        return tf.nn.softmax(tf.einsum("bkht,bkhs->bkts", q, k))

    outputs, before = [], []
    for piece in operands:
        # One after the other: else the compiler takes them up together.
        q, k, v = private.barrier([*piece, *before])[:3] if before else piece
        outputs.append(tf.einsum("bkts,bkhs->bkht", scores_of(q, k), v))
        before = outputs[-1:]

    def gradient(*upstream):
        gradients, before = [], []
        for piece, up in zip(operands, upstream, strict=True):
            # It also keeps the compiler from finding that these scores were there before.
            q, k, v, up = private.barrier([*piece, up, *before])[:4]
            scores = scores_of(q, k)
            of_value = tf.einsum("bkts,bkht->bkhs", scores, up)
            change = tf.einsum("bkht,bkhs->bkts", up, v)
            change = (change - tf.reduce_sum(change * scores, -1, keepdims=True)) * scores
            before = [tf.einsum("bkts,bkht->bkhs", change, q)]
            gradients += [tf.einsum("bkts,bkhs->bkht", change, k), *before, of_value]
        return gradients

    return outputs, gradient
