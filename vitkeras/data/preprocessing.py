"""From image bytes to what the model takes: the same code trains, evaluates, predicts and serves.

Images stay uint8 until the model, which scales them itself, on its device.
"""

import dataclasses

import tensorflow as tf

from vitkeras.errors import InputError

FIXED = {"resize": "bilinear", "value_range": [-1, 1]}


def decode_image(image_bytes):
    """Decodes a JPEG, PNG, BMP or GIF (first frame) of any mode to RGB.

    Grayscale is repeated, alpha dropped, 16 bits cut to 8, and EXIF orientation ignored: a photo
    that a viewer would turn stays as it is stored, in training, evaluation and serving alike.

    Args:
        image_bytes: Scalar string.
    Returns:
        uint8 `(h, w, 3)`.
    """
    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


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
        return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)

    def evaluation_image(self, image_bytes):
        """Returns uint8 `(h, w, 3)` of one encoded image: no crop."""
        return self.pixels(decode_image(image_bytes))
