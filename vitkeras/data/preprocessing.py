"""Decoding and resizing of images: the same code in training, evaluation, prediction and serving.

Images stay uint8 up to the model, which rescales them.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from vitkeras.errors import InputError

#: Maximum number of pixels of an image: 10,000 x 10,000, 300 MB decoded. A small file may declare
#: any size in its header.
MAX_PIXELS = 10**8

FIXED = {"resize": "bilinear", "value_range": [-1, 1]}


def decode_image(image_bytes: tf.Tensor, num_pixels: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP or GIF (first frame) of any mode to RGB.

    Grayscale is repeated over the channels, alpha is dropped, 16 bits are reduced to 8. The EXIF
    orientation is ignored, in training, evaluation and serving alike.

    Args:
        image_bytes: Scalar string.
        num_pixels: Result of `declared_pixels` for the image, if the caller has it.
    Returns:
        uint8 `(h, w, 3)`.
    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no such image, or the header declares more
            than `MAX_PIXELS`.
    """
    num_pixels = declared_pixels(image_bytes) if num_pixels is None else num_pixels
    image_bytes = assert_max_pixels(image_bytes, num_pixels)
    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def assert_max_pixels(image_bytes: tf.Tensor, num_pixels: tf.Tensor) -> tf.Tensor:
    """Returns `image_bytes`; fails when executed if `num_pixels` exceeds `MAX_PIXELS`."""
    message = f"An image must have at most {MAX_PIXELS:,} pixels. Its header declares"
    check = tf.debugging.Assert(num_pixels <= MAX_PIXELS, [message, num_pixels])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(image_bytes)


def declared_pixels(image_bytes: tf.Tensor) -> tf.Tensor:
    """Returns height times width from the header of an image, int64; 0 for an unknown format.

    Args:
        image_bytes: Scalar string.
    """

    def number(begin, length, little_endian):
        # Padded with zeros, so that a short file can be read too.
        text = tf.strings.substr(image_bytes + tf.constant(b"\0" * 32), begin, length)
        digits = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)
        digits = digits if little_endian else tf.reverse(digits, [0])
        return tf.reduce_sum(digits * 256 ** tf.range(length, dtype=tf.int64))

    def starts_with(text):
        return tf.strings.substr(image_bytes, 0, len(text)) == text

    def jpeg():
        return tf.cast(tf.io.extract_jpeg_shape(image_bytes), tf.int64)[:2]

    def png():
        return tf.stack([number(16, 4, False), number(20, 4, False)])

    def gif():
        return tf.stack([number(6, 2, True), number(8, 2, True)])

    def bmp():
        sides = tf.stack([number(18, 4, True), number(22, 4, True)])
        return tf.minimum(sides, 2**32 - sides)  # a negative height means rows from the top

    long_enough = tf.strings.length(image_bytes) >= 26
    sides = tf.case(
        [
            (tf.io.is_jpeg(image_bytes), jpeg),
            (long_enough & starts_with(b"\x89PNG"), png),
            (long_enough & starts_with(b"GIF8"), gif),
            (long_enough & starts_with(b"BM"), bmp),
        ],
        default=lambda: tf.zeros((2,), tf.int64),
        exclusive=False,
    )
    return tf.reduce_prod(sides)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a run: a bilinear resize to the image size of the model.

    Args:
        image_size: `(height, width)` in pixels.
        antialias: Whether downsampling uses an antialias filter; the authors use none.
    Source: The authors' code, https://github.com/google-research/vision_transformer: bilinear
        resize without antialias that ignores the aspect ratio, then (x - 127.5) / 127.5, which the
        model does.
    """

    image_size: tuple[int, int]
    antialias: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `preprocessing.json`."""
        return {"image_size": list(self.image_size), "antialias": self.antialias, **FIXED}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Preprocessing":
        """Creates a `Preprocessing` from the result of `to_json`.

        Raises:
            InputError: If a field is missing or has a value that this version does not implement.
        """
        rest = {k: v for k, v in record.items() if k not in ("image_size", "antialias")}
        if not {"image_size", "antialias"} <= set(record) or rest != FIXED:
            raise InputError(
                f"preprocessing.json must have image_size, antialias and {FIXED}. "
                f"Received: {record}."
            )
        return cls(tuple(record["image_size"]), record["antialias"])

    def resize(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes images `(..., h, w, 3)` with values 0 to 255; returns uint8 of `image_size`."""
        if images.dtype == tf.uint8 and images.shape[-3:-1] == self.image_size:
            return images
        resized = tf.image.resize(images, self.image_size, antialias=self.antialias)
        if images.dtype != tf.uint8:  # uint8 values cannot leave 0 to 255 by interpolation
            resized = tf.clip_by_value(resized, 0.0, 255.0)
        return tf.cast(tf.round(resized), tf.uint8)

    def evaluation_image(
        self, image_bytes: tf.Tensor, num_pixels: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Decodes and resizes one image without augmentation; see `decode_image`.

        Returns:
            uint8 `(height, width, 3)`.
        """
        return self.resize(decode_image(image_bytes, num_pixels))
