"""The preprocessing of a run: the same code in training, evaluation, prediction and serving.

Images stay uint8 up to the model, which rescales them.
"""

import dataclasses
import json
import math
from typing import Any

import tensorflow as tf

from vitkeras.data.decoding import WHITE, decode_image
from vitkeras.data.image_headers import ImageHeader
from vitkeras.errors import InputError

FIXED = {"resize": "bilinear", "value_range": [-1, 1]}


def _are_integers(values, count, low, high):
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(type(value) is int and low <= value <= high for value in values)
    )


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a run: decoding and a bilinear resize to the image size of the model.

    Args:
        image_size: `(height, width)` in pixels.
        antialias: Whether downsampling uses an antialias filter; the authors use none.
        background: Color under transparent pixels, RGB from 0 to 255.
        exif_orientation: Whether the EXIF orientation is applied.
    Source: The authors' code, https://github.com/google-research/vision_transformer: bilinear
        resize without antialias that ignores the aspect ratio, then (x - 127.5) / 127.5, which the
        model does.
    """

    image_size: tuple[int, int]
    antialias: bool = False
    background: tuple[int, int, int] = WHITE
    exif_orientation: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `preprocessing.json`."""
        return json.loads(json.dumps({**dataclasses.asdict(self), **FIXED}))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Preprocessing":
        """Creates a `Preprocessing` from the result of `to_json`.

        Raises:
            InputError: If a field is missing or has a value that this version does not implement.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        rest = {k: v for k, v in record.items() if k not in names}
        if not set(names) <= set(record) or rest != FIXED:
            raise InputError(
                f"preprocessing.json must have {', '.join(names)} and {FIXED}. Received: {record}."
            )
        size, background = record["image_size"], record["background"]
        flags = record["antialias"], record["exif_orientation"]
        if not (
            _are_integers(size, 2, 1, math.inf)
            and _are_integers(background, 3, 0, 255)
            and all(isinstance(flag, bool) for flag in flags)
        ):
            raise InputError(
                "preprocessing.json must have two sides, three colors from 0 to 255 and two "
                f"booleans. Received: {record}."
            )
        return cls(tuple(size), flags[0], tuple(background), flags[1])

    def describe(self) -> str:
        """Returns a description for people."""
        height, width = self.image_size
        orientation = "applied" if self.exif_orientation else "ignored"
        antialias = "with" if self.antialias else "without"
        return (
            f"decode to RGB on the background color {self.background}, EXIF orientation "
            f"{orientation}, bilinear resize to {height}x{width} (height x width) {antialias} "
            "antialiasing and without a crop, round to 8 bits"
        )

    def resize(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes images `(..., h, w, 3)` with values 0 to 255; returns uint8 of `image_size`."""
        if images.dtype == tf.uint8 and images.shape[-3:-1] == self.image_size:
            return images
        resized = tf.image.resize(images, self.image_size, antialias=self.antialias)
        if images.dtype != tf.uint8:  # uint8 values cannot leave 0 to 255 by interpolation
            resized = tf.clip_by_value(resized, 0.0, 255.0)
        return tf.cast(tf.round(resized), tf.uint8)

    def evaluation_image(
        self, image_bytes: tf.Tensor, header: ImageHeader | None = None
    ) -> tf.Tensor:
        """Decodes and resizes one image without augmentation; see `decode_image`.

        Returns:
            uint8 `(height, width, 3)`.
        """
        return self.resize(self.decode(image_bytes, header))

    def decode(self, image_bytes: tf.Tensor, header: ImageHeader | None = None) -> tf.Tensor:
        """Decodes one image, see `decode_image`."""
        return decode_image(image_bytes, header, self.background, self.exif_orientation)
