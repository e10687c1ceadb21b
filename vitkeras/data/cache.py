"""Caches the encoded images of a source in memory, or as TFRecord files on a local disk."""

import hashlib
from pathlib import Path
from typing import Any

import tensorflow as tf

from vitkeras.data.examples import (
    SHUFFLE_BLOCK,
    Examples,
    Source,
    TFRecordExamples,
    read_into_memory,
)
from vitkeras.data.sharding import MAX_GROUPS, exact_shard
from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote, publish, staging_directory
from vitkeras.io.progress import Progress

KINDS = ("auto", "none", "memory", "disk")
#: A split is written to one file per this number of images, at most `MAX_GROUPS` files.
IMAGES_PER_FILE = 256
FEATURES = {
    "image_bytes": tf.io.FixedLenFeature((), tf.string),
    "label": tf.io.FixedLenFeature((), tf.int64),
}


def parse_cache(cache: str) -> tuple[str, str | None]:
    """Returns the kind of cache and its directory, or None, from the config field `cache`.

    Raises:
        InputError: If the kind is unknown, or the directory is missing or not on a local disk.
    """
    kind, _, folder = cache.partition(":")
    if kind not in KINDS or bool(folder) != (kind == "disk") or is_remote(folder):
        raise InputError(
            "`cache` must be auto, none, memory or disk:FOLDER with a local folder. "
            f"Received: cache={cache!r}."
        )
    return kind, folder or None


class CachedSource:
    """A source with a cache of its examples. All else is delegated to the source.

    Args:
        source: The source.
        kind: "none"; "memory"; "disk", TFRecord files in `folder`; or "auto", memory for splits in
            TFRecord files with at most `SHUFFLE_BLOCK` examples and no cache for others.
        folder: Directory of the kind "disk".
    """

    def __init__(self, source: Source, kind: str, folder: str | None = None):
        self._source, self._kind, self._folder = source, kind, folder
        self._examples: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split. The first call for a split fills the cache.

        Raises:
            InputError: If the directory of the cache cannot be written.
        """
        if split not in self._examples:
            examples = self._source.examples(split)
            is_small = isinstance(examples, TFRecordExamples) and len(examples) <= SHUFFLE_BLOCK
            if self._kind == "memory" or (self._kind == "auto" and is_small):
                examples = read_into_memory(examples)
            elif self._kind == "disk":
                examples = self._on_disk(split, examples)
            self._examples[split] = examples
        return self._examples[split]

    def _on_disk(self, split, examples):
        version = hashlib.sha256(self._source.version(split).encode()).hexdigest()[:16]
        folder = Path(self._folder) / f"{split}-{version}"
        total = len(examples)
        num_files = max(1, min(MAX_GROUPS, total // IMAGES_PER_FILE))
        bounds = [total * i // num_files for i in range(num_files + 1)]
        sizes = {
            f"{i:02d}-of-{num_files:02d}.tfrecord": bounds[i + 1] - bounds[i]
            for i in range(num_files)
        }
        if not folder.exists():
            # Training reads consecutive records, so each file needs examples of all classes.
            shard = exact_shard(total)
            data = examples.shuffled(0, shard, 0, 1) if split == "train" else examples.in_order()
            try:
                _write(folder, sizes, data)
            except (OSError, tf.errors.ResourceExhaustedError) as error:
                if not folder.exists():  # else another process published the same files first
                    raise InputError(
                        "`cache=disk:FOLDER` needs a folder with space for the encoded images. "
                        f"Received: {self._folder} ({error})."
                    ) from error
        segments = [(str(folder / name), 0, size) for name, size in sizes.items()]
        return TFRecordExamples(
            segments, lambda record: tf.io.parse_single_example(record, FEATURES)
        )


def _write(folder, sizes, data):
    """Writes TFRecord files with the numbers of examples in `sizes` to a new directory."""
    examples = data.as_numpy_iterator()
    with (
        staging_directory(folder) as staging,
        Progress(sum(sizes.values()), f"writing {folder}") as progress,
    ):
        staging.mkdir(parents=True, exist_ok=True)
        for name, size in sizes.items():
            with tf.io.TFRecordWriter(str(staging / name)) as writer:
                for _ in range(size):
                    writer.write(_record(next(examples)))
            progress.update(size)
        publish(staging, folder)


def _record(example):
    feature = {
        "image_bytes": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[example["image_bytes"]])
        ),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example["label"]])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
