"""Finds the image files that cannot be decoded. A file that was decoded once is not read again.

The cache of decodable files is in ~/.cache/vitkeras (or $XDG_CACHE_HOME/vitkeras). Its keys are
path, size and mtime; its values are hashes of the contents. It may be removed at any time.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from vitkeras.data.decoding import decode_image
from vitkeras.data.images import decode_error, error_summary
from vitkeras.io.atomic import is_remote, write_file
from vitkeras.io.progress import Progress

#: Number of files after which the cache is written.
CHUNK_SIZE = 100_000
#: Version of the cache: a new one is needed when the decoder accepts other files.
CACHE_VERSION = 3


def decode_files(
    folder: str, names: Sequence[str], stamps: Iterable[str]
) -> tuple[dict[int, str], np.ndarray]:
    """Decodes the files that the cache does not list as decodable.

    Args:
        folder: Directory of the files.
        names: Paths of the files, relative to the directory.
        stamps: For each file a string that changes when the file changes.
    Returns:
        From the index in `names` of a file that cannot be decoded to the reason, and a hash of the
        contents of each file, int64; 0 for those that cannot be decoded.
    """
    cache = _DecodableCache(folder)
    digests = (
        int.from_bytes(hashlib.blake2b(f"{name}\0{stamp}".encode(), digest_size=8).digest())
        for name, stamp in zip(names, stamps, strict=True)
    )
    keys = np.fromiter(digests, np.uint64)
    unknown = np.flatnonzero(~np.isin(keys, cache.keys))
    undecodable: dict[int, str] = {}
    with Progress(len(unknown), "validating images, only the first time") as progress:
        for begin in range(0, len(unknown), CHUNK_SIZE):
            chunk = unknown[begin : begin + CHUNK_SIZE]
            files = [f"{folder}/{names[i]}" for i in chunk]
            decodable, hashes = _decode(files, progress)
            cache.add(keys[chunk[decodable]], hashes[decodable])
            undecodable |= {int(chunk[i]): _reason(files[i]) for i in np.flatnonzero(~decodable)}
    return undecodable, cache.hashes_of(keys)


class _DecodableCache:
    """The decodable files of a directory: sorted keys, and hashes of the contents."""

    def __init__(self, folder):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = folder if is_remote(folder) else os.path.realpath(folder)
        name = hashlib.sha256(f"{folder}\0{CACHE_VERSION}".encode()).hexdigest()[:32]
        self.path = Path(base) / "vitkeras" / "decodable_images" / f"{name}.npy"
        try:
            self.keys, hashes = np.load(self.path, allow_pickle=False)
            self.hashes = hashes.astype(np.int64)
        except (OSError, ValueError, EOFError):  # missing, or truncated
            self.keys, self.hashes = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def hashes_of(self, keys):
        """Returns the hash of each key; 0 for keys that are missing."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        index = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[index] == keys, self.hashes[index], 0)

    def add(self, keys, hashes):
        self.keys, index = np.unique(np.concatenate([self.keys, keys]), return_index=True)
        self.hashes = np.concatenate([self.hashes, hashes])[index]
        content = io.BytesIO()
        np.save(content, np.stack([self.keys, self.hashes.astype(np.uint64)]))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, content.getvalue())
        except OSError as error:
            logging.warning("The cache of decodable images cannot be written: %s.", error)


def _decode(files, progress):
    """Returns for each file whether TensorFlow decodes it, and a hash of its contents."""

    def decode(index, file):
        content = tf.io.read_file(file)
        size = tf.size(decode_image(content), tf.int64)
        # A sum with 0, so that TensorFlow does not skip the decoder.
        return index, tf.strings.to_hash_bucket_fast(content, 2**62) + tf.minimum(size, 0)

    # `ignore_errors` drops examples that fail; the indices of the others show which.
    decoded = tf.data.Dataset.from_tensor_slices(files).enumerate()
    decoded = decoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    decodable, hashes, done = np.zeros(len(files), bool), np.zeros(len(files), np.int64), 0
    for indices, values in decoded.batch(256).as_numpy_iterator():
        decodable[indices], hashes[indices] = True, values
        progress.update(int(indices[-1]) + 1 - done)
        done = int(indices[-1]) + 1
    progress.update(len(files) - done)
    return decodable, hashes


def _reason(file):
    try:
        return decode_error(tf.io.read_file(file)) or "decoding failed once and then succeeded"
    except tf.errors.OpError as error:
        return error_summary(error)
