"""Mixup and CutMix: each example of a batch gets a share of the one before it, of its label too."""

import tensorflow as tf


def mix(
    images, labels, seed, mixup_alpha=0.0, mixup_per_example=False, cutmix_alpha=0.0, share=None
):
    """Mixes a batch, or the part of it that a host has, with itself: each group rolled by one.

    Args:
        images: uint8 `(b, h, w, 3)`.
        labels: float32 `(b, classes)`.
        seed: int32 `(2,)`, the batch's.
        mixup_alpha: Of the beta distribution of mixup's share; 0 for no mixup.
        mixup_per_example: Whether each example has a share of its own.
        cutmix_alpha: Of CutMix's; 0 for no CutMix. With both, the batch gets one of them.
        share: What part of the batch it is, and its groups; None for a whole batch of one group.
    Returns:
        Images and labels of the same shapes. What an example keeps of its own is at least half in
        mixup; in CutMix, what is outside the box.
    Source: Zhang et al. 2018, "mixup", as in https://github.com/google-research/big_vision; Yun et
        al. 2019, "CutMix".
    """
    groups = 1 if share is None else len(share.groups)

    def neighbours(values):
        rows = tf.reshape(values, (groups, -1, *values.shape[1:]))
        return tf.reshape(tf.roll(rows, 1, axis=1), tf.shape(values))

    def blend(values, kept):
        return kept * values + (1 - kept) * neighbours(values)

    def mixup():
        if not mixup_per_example:
            kept = _beta((1,), seed, mixup_alpha)
        elif share is None:
            kept = _beta(tf.shape(images)[:1], seed, mixup_alpha)
        else:  # the same for a host that has a part only
            kept = _beta((share.batch_size,), seed, mixup_alpha)
            kept = kept[share.slots.start : share.slots.stop]
        kept = tf.maximum(kept, 1 - kept)  # (1,) or (b,)
        mixed = blend(tf.cast(images, tf.float32), kept[:, None, None, None])
        return tf.cast(tf.round(mixed), tf.uint8), blend(labels, kept[:, None])

    def cutmix():
        box = _box(tf.shape(images)[1:3], seed, 1 - _beta((), seed, cutmix_alpha))  # (h, w)
        kept = 1 - tf.reduce_mean(tf.cast(box, tf.float32))
        hole = tf.cast(box, tf.uint8)[..., None]
        mixed = images * (1 - hole) + neighbours(images) * hole
        return mixed, blend(labels, kept)

    if not cutmix_alpha:
        mixed, labels = mixup()
    elif not mixup_alpha:
        mixed, labels = cutmix()
    else:
        heads = tf.random.stateless_uniform((), seed + [0, 2]) < 0.5
        mixed, labels = tf.cond(heads, mixup, cutmix)
    return tf.ensure_shape(mixed, images.shape), labels


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
