"""Keeps the encoded images of a source in memory, or as TFRecord files on this machine's disk."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import tensorflow as tf

from vitkeras.data.hosts import MOST_GROUPS, Share
from vitkeras.data.stored import SHUFFLE_BLOCK, Records, in_memory
from vitkeras.errors import InputError
from vitkeras.storage import is_remote

KINDS = ("auto", "none", "memory", "disk")
#: A packed split has a file for each so many images, and 64 at most.
IMAGES_PER_FILE = 256
FEATURES = {
    "image_bytes": tf.io.FixedLenFeature((), tf.string),
    "label": tf.io.FixedLenFeature((), tf.int64),
}


def parse_cache(cache):
    """Returns the kind of a config's `cache`, and the folder or None.

    Raises:
        InputError: If it is no such kind, or its folder is missing or not on this machine.
    """
    kind, _, folder = cache.partition(":")
    if kind not in KINDS or bool(folder) != (kind == "disk") or is_remote(folder):
        raise InputError(
            "`cache` must be auto, none, memory or disk:FOLDER, a folder of this machine. "
            f"Received: cache={cache!r}."
        )
    return kind, folder or None


class CachedSource:
    """A source whose stored examples are kept where they are read faster.

    Args:
        source: A source.
        kind: auto, none, memory or disk.
        folder: For disk.
        say: Takes lines that tell how far the writing is; None for none.
    """

    def __init__(self, source, kind, folder=None, say=None):
        self._source, self._kind, self._folder, self._say = source, kind, folder, say
        self._stored = {}

    def __getattr__(self, name):
        return getattr(self._source, name)

    def stored(self, split):
        """Returns the examples of a split; those that are kept are read here, once.

        Args:
            split: train, validation or test.
        """
        if split not in self._stored:
            stored = self._source.stored(split)
            few = isinstance(stored, Records) and len(stored) <= SHUFFLE_BLOCK
            if self._kind == "memory" or (self._kind == "auto" and few):
                stored = in_memory(stored)
            elif self._kind == "disk":
                stored = self._packed(split, stored)
            self._stored[split] = stored
        return self._stored[split]

    def _packed(self, split, stored):
        version = hashlib.sha256(self._source.version(split).encode()).hexdigest()[:16]
        folder = Path(self._folder) / f"{split}-{version}"
        count = len(stored)
        number = max(1, min(MOST_GROUPS, count // IMAGES_PER_FILE))
        bounds = [count * i // number for i in range(number + 1)]
        files = [folder / f"{i:02d}-of-{number:02d}.tfrecord" for i in range(number)]
        if not folder.exists():
            # Training reads in blocks, so what lies side by side should be of all classes.
            whole = Share(count, 1)
            data = stored.shuffled(0, whole, 0, 1) if split == "train" else stored.in_order()
            try:
                self._write(folder, files, bounds, data)
            except (OSError, tf.errors.ResourceExhaustedError) as error:
                raise InputError(
                    "`cache=disk:FOLDER` needs a folder with room for the encoded images. "
                    f"Received: {self._folder} ({error})."
                ) from error
        takes = [end - begin for begin, end in zip(bounds, bounds[1:], strict=False)]
        pieces = [(file, 0, take) for file, take in zip(files, takes, strict=True)]
        return Records(pieces, lambda record: tf.io.parse_single_example(record, FEATURES))

    def _write(self, folder, files, bounds, data):
        """Writes aside, then renames: a folder that is there is whole."""
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        examples, said = data.as_numpy_iterator(), time.monotonic()
        try:
            aside.mkdir(parents=True)
            for file, begin, end in zip(files, bounds, bounds[1:], strict=False):
                with tf.io.TFRecordWriter(str(aside / file.name)) as writer:
                    for _ in range(begin, end):
                        writer.write(_record(next(examples)))
                if self._say and time.monotonic() - said > 5:
                    said = time.monotonic()
                    self._say(f"writing {folder}: {end:,} of {bounds[-1]:,} images")
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _record(example):
    feature = {
        "image_bytes": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[example["image_bytes"]])
        ),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example["label"]])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
