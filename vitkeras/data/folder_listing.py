"""Lists a folder of images, on a local disk or in an object store, without opening a file."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_folder(path: str) -> bool:
    """Returns whether a path is a directory."""
    return tf.io.gfile.isdir(path) if is_remote(path) else os.path.isdir(path)


def list_classes(folder: str) -> tuple[list[str], list[str], np.ndarray]:
    """Lists the classes of a folder and the image files of each.

    Args:
        folder: A local path, or gs://BUCKET/FOLDER.
    Returns:
        Sorted class names, the paths of the images relative to the folder, and their labels.
    Raises:
        InputError: If there is no class folder, or one without an image.
    """
    if is_remote(folder):
        entries = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
        names = sorted(n for n in entries if is_folder(f"{folder}/{n}") and not n.startswith("."))
    else:
        with os.scandir(folder) as scan:
            names = sorted(e.name for e in scan if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(
            "A folder of images must have one sub-folder per class. "
            f"Received: {folder}, which has no sub-folder."
        )
    files, counts = [], []
    for name in names:
        images = sorted(_images(folder, name))
        if not images:
            raise InputError(
                f"Every class folder must have {', '.join(SUFFIXES)} files. "
                f"Received: {folder}/{name}, which has none. Add images or remove the folder."
            )
        files += images
        counts.append(len(images))
    return names, files, np.repeat(np.arange(len(names)), counts)


def _images(folder: str, name: str) -> Iterator[str]:
    walk = tf.io.gfile.walk if is_remote(folder) else os.walk
    for root, _, files in walk(f"{folder}/{name}"):
        relative = root.rstrip("/")[len(folder) + 1 :]
        for file in files:
            if file.lower().endswith(SUFFIXES):
                yield f"{relative}/{file}"


def stamp(file: str) -> str:
    """Returns a string that changes when a local file changes; empty in an object store.

    An object store would need a request per file.
    """
    if is_remote(file):
        return ""
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns}"
