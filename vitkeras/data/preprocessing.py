"""The preprocessing of a run: the same code in training, evaluation, prediction and serving.

Images stay uint8 up to the model, which rescales them.
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import tensorflow as tf

from vitkeras.arguments import check_float, check_range
from vitkeras.data.cropping import resize_and_crop, resize_bilinear
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
        crop_fraction: None to resize without regard to the aspect ratio. Otherwise the aspect ratio
            is kept: the image is resized to cover `image_size / crop_fraction`, rounded down, and
            cropped in the center.
    Raises:
        InputError: If `crop_fraction` is not above 0 and at most 1.
    Source: The authors' code, https://github.com/google-research/vision_transformer: bilinear
        resize without antialias that ignores the aspect ratio, then (x - 127.5) / 127.5, which the
        model does. `crop_fraction` is `crop_pct` of timm.
    """

    image_size: tuple[int, int]
    antialias: bool = False
    background: tuple[int, int, int] = WHITE
    exif_orientation: bool = True
    crop_fraction: float | None = None

    def __post_init__(self):
        if self.crop_fraction is not None:
            rule = "above 0 and at most 1"
            value = check_float("crop_fraction", self.crop_fraction, 1e-9, math.inf, rule)
            check_range("crop_fraction", value, value <= 1, rule)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `preprocessing.json`."""
        record = dataclasses.asdict(self) | FIXED
        if self.crop_fraction is None:  # as versions without this field wrote it
            del record["crop_fraction"]
        return json.loads(json.dumps(record))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Preprocessing":
        """Creates a `Preprocessing` from the result of `to_json`.

        Raises:
            InputError: If a field is missing or has a value that this version does not implement.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "crop_fraction"]
        rest = {k: v for k, v in record.items() if k not in (*names, "crop_fraction")}
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
        return cls(tuple(size), flags[0], tuple(background), flags[1], record.get("crop_fraction"))

    def describe(self) -> str:
        """Returns a description for people."""
        height, width = self.image_size
        orientation = "applied" if self.exif_orientation else "ignored"
        antialias = "with" if self.antialias else "without"
        if self.crop_fraction is None:
            resize = (
                f"{height}x{width} (height x width) {antialias} antialiasing and without a crop"
            )
        else:
            rows, columns = covered_size(self.image_size, self.crop_fraction)
            resize = (
                f"cover {rows}x{columns} (height x width) with the aspect ratio kept, {antialias} "
                f"antialiasing, central crop of {height}x{width}"
            )
        return (
            f"decode to RGB on the background color {self.background}, EXIF orientation "
            f"{orientation}, bilinear resize to {resize}, round to 8 bits"
        )

    def resize(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes and, with `crop_fraction`, crops images.

        Args:
            images: `(h, w, 3)` or `(b, h, w, 3)` with values 0 to 255.
        Returns:
            uint8 of `image_size`.
        """
        if self.crop_fraction is None:
            return self.squash(images)
        if self.crop_fraction == 1 and self._has_image_size(images):
            return images
        return self.cover(images, covered_size(self.image_size, self.crop_fraction))

    def squash(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes images without regard to the aspect ratio; see `resize`."""
        if self._has_image_size(images):
            return images
        resized = resize_bilinear(images, self.image_size, self.antialias)
        return _to_uint8(resized, images.dtype)

    def cover(
        self, images: tf.Tensor, covered: tuple[int, int], draws: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Resizes images with their aspect ratio and crops them to `image_size`; see `resize`.

        Args:
            images: As in `resize`.
            covered: See `resize_and_crop`.
            draws: See `resize_and_crop`.
        """
        crop = resize_and_crop(images, self.image_size, covered, self.antialias, draws)
        return _to_uint8(crop, images.dtype)

    def visible_part(self, image: np.ndarray) -> np.ndarray:
        """Returns the part of a decoded image that `resize` shows, without a resize.

        Args:
            image: `(h, w, 3)`.
        """
        if self.crop_fraction is None:
            return image
        sides, size = np.array(image.shape[:2]), np.array(self.image_size)
        scale = max(covered_size(self.image_size, self.crop_fraction) / sides)
        shown = np.clip(np.round(size / scale), 1, sides).astype(int)
        (top, left), (height, width) = (sides - shown) // 2, shown
        return image[top : top + height, left : left + width]

    def _has_image_size(self, images):
        """Returns whether images need no resize."""
        return images.dtype == tf.uint8 and images.shape[-3:-1] == self.image_size

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


def covered_size(image_size: tuple[int, int], crop_fraction: float) -> tuple[int, int]:
    """Returns the size that a resized image covers before the central crop, `(height, width)`."""
    height, width = (math.floor(side / crop_fraction) for side in image_size)
    return height, width


def _to_uint8(resized, dtype):
    """Rounds resized images; `dtype` is that before the resize."""
    if dtype != tf.uint8:  # uint8 values cannot leave 0 to 255 by interpolation
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    return tf.cast(tf.round(resized), tf.uint8)
