"""Random crops and RandAugment with Pillow and NumPy in worker processes. No TensorFlow."""

import io
import multiprocessing
import random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_LAYERS, MAGNITUDE = 2, 15
WORKERS = 2
GRAY = (128, 128, 128)


def _enhance(kind):
    return lambda image, level, sign: kind(image).enhance(1.8 * level + 0.1)


def _affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)


def _solarize_add(image, level, sign):
    values = np.asarray(image)
    added = np.minimum(values.astype(np.int16) + int(110 * level), 255).astype(np.uint8)
    return Image.fromarray(np.where(values < 128, added, values))


def _cutout(image, level, sign):
    values, half = np.array(image), int(40 * level)
    y, x = (random.randrange(side) for side in values.shape[:2])
    values[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    return Image.fromarray(values)


#: The same operations and magnitudes as `vitkeras.data.randaugment.OPERATIONS`.
OPERATIONS = (
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: ImageOps.invert(image),
    lambda image, level, sign: image.rotate(30 * level * sign, fillcolor=GRAY),
    lambda image, level, sign: ImageOps.posterize(image, max(min(int(4 * level), 8), 1)),
    lambda image, level, sign: ImageOps.solarize(image, int(256 * level)),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, level, sign: _affine(image, (1, 0.3 * level * sign, 0, 0, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, 0, 0.3 * level * sign, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, 100 * level * sign, 0, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, 0, 0, 1, 100 * level * sign)),
    _cutout,
    _solarize_add,
)


def _random_image(image_bytes, image_size):
    image = Image.open(io.BytesIO(image_bytes))
    width, height = image.size
    area = random.uniform(0.05, 1.0) * width * height
    aspect = random.uniform(3 / 4, 4 / 3)
    w, h = (
        min(int((area * a) ** 0.5), limit) for a, limit in ((aspect, width), (1 / aspect, height))
    )
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    box = (x, y, x + w, y + h)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box)
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    for _ in range(NUM_LAYERS):
        operation = random.choice(OPERATIONS)
        image = operation(image, MAGNITUDE / 10, random.choice((-1, 1)))
    return np.asarray(image)


def _work(image_bytes, image_size, requests, replies):
    shape = (image_size, image_size, 3)
    for count in iter(requests.get, None):
        replies.put(
            sum(_random_image(image_bytes, image_size).shape == shape for _ in range(count))
        )


class PilPipeline:
    """A function that processes a number of images in worker processes and discards them.

    A context manager: it stops the workers at the end.

    Args:
        image_bytes: Content of a JPEG file.
        image_size: Side of the result in pixels.
    """

    def __init__(self, image_bytes: bytes, image_size: int):
        context = multiprocessing.get_context("spawn")
        self.requests, self.replies = context.Queue(), context.Queue()
        arguments = (image_bytes, image_size, self.requests, self.replies)
        self.workers = [context.Process(target=_work, args=arguments) for _ in range(WORKERS)]

    def __enter__(self):
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *error):
        for _ in self.workers:
            self.requests.put(None)
        for worker in self.workers:
            worker.join()

    def __call__(self, count: int) -> None:
        """Processes `count` images."""
        for _ in range(count // 10):
            self.requests.put(10)
        for _ in range(count // 10):
            if self.replies.get() != 10:
                raise RuntimeError("A worker returned images of the wrong shape.")
