"""Augmentation of training images: per image, and mixup or CutMix within a batch.

All of it is a function of a seed, so that a resumed run trains on the same images.
"""

import dataclasses
import math

import tensorflow as tf

from vitkeras.arguments import check_choice, check_float, check_int, check_range
from vitkeras.data.decoding import assert_decodable
from vitkeras.data.image_headers import read_header
from vitkeras.data.mixing import mix
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.data.randaugment import GRAY, rand_augment
from vitkeras.data.sharding import HostShard

#: none: as in evaluation. flip_only: as in evaluation, and a random horizontal flip.
#: resize_and_flip: resized to 8/7 of the image size, a random crop of the image size and a random
#: flip. inception: a random crop of 5-100 % of the area, resized. inception_flip: the same and a
#: random flip. affine: a small random rotation, shear, scale and translation, for symbols such as
#: digits, which crops and flips would change.
CROPS = ("none", "flip_only", "resize_and_flip", "inception", "inception_flip", "affine")
FLIPPED = ("flip_only", "resize_and_flip", "inception_flip")
#: 256 for an image size of 224.
ENLARGEMENT = 8 / 7


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of a run. Its steps are applied in this order.

    Args:
        crop: One of `CROPS`.
        color_jitter: Strength s; brightness, contrast and saturation are each multiplied by a
            factor from [1 - s, 1 + s].
        randaug_layers: Number of RandAugment operations; 0 for no RandAugment.
        randaug_magnitude: Magnitude of these, 0 to 30, on the scale of AugReg.
        erasing_rate: Probability that a rectangle of an image is replaced by noise.
        mixup_alpha: Parameter of the beta distribution of mixup's coefficient; 0 for no mixup.
        mixup_per_example: Whether each example has its own coefficient instead of each batch.
        cutmix_alpha: The same as `mixup_alpha` for CutMix. If both are positive, each batch gets
            one of them at random.
    Raises:
        InputError: If an argument is out of range.
    Source: Steiner et al. 2021 (mixup and RandAugment); Zhong et al. 2020, "Random Erasing"; Yun et
        al. 2019, "CutMix". `resize_and_flip` is `resize(256)|random_crop(224)|flip_lr` of
        https://github.com/google-research/big_vision.
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
        check_choice("crop", self.crop, CROPS)
        check_int("randaug_layers", self.randaug_layers, 0)
        for name, high in (
            ("color_jitter", 1),
            ("randaug_layers", 16),
            ("randaug_magnitude", 30),
            ("erasing_rate", 1),
        ):
            rule = f"between 0 and {high}"
            value = check_float(name, getattr(self, name), 0, math.inf, rule)
            check_range(name, value, value <= high, rule)
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_float(name, getattr(self, name), 0, math.inf, "0 or more")

    @property
    def mixes(self) -> bool:
        """Whether labels become class probabilities."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def image(
        self, preprocessing: Preprocessing, image_bytes: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Decodes, augments and resizes one image.

        Args:
            preprocessing: The preprocessing of the run.
            image_bytes: Scalar string.
            seed: int32 `(2,)`.
        Returns:
            uint8 `(h, w, 3)`.
        """
        if self.crop.startswith("inception"):
            image = preprocessing.squash(_inception_crop(preprocessing, image_bytes, seed))
        elif self.crop == "resize_and_flip":
            image = _random_crop(preprocessing, image_bytes, seed)
        else:
            image = preprocessing.evaluation_image(image_bytes)
        if self.crop == "affine":
            image = _random_affine(image, seed)
        if self.crop in FLIPPED:
            image = tf.image.stateless_random_flip_left_right(image, seed + [0, 1])
        fold = tf.random.experimental.stateless_fold_in
        if self.color_jitter:
            image = _color_jitter(image, fold(seed, 1), self.color_jitter)
        if self.randaug_layers:
            image = rand_augment(image, fold(seed, 2), self.randaug_layers, self.randaug_magnitude)
        if self.erasing_rate:
            image = _erase(image, fold(seed, 3), self.erasing_rate)
        return image

    def batch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        num_classes: int,
        shard: HostShard | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch, see `mix`.

        Args:
            images: uint8 `(b, h, w, 3)`.
            labels: int32 `(b,)`.
            seed: int32 `(2,)`, the seed of the batch.
            num_classes: Number of classes.
            shard: The part of a global batch that `images` is; None for a complete batch.
        Returns:
            Images and labels `(b, classes)`; the arguments if the augmentation does not mix.
        """
        if not self.mixes:
            return images, labels
        return mix(
            images, tf.one_hot(labels, num_classes), seed, self.mixup_alpha,
            self.mixup_per_example, self.cutmix_alpha, shard,
        )  # fmt: skip


def _color_jitter(image, seed, strength):
    factors = tf.random.stateless_uniform((3,), seed, 1 - strength, 1 + strength)
    brightness, contrast, saturation = tf.unstack(factors)
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3)) * brightness
    gray = tf.constant(GRAY)[:, None]  # (3, 1)
    mean = tf.reduce_mean(tf.matmul(pixels, gray))
    pixels = mean + contrast * (pixels - mean)
    gray = tf.matmul(pixels, gray)  # (h*w, 1)
    pixels = tf.clip_by_value(gray + saturation * (pixels - gray), 0.0, 255.0)
    return tf.reshape(tf.cast(tf.round(pixels), tf.uint8), image.shape)


def _erase(image, seed, rate):
    """Fills a rectangle with noise: 2 to 33 % of the area, aspect ratio 0.3 to 3.3."""
    height, width = image.shape[:2]
    draws = tf.random.stateless_uniform((5,), seed)
    area = (0.02 + 0.31 * draws[1]) * (height * width)
    aspect = tf.exp((2 * draws[2] - 1) * math.log(1 / 0.3))

    def interval(side, length, draw):
        length = tf.minimum(tf.cast(tf.round(length), tf.int32), side)
        begin = tf.cast(draw * tf.cast(side - length + 1, tf.float32), tf.int32)
        index = tf.range(side)
        return (index >= begin) & (index < begin + length)

    def erased():
        rows = interval(height, tf.sqrt(area * aspect), draws[3])
        columns = interval(width, tf.sqrt(area / aspect), draws[4])
        mask = tf.cast(rows[:, None] & columns, tf.uint8)[..., None]  # (h, w, 1)
        noise = tf.random.stateless_uniform(image.shape, seed + [0, 1], 0, 256, tf.int32)
        return image * (1 - mask) + tf.cast(noise, tf.uint8) * mask

    return tf.cond(draws[0] < rate, erased, lambda: image)


def _random_affine(image, seed):
    """Rotates by up to 15 degrees, shears and scales by up to 0.15, translates by up to 1/8."""
    angle, shear, y_scale, x_scale, y, x = tf.unstack(
        tf.random.stateless_uniform((6,), seed, -1.0, 1.0)
    )
    image = affine_transform(
        tf.cast(image, tf.float32),
        angle=angle * (math.pi / 12),
        shear=shear * 0.15,
        scale=(1 + 0.15 * y_scale, 1 + 0.15 * x_scale),
        translation=(y / 8, x / 8),
    )
    return tf.cast(tf.round(image), tf.uint8)


def affine_transform(
    image: tf.Tensor,
    angle: float | tf.Tensor = 0.0,
    shear: float | tf.Tensor = 0.0,
    scale: tuple[float | tf.Tensor, float | tf.Tensor] = (1.0, 1.0),
    translation: tuple[float | tf.Tensor, float | tf.Tensor] = (0.0, 0.0),
) -> tf.Tensor:
    """Rotates, shears, scales and translates an image about its center, bilinearly.

    Pixels outside of the image are 0.

    Args:
        image: float32 `(h, w, 3)` of static shape.
        angle: Rotation in radians, counterclockwise.
        shear: Horizontal offset per unit of distance from the center row.
        scale: (y, x): length in the input that a unit of length in the output covers.
        translation: (y, x): offset of the sampled window in the input, down and right, as a
            fraction of height and width.
    Returns:
        float32 of the same shape.
    """
    height, width = (float(side) for side in image.shape[:2])
    # Relative to the center, output (x, y) is sampled at input (a x + b y, c x + d y).
    a, b = scale[1] * tf.cos(angle), scale[0] * (shear - tf.sin(angle))
    c, d = scale[1] * tf.sin(angle), scale[0] * tf.cos(angle)
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    offset_x = center_x - a * center_x - b * center_y + translation[1] * width
    offset_y = center_y - c * center_x - d * center_y + translation[0] * height
    transformed = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([a, b, offset_x, c, d, offset_y, 0.0, 0.0])[None],
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return transformed[0]


def _random_crop(preprocessing, image_bytes, seed):
    """Returns a random crop of an image that is resized to `ENLARGEMENT` times the image size.

    If the aspect ratio is kept, the resized image covers that size.
    """
    size = preprocessing.image_size
    enlarged = tuple(round(side * ENLARGEMENT) for side in size)
    if preprocessing.crop_fraction is None:
        larger = dataclasses.replace(preprocessing, image_size=enlarged)
        return tf.image.stateless_random_crop(
            larger.evaluation_image(image_bytes), (*size, 3), seed
        )
    draws = tf.random.stateless_uniform((2,), seed)
    return preprocessing.cover(preprocessing.decode(image_bytes), enlarged, draws)


def _inception_crop(preprocessing, image_bytes, seed):
    """Returns a crop, uint8 `(?, ?, 3)`: 5-100 % of the area, aspect ratio 3/4 to 4/3.

    Only the crop of a JPEG is decoded, unless it must be rotated.
    """

    def sample_box(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((0, 0, 4)),
            seed,
            area_range=(0.05, 1.0),
            min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]

    header = read_header(image_bytes)

    def crop_jpeg():
        checked = assert_decodable(image_bytes, header)
        sides = tf.io.extract_jpeg_shape(checked)[:2]
        shape = tf.concat([sides, [3]], 0)  # extract_jpeg_shape returns 4 channels for CMYK
        return tf.image.decode_and_crop_jpeg(checked, tf.stack(sample_box(shape)), channels=3)

    def crop_other():
        image = preprocessing.decode(image_bytes, header)
        y, x, height, width = sample_box(tf.shape(image))
        return image[y : y + height, x : x + width]

    crops_jpeg = header.is_jpeg
    if preprocessing.exif_orientation:
        crops_jpeg &= header.orientation == 1
    image = tf.cond(crops_jpeg, crop_jpeg, crop_other)
    return tf.ensure_shape(image, (None, None, 3))
