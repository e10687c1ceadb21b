"""What `experiments.benchmark input` runs: one photograph, cropped and augmented again and again.

Each job is a function of a number of images that returns when so many are done.
"""

import io
import multiprocessing
import random

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from vitkeras import data

LAYERS, MAGNITUDE = 2, 15
WORKERS = 2


def photograph():
    """Returns the bytes of a JPEG of 640x427 pixels, which scikit-learn ships."""
    from sklearn.datasets import load_sample_image

    return tf.io.encode_jpeg(load_sample_image("china.jpg"), quality=95).numpy()


def tensorflow_job(image_bytes, side, randaug=None):
    """Returns a job of this package's pipeline, with "ours", "keras" or no RandAugment."""
    layers = LAYERS if randaug == "ours" else 0
    augmentation = data.Augmentation(
        "inception_flip", randaug_layers=layers, randaug_magnitude=MAGNITUDE
    )
    preprocessing = data.Preprocessing((side, side))
    layer = None
    if randaug == "keras":
        layer = keras.layers.RandAugment((0, 255), num_ops=LAYERS, factor=min(MAGNITUDE / 10, 1.0))

    def image(number):
        seed = tf.stack([tf.cast(number, tf.int32), 1])
        out = augmentation.image(preprocessing, image_bytes, seed)
        return out if layer is None else tf.cast(layer(tf.cast(out, tf.float32)), tf.uint8)

    images = tf.data.Dataset.counter().map(image, num_parallel_calls=2 * WORKERS)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1  # as in `vitkeras.data.pipeline`
    batches = images.batch(10, drop_remainder=True).prefetch(2).with_options(options)

    def job(count):
        for _ in batches.take(count // 10):  # begun anew: nothing is made while another job runs
            pass

    return job


def _pil_enhance(kind):
    return lambda image, level, sign: kind(image).enhance(1.8 * level + 0.1)


def _pil_warp(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))


def _pil_solarize_add(image, level, sign):
    values = np.asarray(image)
    added = np.minimum(values.astype(np.int16) + int(110 * level), 255).astype(np.uint8)
    return Image.fromarray(np.where(values < 128, added, values))


def _pil_cutout(image, level, sign):
    values, half = np.array(image), int(40 * level)
    y, x = (random.randrange(side) for side in values.shape[:2])
    values[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    return Image.fromarray(values)


#: The same operations and strengths as `vitkeras.data.randaugment.OPERATIONS`.
PIL_OPERATIONS = (
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: ImageOps.invert(image),
    lambda image, level, sign: image.rotate(30 * level * sign, fillcolor=(128, 128, 128)),
    lambda image, level, sign: ImageOps.posterize(image, max(min(int(4 * level), 8), 1)),
    lambda image, level, sign: ImageOps.solarize(image, int(256 * level)),
    _pil_enhance(ImageEnhance.Color),
    _pil_enhance(ImageEnhance.Contrast),
    _pil_enhance(ImageEnhance.Brightness),
    _pil_enhance(ImageEnhance.Sharpness),
    lambda image, level, sign: _pil_warp(image, (1, 0.3 * level * sign, 0, 0, 1, 0)),
    lambda image, level, sign: _pil_warp(image, (1, 0, 0, 0.3 * level * sign, 1, 0)),
    lambda image, level, sign: _pil_warp(image, (1, 0, 100 * level * sign, 0, 1, 0)),
    lambda image, level, sign: _pil_warp(image, (1, 0, 0, 0, 1, 100 * level * sign)),
    _pil_cutout,
    _pil_solarize_add,
)


def _pil_image(image_bytes, side):
    image = Image.open(io.BytesIO(image_bytes))
    width, height = image.size
    area = random.uniform(0.05, 1.0) * width * height
    aspect = random.uniform(3 / 4, 4 / 3)
    w, h = (
        min(int((area * a) ** 0.5), most) for a, most in ((aspect, width), (1 / aspect, height))
    )
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    image = image.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    for _ in range(LAYERS):
        operation = random.choice(PIL_OPERATIONS)
        image = operation(image, MAGNITUDE / 10, random.choice((-1, 1)))
    return np.asarray(image)


def _pil_worker(image_bytes, side, wanted, done):
    for count in iter(wanted.get, None):
        done.put(sum(_pil_image(image_bytes, side).shape == (side, side, 3) for _ in range(count)))


class PilJob:
    """A job of PIL and NumPy in worker processes; images are not even sent back.

    Args:
        image_bytes: A JPEG.
        side: Of the images, in pixels.
    """

    def __init__(self, image_bytes, side):
        context = multiprocessing.get_context("spawn")
        self.wanted, self.done = context.Queue(), context.Queue()
        self.workers = [
            context.Process(target=_pil_worker, args=(image_bytes, side, self.wanted, self.done))
            for _ in range(WORKERS)
        ]
        for worker in self.workers:
            worker.start()

    def __call__(self, count):
        """Has the workers make so many images."""
        for _ in range(count // 10):
            self.wanted.put(10)
        for _ in range(count // 10):
            if self.done.get() != 10:
                raise RuntimeError("a worker made fewer images")

    def close(self):
        """Ends the workers."""
        for _ in self.workers:
            self.wanted.put(None)
        for worker in self.workers:
            worker.join()
