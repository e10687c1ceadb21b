"""From image bytes to what the model sees: the same code trains, evaluates, predicts and serves."""

import dataclasses
import math

import tensorflow as tf

from vitkeras.errors import InputError, nearest

#: none: as in evaluation. inception: a crop of 5-100 % of the area, resized. inception_flip: that
#: and a random mirror image. affine: turned, sheared, scaled and shifted a little (small images of
#: signs, such as digits, that neither a crop nor a mirror leaves what they are).
AUGMENTATIONS = ("none", "inception", "inception_flip", "affine")

FIXED = {"resize": "bilinear", "antialias": False, "value_range": [-1, 1]}


def check_augmentation(name):
    """Raises an InputError if there is no augmentation of this name."""
    if name not in AUGMENTATIONS:
        raise InputError(
            f"`augmentation` must be one of {AUGMENTATIONS}. Received: augmentation={name!r}."
            f"{nearest(name, AUGMENTATIONS)}"
        )


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
    Source: the paper's authors' code: straight bilinear resize without antialias, then
        (x - 127.5) / 127.5.
    """

    image_size: tuple[int, int]

    def to_json(self):
        """Returns a dict for `preprocessing.json`."""
        return {"image_size": list(self.image_size), **FIXED}

    @classmethod
    def from_json(cls, record):
        """Makes it again from `to_json`'s dict.

        Raises:
            InputError: If the record names something that this version does not do.
        """
        rest = {k: v for k, v in record.items() if k != "image_size"}
        if "image_size" not in record or rest != FIXED:
            raise InputError(
                f"A preprocessing record must hold image_size and {FIXED}. Received: {record}."
            )
        return cls(tuple(record["image_size"]))

    def pixels(self, pixels):
        """Resizes and scales images of values 0 to 255: `(..., h, w, 3)` to float32 in [-1, 1]."""
        image = tf.image.resize(tf.cast(pixels, tf.float32), self.image_size)
        return (image - 127.5) / 127.5

    def evaluation_image(self, image_bytes):
        """Returns float32 `(h, w, 3)` in [-1, 1] of one encoded image: no crop."""
        return self.pixels(decode_image(image_bytes))

    def training_image(self, image_bytes, seed, augmentation):
        """Returns one augmented image, float32 `(h, w, 3)` in [-1, 1].

        Args:
            image_bytes: Scalar string.
            seed: int32 `(2,)`; the same seed gives the same image.
            augmentation: One of `AUGMENTATIONS`.
        """
        check_augmentation(augmentation)
        if augmentation == "none":
            return self.evaluation_image(image_bytes)
        if augmentation == "affine":
            return _affine(self.evaluation_image(image_bytes), seed)
        image = self.pixels(_inception_crop(image_bytes, seed))
        if augmentation == "inception_flip":
            image = tf.image.stateless_random_flip_left_right(image, seed + [0, 1])
        return image


def _affine(image, seed):
    """Turns by up to 15 degrees, shears and scales by up to 0.15, shifts by up to an eighth."""
    turn, shear, y_scale, x_scale, y, x = tf.unstack(
        tf.random.stateless_uniform((6,), seed, -1.0, 1.0)
    )
    return move(
        image,
        turn=turn * (math.pi / 12),
        shear=shear * 0.15,
        scale=(1 + 0.15 * y_scale, 1 + 0.15 * x_scale),
        shift=(y / 8, x / 8),
    )


def move(image, turn=0.0, shear=0.0, scale=(1.0, 1.0), shift=(0.0, 0.0)):
    """Turns, shears, scales and shifts an image about its centre.

    Bilinear; what comes in from outside is black (-1).

    Args:
        image: float32 `(h, w, 3)` in [-1, 1], of static shape.
        turn: Angle in radians, counter-clockwise.
        shear: Rows are moved by this times their distance from the middle row.
        scale: (y, x): how much of the input a unit of the output spans.
        shift: (y, x) in heights and widths: how far the window on the input moves down and right.
    Returns:
        float32 of the same shape.
    """
    height, width = (float(side) for side in image.shape[:2])
    # Rows of the map from a place (x, y) of the output, seen from the centre, to one of the input.
    a, b = scale[1] * tf.cos(turn), scale[0] * (shear - tf.sin(turn))
    c, d = scale[1] * tf.sin(turn), scale[0] * tf.cos(turn)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    shift_x = middle_x - a * middle_x - b * middle_y + shift[1] * width
    shift_y = middle_y - c * middle_x - d * middle_y + shift[0] * height
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([a, b, shift_x, c, d, shift_y, 0.0, 0.0])[None],
        output_shape=image.shape[:2],
        fill_value=-1.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return moved[0]


def _inception_crop(image_bytes, seed):
    """Returns uint8 `(?, ?, 3)`: 5-100 % of the area, aspect 3/4 to 4/3.

    Of a JPEG only the crop is decoded.
    """

    def window(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((0, 0, 4)),
            seed,
            area_range=(0.05, 1.0),
            min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]

    def jpeg():
        shape = tf.concat([tf.io.extract_jpeg_shape(image_bytes)[:2], [3]], 0)  # CMYK reports 4
        return tf.image.decode_and_crop_jpeg(image_bytes, tf.stack(window(shape)), channels=3)

    def other():
        image = decode_image(image_bytes)
        y, x, height, width = window(tf.shape(image))
        return image[y : y + height, x : x + width]

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(image_bytes), jpeg, other), (None, None, 3))
