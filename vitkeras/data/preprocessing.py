"""From image bytes to what the model takes: the same code trains, evaluates, predicts and serves.

Images stay uint8 until the model, which scales them itself, on its device.
"""

import dataclasses

import tensorflow as tf

from vitkeras.errors import InputError

#: Pixels of the largest image that is decoded: 10,000 x 10,000, 300 MB. A header may say anything.
MAX_PIXELS = 10**8

FIXED = {"resize": "bilinear", "value_range": [-1, 1]}


def decode_image(image_bytes, pixels=None):
    """Decodes a JPEG, PNG, BMP or GIF (first frame) of any mode to RGB.

    Grayscale is repeated, alpha dropped, 16 bits cut to 8, and EXIF orientation ignored: a photo
    that a viewer would turn stays as it is stored, in training, evaluation and serving alike.

    Args:
        image_bytes: Scalar string.
        pixels: What `declared_pixels` returns for it, where that is known already.
    Returns:
        uint8 `(h, w, 3)`.
    Raises:
        tf.errors.InvalidArgumentError: If they are no such image, or its header declares more than
            `MAX_PIXELS`.
    """
    pixels = declared_pixels(image_bytes) if pixels is None else pixels
    image_bytes = not_too_large(image_bytes, pixels)
    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def not_too_large(image_bytes, pixels):
    """Returns the bytes again, once it is sure that they declare no more than `MAX_PIXELS`."""
    message = f"An image must have at most {MAX_PIXELS:,} pixels. Its header declares"
    check = tf.debugging.Assert(pixels <= MAX_PIXELS, [message, pixels])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(image_bytes)


def declared_pixels(image_bytes):
    """Returns height times width as the header has it, int64; 0 if it is of no known kind.

    Args:
        image_bytes: Scalar string.
    """

    def number(begin, length, little_endian):
        # Zeros behind, so that there is always enough to read.
        text = tf.strings.substr(image_bytes + tf.constant(b"\0" * 32), begin, length)
        digits = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)
        digits = digits if little_endian else tf.reverse(digits, [0])
        return tf.reduce_sum(digits * 256 ** tf.range(length, dtype=tf.int64))

    def starts(text):
        return tf.strings.substr(image_bytes, 0, len(text)) == text

    def jpeg():
        return tf.cast(tf.io.extract_jpeg_shape(image_bytes), tf.int64)[:2]

    def png():
        return tf.stack([number(16, 4, False), number(20, 4, False)])

    def gif():
        return tf.stack([number(6, 2, True), number(8, 2, True)])

    def bmp():
        sides = tf.stack([number(18, 4, True), number(22, 4, True)])
        return tf.minimum(sides, 2**32 - sides)  # a height below 0: rows from the top

    long_enough = tf.strings.length(image_bytes) >= 26
    sides = tf.case(
        [
            (tf.io.is_jpeg(image_bytes), jpeg),
            (long_enough & starts(b"\x89PNG"), png),
            (long_enough & starts(b"GIF8"), gif),
            (long_enough & starts(b"BM"), bmp),
        ],
        default=lambda: tf.zeros((2,), tf.int64),
        exclusive=False,
    )
    return tf.reduce_prod(sides)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a run records of its images, and the functions that follow from it.

    Args:
        image_size: `(height, width)` that the model takes.
        antialias: Whether resizing smooths an image first where it shrinks it; the authors do not.
    Source: the paper's authors' code: straight bilinear resize without antialias, then
        (x - 127.5) / 127.5, which is the model's part.
    """

    image_size: tuple[int, int]
    antialias: bool = False

    def to_json(self):
        """Returns a dict for `preprocessing.json`."""
        return {"image_size": list(self.image_size), "antialias": self.antialias, **FIXED}

    @classmethod
    def from_json(cls, record):
        """Makes it again from `to_json`'s dict.

        Raises:
            InputError: If the record names something that this version does not do.
        """
        rest = {k: v for k, v in record.items() if k not in ("image_size", "antialias")}
        if not {"image_size", "antialias"} <= set(record) or rest != FIXED:
            raise InputError(
                f"A preprocessing record must hold image_size, antialias and {FIXED}. "
                f"Received: {record}."
            )
        return cls(tuple(record["image_size"]), record["antialias"])

    def pixels(self, pixels):
        """Resizes images of values 0 to 255: `(..., h, w, 3)` to uint8 of `image_size`."""
        if pixels.dtype == tf.uint8 and pixels.shape[-3:-1] == self.image_size:
            return pixels
        image = tf.image.resize(pixels, self.image_size, antialias=self.antialias)
        if pixels.dtype != tf.uint8:  # else a mean of pixels lies among them
            image = tf.clip_by_value(image, 0.0, 255.0)
        return tf.cast(tf.round(image), tf.uint8)

    def evaluation_image(self, image_bytes, pixels=None):
        """Returns one image, not cropped, uint8 `(h, w, 3)`. `pixels` as in `decode_image`."""
        return self.pixels(decode_image(image_bytes, pixels))
