"""RandAugment in TensorFlow ops on uint8 images, as a function of the image and a seed.

Operations, ranges and the scale of the magnitude are those of the AugReg recipes: magnitude 10 is
the end of each range, and larger magnitudes extrapolate where the operation allows it.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from vitkeras.arguments import check_range

#: Weights of red, green and blue in the gray value.
GRAY = (0.2989, 0.5870, 0.1140)
#: Value of pixels outside of the image.
FILL_VALUE = 128


def rand_augment(image: tf.Tensor, seed: tf.Tensor, num_layers: int, magnitude: float) -> tf.Tensor:
    """Applies randomly selected operations one after the other.

    Args:
        image: uint8 `(h, w, 3)` of static shape.
        seed: int32 `(2,)`.
        num_layers: Number of operations, drawn with replacement.
        magnitude: Their strength, 0 to 30.
    Returns:
        uint8 `(h, w, 3)`.
    Source: Cubuk et al. 2020, "RandAugment"; the ranges of
        https://github.com/google-research/big_vision, pp/autoaugment.py, with two differences:
        values are rounded here and truncated there, and contrast is relative to the mean gray value
        of the image, as in PIL, where it is relative to a constant there.
    """
    check_range("magnitude", magnitude, 0 <= magnitude <= 30, "between 0 and 30")
    draws = tf.random.stateless_uniform((num_layers, 4), seed)
    for layer in range(num_layers):
        index = tf.cast(draws[layer, 0] * len(OPERATIONS), tf.int32)
        image = apply_operation(index, image, magnitude, draws[layer, 1:])
    return image


def apply_operation(
    index: int | tf.Tensor, image: tf.Tensor, magnitude: float, draws: tf.Tensor
) -> tf.Tensor:
    """Applies the operation with the given index in `OPERATIONS`.

    Args:
        index: Scalar int32.
        image: uint8 `(h, w, 3)` of static shape.
        magnitude: Strength of the operation.
        draws: float32 `(3,)`, uniform in [0, 1): the first selects the sign, the others the center
            of a cutout.
    Returns:
        uint8 `(h, w, 3)`.
    """
    sign = tf.where(draws[0] < 0.5, -1.0, 1.0)
    level, shape = magnitude / 10, image.shape

    def branch(operation):
        return lambda: tf.ensure_shape(operation(image, level, sign, draws[1:]), shape)

    branches = [branch(operation) for operation in OPERATIONS.values()]
    return tf.switch_case(tf.convert_to_tensor(index), branches)


def _to_uint8(values):
    return tf.cast(tf.round(tf.clip_by_value(values, 0.0, 255.0)), tf.uint8)


def _flatten_channels(image):
    """Returns `(h, 3w)`: element-wise operations are twice as fast as with a last axis of 3."""
    return tf.reshape(image, (image.shape[0], -1))


def _per_value(channels, image):
    """Repeats `(3,)` for each value in a row of `_flatten_channels`."""
    return tf.tile(channels, [image.shape[1]])


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the range 0 to 255."""
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float32)  # (3,)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float32)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    values = tf.cast(_flatten_channels(image), tf.float32) * _per_value(scale, image) + _per_value(
        offset, image
    )
    return tf.reshape(_to_uint8(values), image.shape)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel."""
    values = tf.cast(_flatten_channels(image), tf.int32) + _per_value(
        tf.constant([0, 256, 512]), image
    )
    values = tf.reshape(values, [-1])
    counts = tf.math.bincount(values, minlength=768, maxlength=768)
    counts = tf.reshape(counts, (3, 256))
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)  # (3,)
    pixels = tf.reduce_sum(counts, axis=1)
    step = (pixels - tf.gather(counts, last, batch_dims=1)) // 255
    divisor = tf.maximum(step, 1)[:, None]
    table = (tf.cumsum(counts, axis=1, exclusive=True) + step[:, None] // 2) // divisor
    table = tf.where(step[:, None] == 0, tf.range(256)[None], tf.clip_by_value(table, 0, 255))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1])
    return tf.reshape(tf.gather_nd(table, values[:, None]), image.shape)  # gather is slower


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the `bits` most significant bits, 0 to 8."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts values of at least `threshold`, 0 to 256."""
    if threshold > 255:
        return image
    bright = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, bright)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds to values below 128."""
    dark = tf.cast(image < 128, tf.uint8)
    added = tf.minimum(image, tf.constant(max(255 - addition, 0), tf.uint8)) + min(addition, 255)
    return image + dark * (added - image)  # the difference and the sum wrap modulo 256


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with the gray image: factor 0 is gray, 1 the image, larger ones more saturated."""
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3))
    gray = tf.floor(tf.matmul(pixels, tf.constant([GRAY] * 3, shape=(3, 3)), transpose_b=True))
    return tf.reshape(_to_uint8(gray + factor * (pixels - gray)), image.shape)


def contrast(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with the mean gray value."""
    mean = tf.reduce_mean(tf.cast(image, tf.float32), axis=(0, 1))  # (3,)
    mean = tf.floor(tf.tensordot(mean, tf.constant(GRAY), 1) + 0.5)
    return _to_uint8(tf.cast(image, tf.float32) * factor + (1 - factor) * mean)


def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with black."""
    return _to_uint8(tf.cast(image, tf.float32) * factor)


def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Blends with a smoothed image; the border is unchanged."""
    pixels = tf.cast(image, tf.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    middle = pixels[1:-1, 1:-1]
    smooth = tf.floor((sums + 4 * middle) / 13)
    inside = _to_uint8(smooth + factor * (middle - smooth))
    inside = tf.concat([image[1:-1, :1], inside, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], inside, image[-1:]], axis=0)


def warp(image: tf.Tensor, matrix: Sequence[float | tf.Tensor]) -> tf.Tensor:
    """Samples pixel (x, y) of the output at (a x + b y + c, d x + e y + f) of the input, nearest.

    `matrix` is (a, b, c, d, e, f).
    """
    height, width = image.shape[:2]
    y, x = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    a, b, c, d, e, f = (tf.cast(number, tf.float32) for number in matrix)

    def nearest(x_factor, y_factor, offset):
        return tf.cast(tf.floor(x_factor * x + (y_factor * y + offset) + 0.5), tf.int32)  # (h, w)

    row, column = nearest(d, e, f), nearest(a, b, c)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = tf.where(inside, row * width + column, height * width)
    fill = tf.fill((1, 3), tf.constant(FILL_VALUE, tf.uint8))
    pixels = tf.concat([tf.reshape(image, (-1, 3)), fill], axis=0)
    return tf.reshape(tf.gather(pixels, tf.reshape(index, [-1])), image.shape)


def translate(
    image: tf.Tensor, x: float | tf.Tensor = 0.0, y: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """Moves the sampled window right and down, by integer numbers of pixels."""
    offsets = [tf.cast(tf.round(offset), tf.int32) for offset in (y, x)]
    margins = [[tf.maximum(-offset, 0), tf.maximum(offset, 0)] for offset in offsets]
    padded = tf.pad(image, [*margins, [0, 0]], constant_values=FILL_VALUE)
    return tf.slice(padded, [margins[0][1], margins[1][1], 0], image.shape)


def rotate(image: tf.Tensor, degrees: float | tf.Tensor) -> tf.Tensor:
    """Rotates the image about its center, counterclockwise."""
    height, width = image.shape[:2]
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    return warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def cutout(image: tf.Tensor, draws: tf.Tensor, half: int) -> tf.Tensor:
    """Fills a square of side 2 `half` with gray; `draws` in [0, 1) are its center (y, x)."""
    height, width = image.shape[:2]

    def inside(draw, side):
        distance = tf.range(side) - tf.cast(draw * side, tf.int32)
        return (distance >= -half) & (distance < half)

    mask = inside(draws[0], height)[:, None] & tf.repeat(inside(draws[1], width), 3)  # (h, 3w)
    filled = tf.where(mask, tf.constant(FILL_VALUE, tf.uint8), _flatten_channels(image))
    return tf.reshape(filled, image.shape)


def _enhance(operation):
    return lambda image, level, sign, draws: operation(image, level * 1.8 + 0.1)


def _shear(image, x=0.0, y=0.0):
    return warp(image, (1.0, x, 0.0, y, 1.0, 0.0))


#: From name to a function of (image, level, sign, draws). Level 1 is magnitude 10.
OPERATIONS = {
    "AutoContrast": lambda image, level, sign, draws: autocontrast(image),
    "Equalize": lambda image, level, sign, draws: equalize(image),
    "Invert": lambda image, level, sign, draws: 255 - image,
    "Rotate": lambda image, level, sign, draws: rotate(image, 30 * level * sign),
    "Posterize": lambda image, level, sign, draws: posterize(image, min(int(4 * level), 8)),
    "Solarize": lambda image, level, sign, draws: solarize(image, int(256 * level)),
    "Color": _enhance(color),
    "Contrast": _enhance(contrast),
    "Brightness": _enhance(brightness),
    "Sharpness": _enhance(sharpness),
    "ShearX": lambda image, level, sign, draws: _shear(image, x=0.3 * level * sign),
    "ShearY": lambda image, level, sign, draws: _shear(image, y=0.3 * level * sign),
    "TranslateX": lambda image, level, sign, draws: translate(image, x=100 * level * sign),
    "TranslateY": lambda image, level, sign, draws: translate(image, y=100 * level * sign),
    "Cutout": lambda image, level, sign, draws: cutout(image, draws, int(40 * level)),
    "SolarizeAdd": lambda image, level, sign, draws: solarize_add(image, int(110 * level)),
}
