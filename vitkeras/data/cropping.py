"""Resizing in bounded memory: with any aspect ratio, or with that of the image and a crop."""

import tensorflow as tf

#: Largest fraction of an image that is copied.
MAX_COPIED = 0.25

#: With antialias, the width of images that are wider in relation to the height is resized first.
MAX_ASPECT_RATIO = 64


def resize_bilinear(images: tf.Tensor, size: tuple[int, int], antialias: bool = False) -> tf.Tensor:
    """Resizes images bilinearly, without regard to their aspect ratio.

    With antialias, TensorFlow resizes the height first, which would enlarge an image of one row to
    many rows of the same width.

    Args:
        images: `(h, w, 3)` or `(b, h, w, 3)`.
        size: `(height, width)` in pixels.
        antialias: Whether downsampling uses an antialias filter.
    Returns:
        float32 `(..., *size, 3)`.
    """
    if not antialias:
        return tf.image.resize(images, size)
    height, width = tf.unstack(tf.shape(images, tf.int64)[-3:-1])

    def width_first():
        narrow = tf.image.resize(images, (tf.cast(height, tf.int32), size[1]), antialias=True)
        return tf.image.resize(narrow, size, antialias=True)

    return tf.cond(
        width > MAX_ASPECT_RATIO * height,
        width_first,
        lambda: tf.image.resize(images, size, antialias=True),
    )


def resize_and_crop(
    images: tf.Tensor,
    size: tuple[int, int],
    covered: tuple[int, int],
    antialias: bool = False,
    draws: tf.Tensor | None = None,
) -> tf.Tensor:
    """Resizes images bilinearly, with their aspect ratio, and crops them.

    Both sides of the resized image are rounded to integers. Only the crop is computed. Of an image
    much longer than wide, it is computed from the window that the crop shows, so that memory and
    precision do not depend on the aspect ratio.

    Args:
        images: `(h, w, 3)` or `(b, h, w, 3)`.
        size: `(height, width)` of the crop, in pixels.
        covered: `(height, width)`, at least `size`: the resized image is the smallest that covers
            it.
        antialias: Whether downsampling uses an antialias filter.
        draws: Numbers in [0, 1), float `(2,)`: vertical and horizontal position of the crop. None
            for the center.
    Returns:
        float32 `(..., *size, 3)`.
    Source: `resize_small|central_crop` of https://github.com/google-research/big_vision, and the
        transforms of timm. `covered` extends them to images that are not square.
    """
    images = tf.convert_to_tensor(images)
    sides = tf.cast(tf.shape(images)[-3:-1], tf.float64)
    resized = tf.round(sides * tf.reduce_max(tf.constant(covered, tf.float64) / sides))
    slack = resized - tf.constant(size, tf.float64)
    if draws is None:
        offset = tf.floor(slack / 2)
    else:
        offset = tf.floor(tf.cast(draws, tf.float64) * (slack + 1))
    scale = resized / sides
    # An output pixel depends on the input pixels within the radius of the filter.
    radius = tf.maximum(1 / scale, 1.0) + 1
    begin = tf.maximum(tf.floor(offset / scale - radius), 0.0)
    end = tf.minimum(tf.math.ceil((offset + size) / scale + radius), sides)
    # A large window is not worth a copy; slices of everything are none.
    is_small = tf.reduce_prod(end - begin) <= MAX_COPIED * tf.reduce_prod(sides)
    begin, end = tf.where(is_small, begin, 0.0), tf.where(is_small, end, sides)
    (top, left), (bottom, right) = (tf.unstack(tf.cast(x, tf.int32)) for x in (begin, end))
    window = images[..., top:bottom, left:right, :]
    crop = tf.raw_ops.ScaleAndTranslate(
        images=window if images.shape.rank == 4 else window[None],
        size=size,
        scale=tf.cast(scale, tf.float32),
        translation=tf.cast(begin * scale - offset, tf.float32),
        kernel_type="triangle",
        antialias=antialias,
    )
    return crop if images.shape.rank == 4 else crop[0]
