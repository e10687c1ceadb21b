"""Image files that a user names: reading, decoding and the reasons for failures."""

import os
import re
import stat
from pathlib import Path

import numpy as np
import tensorflow as tf

from vitkeras.data.decoding import MAX_PIXELS, decode_image
from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote


def read_file(path: str | Path) -> bytes:
    """Returns the content of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise InputError(f"An image must be a file. Received: {path}, a named pipe.")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"An image must be a readable file. Received: {path} ({error.strerror})."
        ) from error


def decode_file(path: str | Path, content: bytes) -> np.ndarray:
    """Decodes the content of an image file.

    Args:
        path: Path of the file, for the error message.
        content: The content.
    Returns:
        uint8 `(h, w, 3)`.
    Raises:
        InputError: If it is not a complete image of a supported format.
    """
    try:
        return decode_image(tf.constant(content)).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise InputError(
            f"An image must be a complete JPEG, PNG or WebP file of at most {MAX_PIXELS:,} "
            f"pixels. Received: {path}, {len(content)} bytes ({error_summary(error)})."
        ) from error


def decode_error(image_bytes: tf.Tensor | bytes) -> str | None:
    """Returns one line about why an image cannot be decoded, or None if it can be decoded.

    Args:
        image_bytes: Scalar string.
    """
    if not tf.strings.length(image_bytes):
        return "the file is empty"
    try:
        decode_image(tf.convert_to_tensor(image_bytes))
    except tf.errors.OpError as error:
        return error_summary(error)
    return None


def file_error(path: str) -> str | None:
    """Returns one line about why a file is not a valid image, or None if it is one.

    Args:
        path: A local path, or one in an object store.
    """
    try:
        if is_remote(path):
            return decode_error(tf.io.read_file(path))
        is_file = stat.S_ISREG(os.stat(path).st_mode)
        return decode_error(Path(path).read_bytes()) if is_file else "not a file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except tf.errors.OpError as error:  # of an object store
        return f"cannot be read: {error_summary(error)}"


def error_summary(error: tf.errors.OpError) -> str:
    """Returns the message of a TensorFlow error in one line, without the names of operations."""
    text = error.message.partition("\n\t [[")[0].rpartition("\n\n")[2]  # without the traceback
    asserted = re.search(r"assertion failed: \[(.*?)\](?: \[(\d+)\])?", text) or re.search(
        r"Summarized data: b'(.*?)'(?:\s+(\d+))?", error.message
    )
    if asserted:
        return f"{asserted[1]} {int(asserted[2]):,}" if asserted[2] else asserted[1]
    text = re.sub(r"\{\{.*?\}\}", "", text).strip().splitlines()[0]
    return text.partition(" [Op:")[0].strip()[:120]
