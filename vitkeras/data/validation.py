"""Finds the image files that cannot be decoded. A file that was decoded once is not read again.

The cache of decodable files is in ~/.cache/vitkeras (or $XDG_CACHE_HOME/vitkeras). Its keys are
path, size and modification time. It may be removed at any time.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from vitkeras.data.images import decode_error, error_summary
from vitkeras.data.preprocessing import decode_image
from vitkeras.io.atomic import is_remote, write_file
from vitkeras.io.progress import Progress

#: Number of files after which the cache is written.
CHUNK_SIZE = 100_000
#: Version of the cache: a new one is needed when the decoder accepts other files.
CACHE_VERSION = 1


def find_undecodable(folder: str, names: Sequence[str], stamps: Iterable[str]) -> dict[int, str]:
    """Decodes the files that the cache does not list as decodable.

    Args:
        folder: Directory of the files.
        names: Paths of the files, relative to the directory.
        stamps: For each file a string that changes when the file changes.
    Returns:
        From the index in `names` of a file that cannot be decoded to the reason.
    """
    cache = _DecodableCache(folder)
    hashes = (
        int.from_bytes(hashlib.blake2b(f"{name}\0{stamp}".encode(), digest_size=8).digest())
        for name, stamp in zip(names, stamps, strict=True)
    )
    keys = np.fromiter(hashes, np.uint64)
    unknown = np.flatnonzero(~np.isin(keys, cache.keys))
    undecodable: dict[int, str] = {}
    with Progress(len(unknown), "validating images, only the first time") as progress:
        for begin in range(0, len(unknown), CHUNK_SIZE):
            chunk = unknown[begin : begin + CHUNK_SIZE]
            files = [f"{folder}/{names[i]}" for i in chunk]
            decodable = _decodable(files, progress)
            cache.add(keys[chunk[decodable]])
            undecodable |= {int(chunk[i]): _reason(files[i]) for i in np.flatnonzero(~decodable)}
    return undecodable


class _DecodableCache:
    """The keys of the decodable files of a directory."""

    def __init__(self, folder):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = folder if is_remote(folder) else os.path.realpath(folder)
        name = hashlib.sha256(f"{folder}\0{CACHE_VERSION}".encode()).hexdigest()[:32]
        self.path = Path(base) / "vitkeras" / "decodable_images" / f"{name}.npy"
        try:
            self.keys = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # missing, or truncated
            self.keys = np.zeros((0,), np.uint64)

    def add(self, keys):
        self.keys = np.union1d(self.keys, keys)
        content = io.BytesIO()
        np.save(content, self.keys)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, content.getvalue())
        except OSError as error:
            logging.warning("The cache of decodable images cannot be written: %s.", error)


def _decodable(files, progress):
    """Returns for each file whether TensorFlow decodes it."""

    def size(index, file):
        return index, tf.size(decode_image(tf.io.read_file(file)))

    # `ignore_errors` drops examples that fail; the indices of the others show which.
    sizes = tf.data.Dataset.from_tensor_slices(files).enumerate()
    sizes = sizes.map(size, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    decodable, done = np.zeros(len(files), bool), 0
    for indices, _ in sizes.batch(256).as_numpy_iterator():
        decodable[indices] = True
        progress.update(int(indices[-1]) + 1 - done)
        done = int(indices[-1]) + 1
    progress.update(len(files) - done)
    return decodable


def _reason(file):
    try:
        return decode_error(tf.io.read_file(file)) or "decoding failed once and then succeeded"
    except tf.errors.OpError as error:
        return error_summary(error)
