"""RandAugment out of TensorFlow ops on uint8 images: a function of the image and a seed.

Operations, ranges and the meaning of a magnitude are those that the AugReg recipes count in:
magnitude 10 is the end of each range, and larger ones go on beyond it where the operation can.
"""

import math

import tensorflow as tf

from vitkeras.errors import check_range

GRAY = (0.2989, 0.5870, 0.1140)
#: What comes in from outside.
OUTSIDE = 128


def rand_augment(image, seed, num_layers, magnitude):
    """Applies operations chosen at random, one after the other.

    Args:
        image: uint8 `(h, w, 3)`, of static shape.
        seed: int32 `(2,)`; the same seed does the same.
        num_layers: Number of operations; one may come twice.
        magnitude: Their strength, 0 to 30.
    Returns:
        uint8 `(h, w, 3)`.
    Source: Cubuk et al. 2020, "RandAugment"; the ranges of
        https://github.com/google-research/big_vision, pp/autoaugment.py. Two things differ: values
        are rounded here and cut off there, and contrast is about the mean grey of the image, as in
        PIL, where there it is about a constant.
    """
    check_range("magnitude", magnitude, 0 <= magnitude <= 30, "between 0 and 30")
    draws = tf.random.stateless_uniform((num_layers, 4), seed)
    for layer in range(num_layers):
        choice = tf.cast(draws[layer, 0] * len(OPERATIONS), tf.int32)
        image = apply(choice, image, magnitude, draws[layer, 1:])
    return image


def apply(choice, image, magnitude, draws):
    """Applies the operation of that number.

    Args:
        choice: Scalar int32, a place in `OPERATIONS`.
        image: uint8 `(h, w, 3)`, of static shape.
        magnitude: A number.
        draws: float32 `(3,)` in [0, 1): the first chooses a sign, the others a place.
    """
    sign = tf.where(draws[0] < 0.5, -1.0, 1.0)
    level, shape = magnitude / 10, image.shape

    def branch(operation):
        return lambda: tf.ensure_shape(operation(image, level, sign, draws[1:]), shape)

    branches = [branch(operation) for operation in OPERATIONS.values()]
    return tf.switch_case(tf.convert_to_tensor(choice), branches)


def _to_uint8(values):
    return tf.cast(tf.round(tf.clip_by_value(values, 0.0, 255.0)), tf.uint8)


def _rows(image):
    """Returns `(h, 3w)`: operations on it are twice as fast as with a last axis of 3."""
    return tf.reshape(image, (image.shape[0], -1))


def _along(channels, image):
    """Returns numbers `(3,)` for each value of a row of `_rows`."""
    return tf.tile(channels, [image.shape[1]])


def autocontrast(image):
    """Stretches each channel to the full range."""
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float32)  # (3,)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float32)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    values = tf.cast(_rows(image), tf.float32) * _along(scale, image) + _along(offset, image)
    return tf.reshape(_to_uint8(values), image.shape)


def equalize(image):
    """Evens out the histogram of each channel."""
    values = tf.cast(_rows(image), tf.int32) + _along(tf.constant([0, 256, 512]), image)
    values = tf.reshape(values, [-1])
    counts = tf.math.bincount(values, minlength=768, maxlength=768)
    counts = tf.reshape(counts, (3, 256))
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)  # (3,) the brightest
    pixels = tf.reduce_sum(counts, axis=1)
    step = (pixels - tf.gather(counts, last, batch_dims=1)) // 255
    divisor = tf.maximum(step, 1)[:, None]
    table = (tf.cumsum(counts, axis=1, exclusive=True) + step[:, None] // 2) // divisor
    table = tf.where(step[:, None] == 0, tf.range(256)[None], tf.clip_by_value(table, 0, 255))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1])
    return tf.reshape(tf.gather_nd(table, values[:, None]), image.shape)  # gather is slower


def posterize(image, bits):
    """Keeps the upper bits, 0 to 8."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def solarize(image, threshold):
    """Inverts what is not darker than the threshold, 0 to 256."""
    if threshold > 255:
        return image
    bright = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, bright)


def solarize_add(image, addition):
    """Adds to what is darker than 128."""
    dark = tf.cast(image < 128, tf.uint8)
    added = tf.minimum(image, tf.constant(max(255 - addition, 0), tf.uint8)) + min(addition, 255)
    return image + dark * (added - image)  # uint8 wraps, there and back


def color(image, factor):
    """Blends with the grey image: 0 is grey, 1 the image, more is more colourful."""
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3))
    grey = tf.floor(tf.matmul(pixels, tf.constant([GRAY] * 3, shape=(3, 3)), transpose_b=True))
    return tf.reshape(_to_uint8(grey + factor * (pixels - grey)), image.shape)


def contrast(image, factor):
    """Blends with the mean grey."""
    mean = tf.reduce_mean(tf.cast(image, tf.float32), axis=(0, 1))  # (3,)
    mean = tf.floor(tf.tensordot(mean, tf.constant(GRAY), 1) + 0.5)
    return _to_uint8(tf.cast(image, tf.float32) * factor + (1 - factor) * mean)


def brightness(image, factor):
    """Blends with black."""
    return _to_uint8(tf.cast(image, tf.float32) * factor)


def sharpness(image, factor):
    """Blends with a smoothed image; the border stays."""
    pixels = tf.cast(image, tf.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    middle = pixels[1:-1, 1:-1]
    smooth = tf.floor((sums + 4 * middle) / 13)
    inside = _to_uint8(smooth + factor * (middle - smooth))
    inside = tf.concat([image[1:-1, :1], inside, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], inside, image[-1:]], axis=0)


def warp(image, matrix):
    """Takes each pixel from where `matrix` (a, b, c, d, e, f) maps its place (x, y) to.

    From (a x + b y + c, d x + e y + f), the nearest pixel.
    """
    height, width = image.shape[:2]
    y, x = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    a, b, c, d, e, f = (tf.cast(number, tf.float32) for number in matrix)

    def nearest(along_x, along_y, offset):
        return tf.cast(tf.floor(along_x * x + (along_y * y + offset) + 0.5), tf.int32)  # (h, w)

    row, column = nearest(d, e, f), nearest(a, b, c)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = tf.where(inside, row * width + column, height * width)
    outside = tf.fill((1, 3), tf.constant(OUTSIDE, tf.uint8))
    pixels = tf.concat([tf.reshape(image, (-1, 3)), outside], axis=0)
    return tf.reshape(tf.gather(pixels, tf.reshape(place, [-1])), image.shape)


def translate(image, x=0.0, y=0.0):
    """Moves the window on the image by whole pixels, to the right and down."""
    moves = [tf.cast(tf.round(move), tf.int32) for move in (y, x)]
    margins = [[tf.maximum(-move, 0), tf.maximum(move, 0)] for move in moves]
    padded = tf.pad(image, [*margins, [0, 0]], constant_values=OUTSIDE)
    return tf.slice(padded, [margins[0][1], margins[1][1], 0], image.shape)


def rotate(image, degrees):
    """Turns the image about its centre, counter-clockwise."""
    height, width = image.shape[:2]
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    return warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def cutout(image, draws, half):
    """Puts a grey square, 2 `half` wide, about a place drawn from the whole image."""
    height, width = image.shape[:2]

    def inside(draw, side):
        distance = tf.range(side) - tf.cast(draw * side, tf.int32)
        return (distance >= -half) & (distance < half)

    hole = inside(draws[0], height)[:, None] & tf.repeat(inside(draws[1], width), 3)  # (h, 3w)
    cut = tf.where(hole, tf.constant(OUTSIDE, tf.uint8), _rows(image))
    return tf.reshape(cut, image.shape)


def _enhance(operation):
    return lambda image, level, sign, draws: operation(image, level * 1.8 + 0.1)


def _shear(image, x=0.0, y=0.0):
    return warp(image, (1.0, x, 0.0, y, 1.0, 0.0))


#: From name to a function of (image, level, sign, draws); a level of 1 is magnitude 10.
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
