"""Finds the image files that a command names: files, folders and glob patterns."""

import glob
import os
from collections.abc import Iterable, Iterator

import tensorflow as tf

from vitkeras.data.folder_listing import (
    OTHER_IMAGES,
    SUFFIXES,
    is_folder,
    is_junk,
    printable,
    walk_files,
)  # fmt: skip
from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote


class ImageFiles(Iterable[str]):
    """Paths of image files, listed anew by each iteration: a million paths take no memory.

    Args:
        names: Files, which may have any suffix; folders, which are searched for images in all
            sub-folders, without hidden ones; and glob patterns, where `**` is any number of
            folders. Local paths or gs://BUCKET/PATH.
    Raises:
        InputError: If a name is neither, or there is no image.
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)
        for name in self.names:
            if not any(_matches(name)):
                raise InputError(
                    "A path must be a file, a folder, or a glob pattern with a match. "
                    f"Received: {printable(name)}."
                )
        if not any(True for _ in self):
            raise InputError(
                f"A folder must have {', '.join(SUFFIXES)} files. "
                f"Received: {printable(' '.join(self.names))}, without images."
            )

    def __iter__(self) -> Iterator[str]:
        for name in self.names:
            for path in _matches(name):
                if is_folder(path):
                    yield from _images(path)
                else:
                    yield path

    def count(self) -> int:
        """Returns the number of files. They are listed for it."""
        return sum(1 for _ in self)


def _matches(name: str) -> Iterator[str]:
    """Yields the name if it exists, or what matches a pattern, in sorted order."""
    exists = tf.io.gfile.exists(name) if is_remote(name) else os.path.lexists(name)
    if exists:
        yield name
        return
    find = tf.io.gfile.glob(name) if is_remote(name) else glob.iglob(name, recursive=True)
    named = set(name.split("/"))
    for match in sorted(find):
        if not any(is_junk(part) for part in set(match.split("/")) - named):
            yield match


def _images(folder: str) -> Iterator[str]:
    """Yields the images of a folder. Formats that are not read are included, to be reported."""
    for file in walk_files(folder):
        if os.path.splitext(file)[1].lower() in SUFFIXES + OTHER_IMAGES:
            yield file
