"""What training does to images: a crop and more to each, and mixing within a batch.

All of it is a function of a seed, so a run that was stopped goes on with the images that it would
have seen.
"""

import dataclasses
import math

import tensorflow as tf

from vitkeras.data.mixing import mix
from vitkeras.data.preprocessing import decode_image, not_too_large
from vitkeras.data.randaugment import GRAY, rand_augment
from vitkeras.errors import InputError, check_range, nearest

#: none: as in evaluation. inception: a crop of 5-100 % of the area, resized. inception_flip: that
#: and a random mirror image. affine: turned, sheared, scaled and shifted a little (small images of
#: signs, such as digits, that neither a crop nor a mirror leaves what they are).
CROPS = ("none", "inception", "inception_flip", "affine")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What becomes of a training image, in this order.

    Args:
        crop: One of `CROPS`.
        color_jitter: Brightness, contrast and saturation are each multiplied by up to 1 plus or
            minus this.
        randaug_layers, randaug_magnitude: RandAugment, as AugReg counts; 0 layers for none.
        erasing_rate: Share of the images of which a rectangle is noise.
        mixup_alpha: Of the beta distribution that mixup draws from; 0 for none.
        mixup_per_example: Whether each example has a share of its own, not each batch.
        cutmix_alpha: Likewise of CutMix. With both, each batch gets one of them.
    Raises:
        InputError: If a number is out of range or the crop is unknown.
    Source: Steiner et al. 2021 (mixup and RandAugment); Zhong et al. 2020, "Random Erasing"; Yun et
        al. 2019, "CutMix".
    """

    crop: str = "none"
    color_jitter: float = 0.0
    randaug_layers: int = 0
    randaug_magnitude: float = 10
    erasing_rate: float = 0.0
    mixup_alpha: float = 0.0
    mixup_per_example: bool = False
    cutmix_alpha: float = 0.0

    def __post_init__(self):
        """Checks what it was given."""
        if self.crop not in CROPS:
            raise InputError(
                f"`augmentation` must be one of {CROPS}. Received: augmentation={self.crop!r}."
                f"{nearest(self.crop, CROPS)}"
            )
        for name, low, high, rule in (
            ("color_jitter", 0, 1, "between 0 and 1"),
            ("randaug_layers", 0, 16, "between 0 and 16"),
            ("randaug_magnitude", 0, 30, "between 0 and 30"),
            ("erasing_rate", 0, 1, "between 0 and 1"),
            ("mixup_alpha", 0, math.inf, "0 or more"),
            ("cutmix_alpha", 0, math.inf, "0 or more"),
        ):
            value = getattr(self, name)
            check_range(name, value, low <= value <= high, rule)

    @property
    def mixes(self):
        """Whether labels become shares of classes."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def image(self, preprocessing, image_bytes, seed):
        """Returns one augmented image, uint8 `(h, w, 3)`.

        Args:
            preprocessing: The run's `Preprocessing`.
            image_bytes: Scalar string.
            seed: int32 `(2,)`; the same seed gives the same image.
        """
        if self.crop in ("none", "affine"):
            image = preprocessing.evaluation_image(image_bytes)
            image = _affine(image, seed) if self.crop == "affine" else image
        else:
            image = preprocessing.pixels(_inception_crop(image_bytes, seed))
        if self.crop == "inception_flip":
            image = tf.image.stateless_random_flip_left_right(image, seed + [0, 1])
        fold = tf.random.experimental.stateless_fold_in
        if self.color_jitter:
            image = _color_jitter(image, fold(seed, 1), self.color_jitter)
        if self.randaug_layers:
            image = rand_augment(image, fold(seed, 2), self.randaug_layers, self.randaug_magnitude)
        if self.erasing_rate:
            image = _erase(image, fold(seed, 3), self.erasing_rate)
        return image

    def batch(self, images, labels, seed, num_classes, share=None):
        """Returns a batch with its images mixed, and labels `(b, classes)` where they are.

        `share` tells which part of the batch it is; None for the whole.
        """
        if not self.mixes:
            return images, labels
        labels = tf.one_hot(labels, num_classes)
        return mix(
            images, labels, seed, self.mixup_alpha, self.mixup_per_example, self.cutmix_alpha, share
        )


def _color_jitter(image, seed, strength):
    """Multiplies brightness, contrast and saturation, in this order."""
    draws = tf.random.stateless_uniform((3,), seed, 1 - strength, 1 + strength)
    bright, contrast, saturation = tf.unstack(draws)
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3)) * bright
    grey = tf.constant(GRAY)[:, None]  # (3, 1)
    mean = tf.reduce_mean(tf.matmul(pixels, grey))
    pixels = mean + contrast * (pixels - mean)
    grey = tf.matmul(pixels, grey)  # (h*w, 1)
    pixels = tf.clip_by_value(grey + saturation * (pixels - grey), 0.0, 255.0)
    return tf.reshape(tf.cast(tf.round(pixels), tf.uint8), image.shape)


def _erase(image, seed, rate):
    """Fills a rectangle with noise: 2 to 33 % of the area, aspect 0.3 to 3.3."""
    height, width = image.shape[:2]
    draws = tf.random.stateless_uniform((5,), seed)
    area = (0.02 + 0.31 * draws[1]) * (height * width)
    aspect = tf.exp((2 * draws[2] - 1) * math.log(1 / 0.3))

    def place(side, length, draw):
        length = tf.minimum(tf.cast(tf.round(length), tf.int32), side)
        begin = tf.cast(draw * tf.cast(side - length + 1, tf.float32), tf.int32)
        at = tf.range(side)
        return (at >= begin) & (at < begin + length)

    def erased():
        rows = place(height, tf.sqrt(area * aspect), draws[3])
        columns = place(width, tf.sqrt(area / aspect), draws[4])
        hole = tf.cast(rows[:, None] & columns, tf.uint8)[..., None]  # (h, w, 1)
        noise = tf.random.stateless_uniform(image.shape, seed + [0, 1], 0, 256, tf.int32)
        return image * (1 - hole) + tf.cast(noise, tf.uint8) * hole

    return tf.cond(draws[0] < rate, erased, lambda: image)


def _affine(image, seed):
    """Turns by up to 15 degrees, shears and scales by up to 0.15, shifts by up to an eighth."""
    turn, shear, y_scale, x_scale, y, x = tf.unstack(
        tf.random.stateless_uniform((6,), seed, -1.0, 1.0)
    )
    moved = move(
        tf.cast(image, tf.float32),
        turn=turn * (math.pi / 12),
        shear=shear * 0.15,
        scale=(1 + 0.15 * y_scale, 1 + 0.15 * x_scale),
        shift=(y / 8, x / 8),
    )
    return tf.cast(tf.round(moved), tf.uint8)


def move(image, turn=0.0, shear=0.0, scale=(1.0, 1.0), shift=(0.0, 0.0)):
    """Turns, shears, scales and shifts an image about its centre.

    Bilinear; what comes in from outside is black (0).

    Args:
        image: float32 `(h, w, 3)`, of static shape.
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
        fill_value=0.0,
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
        sides = tf.io.extract_jpeg_shape(image_bytes)[:2]
        checked = not_too_large(image_bytes, tf.reduce_prod(tf.cast(sides, tf.int64)))
        shape = tf.concat([sides, [3]], 0)  # CMYK reports 4 channels
        return tf.image.decode_and_crop_jpeg(checked, tf.stack(window(shape)), channels=3)

    def other():
        image = decode_image(image_bytes)
        y, x, height, width = window(tf.shape(image))
        return image[y : y + height, x : x + width]

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(image_bytes), jpeg, other), (None, None, 3))
