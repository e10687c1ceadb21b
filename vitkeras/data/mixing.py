"""Mixup and CutMix: each example of a batch gets a share of the one before it, of its label too."""

import tensorflow as tf


def mix(images, labels, seed, mixup_alpha=0.0, mixup_per_example=False, cutmix_alpha=0.0):
    """Mixes a batch with itself, rolled by one.

    Args:
        images: uint8 `(b, h, w, 3)`.
        labels: float32 `(b, classes)`.
        seed: int32 `(2,)`.
        mixup_alpha: Of the beta distribution of mixup's share; 0 for no mixup.
        mixup_per_example: Whether each example has a share of its own.
        cutmix_alpha: Of CutMix's; 0 for no CutMix. With both, the batch gets one of them.
    Returns:
        Images and labels of the same shapes. What an example keeps of its own is at least half in
        mixup; in CutMix, what is outside the box.
    Source: Zhang et al. 2018, "mixup", as in https://github.com/google-research/big_vision; Yun et
        al. 2019, "CutMix".
    """
    shape = tf.shape(images)[:1] if mixup_per_example else (1,)

    def mixup():
        share = _beta(shape, seed, mixup_alpha)
        share = tf.maximum(share, 1 - share)  # (1,) or (b,)
        pixels = tf.cast(images, tf.float32)
        mixed = _blend(pixels, share[:, None, None, None])
        return tf.cast(tf.round(mixed), tf.uint8), _blend(labels, share[:, None])

    def cutmix():
        box = _box(tf.shape(images)[1:3], seed, 1 - _beta((), seed, cutmix_alpha))  # (h, w)
        share = 1 - tf.reduce_mean(tf.cast(box, tf.float32))
        hole = tf.cast(box, tf.uint8)[..., None]
        mixed = images * (1 - hole) + tf.roll(images, 1, axis=0) * hole
        return mixed, _blend(labels, share)

    if not cutmix_alpha:
        mixed, labels = mixup()
    elif not mixup_alpha:
        mixed, labels = cutmix()
    else:
        heads = tf.random.stateless_uniform((), seed + [0, 2]) < 0.5
        mixed, labels = tf.cond(heads, mixup, cutmix)
    return tf.ensure_shape(mixed, images.shape), labels


def _blend(values, share):
    return share * values + (1 - share) * tf.roll(values, 1, axis=0)


def _beta(shape, seed, alpha):
    one, other = (
        # A gamma of a small alpha may be too small for a float.
        tf.maximum(tf.random.stateless_gamma(shape, seed + [0, i], alpha), 1e-30)
        for i in (0, 1)
    )
    return one / (one + other)


def _box(size, seed, area):
    """Returns a mask `(h, w)`: a box of that share of the area about a place in the image."""
    centre = tf.random.stateless_uniform((2,), seed + [0, 3])

    def inside(axis):
        side = tf.cast(size[axis], tf.float32)
        at = tf.range(side)
        return tf.abs(at + 0.5 - centre[axis] * side) < tf.sqrt(area) * side / 2

    return inside(0)[:, None] & inside(1)
