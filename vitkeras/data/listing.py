"""What a folder of images holds, on a disk or in an object store: names, without opening a file."""

import os

import numpy as np
import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.storage import is_remote

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_folder(path):
    """Whether there is such a folder."""
    return tf.io.gfile.isdir(path) if is_remote(path) else os.path.isdir(path)


def list_classes(folder):
    """Returns class names, the paths of the images below the folder, and a label for each.

    Args:
        folder: A path, or gs://BUCKET/FOLDER.
    Raises:
        InputError: If there is no sub-folder, or one without an image.
    """
    if is_remote(folder):
        below = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
        names = sorted(n for n in below if is_folder(f"{folder}/{n}") and not n.startswith("."))
    else:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(
            "A folder of images must hold one sub-folder per class. "
            f"Received: {folder}, which has no sub-folder."
        )
    files, counts = [], []
    for name in names:
        found = sorted(_images(folder, name))
        if not found:
            raise InputError(
                f"Every class folder must hold {', '.join(SUFFIXES)} files. "
                f"Received: {folder}/{name}, which has none. Add images or remove the folder."
            )
        files += found
        counts.append(len(found))
    return names, files, np.repeat(np.arange(len(names)), counts)


def _images(folder, name):
    walk = tf.io.gfile.walk if is_remote(folder) else os.walk
    for place, _, files in walk(f"{folder}/{name}"):
        below = place.rstrip("/")[len(folder) + 1 :]
        for file in files:
            if file.lower().endswith(SUFFIXES):
                yield f"{below}/{file}"


def stamp(file):
    """Returns a string that changes when the file does; in an object store it is always empty.

    (There each would take a request.)
    """
    if is_remote(file):
        return ""
    found = os.stat(file)
    return f"{found.st_size} {found.st_mtime_ns}"
