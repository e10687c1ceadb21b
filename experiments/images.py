"""Image files as a command is given them."""

from pathlib import Path

import tensorflow as tf

from vitkeras import data
from vitkeras.data.preprocessing import MAX_PIXELS
from vitkeras.errors import InputError


def read_file(path):
    """Returns the bytes of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"An image must be a readable file. Received: {path} ({error.strerror})."
        ) from error


def decode(path, content):
    """Returns the pixels of a file's bytes, uint8 `(h, w, 3)`.

    Raises:
        InputError: If they are no image that training would take.
    """
    try:
        return data.decode_image(tf.constant(content)).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise InputError(
            f"An image must be a whole JPEG, PNG, BMP or GIF file of at most {MAX_PIXELS:,} "
            f"pixels. Received: {path}, {len(content)} bytes."
        ) from error
