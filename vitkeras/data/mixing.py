"""Mixup and CutMix: every example of a batch is mixed with the preceding one."""

import tensorflow as tf

from vitkeras.data.sharding import HostShard


def mix(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    mixup_alpha: float = 0.0,
    mixup_per_example: bool = False,
    cutmix_alpha: float = 0.0,
    shard: HostShard | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each example with the preceding one of its group, cyclically.

    Args:
        images: uint8 `(b, h, w, 3)`.
        labels: float32 `(b, classes)`.
        seed: int32 `(2,)`, the seed of the batch.
        mixup_alpha: Parameter of the beta distribution of mixup's coefficient; 0 for no mixup.
        mixup_per_example: Whether each example has its own coefficient.
        cutmix_alpha: Parameter of the beta distribution of CutMix's box area; 0 for no CutMix. If
            both are positive, each batch gets one of them at random.
        shard: The part of a global batch that `images` is; None for a complete batch of one group.
    Returns:
        Images and labels of the same shapes. The weight of the original example is at least 0.5 in
        mixup, and the fraction of its area outside the box in CutMix.
    Source: Zhang et al. 2018, "mixup", as in https://github.com/google-research/big_vision; Yun et
        al. 2019, "CutMix".
    """
    num_groups = 1 if shard is None else len(shard.groups)

    def preceding(values):
        groups = tf.reshape(values, (num_groups, -1, *values.shape[1:]))
        return tf.reshape(tf.roll(groups, 1, axis=1), tf.shape(values))

    def blend(values, weight):
        return weight * values + (1 - weight) * preceding(values)

    def mixup():
        if not mixup_per_example:
            weight = _beta((1,), seed, mixup_alpha)
        elif shard is None:
            weight = _beta(tf.shape(images)[:1], seed, mixup_alpha)
        else:  # drawn for the global batch, so that all hosts agree
            weight = _beta((shard.batch_size,), seed, mixup_alpha)
            weight = weight[shard.slice.start : shard.slice.stop]
        weight = tf.maximum(weight, 1 - weight)  # (1,) or (b,)
        mixed = blend(tf.cast(images, tf.float32), weight[:, None, None, None])
        return tf.cast(tf.round(mixed), tf.uint8), blend(labels, weight[:, None])

    def cutmix():
        box = _box(tf.shape(images)[1:3], seed, 1 - _beta((), seed, cutmix_alpha))  # (h, w)
        weight = 1 - tf.reduce_mean(tf.cast(box, tf.float32))
        mask = tf.cast(box, tf.uint8)[..., None]  # (h, w, 1)
        mixed = images * (1 - mask) + preceding(images) * mask
        return mixed, blend(labels, weight)

    if not cutmix_alpha:
        mixed, labels = mixup()
    elif not mixup_alpha:
        mixed, labels = cutmix()
    else:
        use_mixup = tf.random.stateless_uniform((), seed + [0, 2]) < 0.5
        mixed, labels = tf.cond(use_mixup, mixup, cutmix)
    return tf.ensure_shape(mixed, images.shape), labels


def _beta(shape, seed, alpha):
    first, second = (
        # With a small alpha, the gamma variate may underflow to 0.
        tf.maximum(tf.random.stateless_gamma(shape, seed + [0, i], alpha), 1e-30)
        for i in (0, 1)
    )
    return first / (first + second)


def _box(size, seed, area):
    """Returns a mask `(h, w)`: a box with a fraction `area` of the image, cropped at the border."""
    center = tf.random.stateless_uniform((2,), seed + [0, 3])

    def inside(axis):
        side = tf.cast(size[axis], tf.float32)
        distance = tf.abs(tf.range(side) + 0.5 - center[axis] * side)
        return distance < tf.sqrt(area) * side / 2

    return inside(0)[:, None] & inside(1)
