"""The examples of a split, in memory or in TFRecord files, and the interface of a data source.

An example is `{"image_bytes": string, "label": int64}`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from vitkeras.data.sharding import MAX_GROUPS, HostShard

#: Number of encoded images in the shuffle buffers, over all streams of all hosts.
SHUFFLE_BLOCK = 10_000


class InMemoryExamples:
    """Examples with one row each in memory, which holds the image or the path of its file.

    Shuffling is uniform over the split.

    Args:
        columns: From column name to a tensor with one row per example. `label` is one of the names.
        load: Function from a row to an example; None if a row is an example.
    """

    max_groups = MAX_GROUPS

    def __init__(
        self,
        columns: dict[str, tf.Tensor],
        load: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]] | None = None,
    ):
        self.columns, self.load = columns, load

    def __len__(self) -> int:
        return len(self.columns["label"])

    def in_order(self, shard: HostShard | None = None) -> tf.data.Dataset:
        """Returns all examples, or those that a host reads, in the order of the source."""
        data = tf.data.Dataset.from_tensor_slices(self.columns)
        return self._load(data if shard is None else shard.filter(data))

    def at(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns the examples with these sorted indices."""
        return self._load(tf.data.Dataset.from_tensor_slices(_gather(self.columns, indices)))

    def shuffled(
        self, seed: int | tf.Tensor, shard: HostShard, first_step: int | tf.Tensor, steps: int
    ) -> tf.data.Dataset:
        """Returns the examples that a host reads from batch `first_step` of an epoch on.

        Args:
            seed: Integer or scalar int64 tensor that determines the order.
            shard: Shard of the host.
            first_step: Integer or scalar int64 tensor.
            steps: Number of batches in an epoch.
        """
        order = tf.range(tf.shape(self.columns["label"])[0])
        # Not Dataset.shuffle: its order depends on TensorFlow's global seed too.
        order = tf.random.experimental.stateless_shuffle(
            order, tf.stack([tf.cast(seed, tf.int64), 0])
        )
        data = tf.data.Dataset.from_tensor_slices(_gather(self.columns, order))
        data = data.take(steps * shard.batch_size).skip(first_step * shard.batch_size)
        return self._load(shard.filter(data))

    def _load(self, data):
        if self.load is None:
            return data
        return data.map(self.load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


class TFRecordExamples:
    """Examples in TFRecord files, read as one stream per group of a batch.

    Each stream reads an equal part of the examples, as segments of files. Every epoch it permutes
    its segments and shuffles the records within blocks. The blocks of all streams together hold
    `SHUFFLE_BLOCK` encoded images.

    Args:
        segments: Tuples (file, number of records to skip, number of records to read).
        parse: Function from a record to an example.
    """

    def __init__(
        self,
        segments: Iterable[tuple[str, int, int]],
        parse: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    ):
        self.segments = [(str(file), skip, take) for file, skip, take in segments if take]
        self.parse = parse

    def __len__(self) -> int:
        return sum(take for _, _, take in self.segments)

    @property
    def max_groups(self) -> int:
        """Number of segments: more streams would read files more than once."""
        return len(self.segments)

    def in_order(self, shard: HostShard | None = None) -> tf.data.Dataset:
        """See `InMemoryExamples.in_order`."""
        data = self._read(tf.data.Dataset.from_tensor_slices(_columns(self.segments)))
        return self._parse(data if shard is None else shard.filter(data))

    def at(self, indices: np.ndarray) -> tf.data.Dataset:
        """See `InMemoryExamples.at`; reads all records but parses only these."""
        wanted = tf.constant(indices, tf.int64)

        def is_wanted(index, _):
            position = tf.searchsorted(wanted, index[None])[0]
            return tf.reduce_any(wanted[position : position + 1] == index)

        records = self._read(tf.data.Dataset.from_tensor_slices(_columns(self.segments)))
        return self._parse(records.enumerate().filter(is_wanted).map(lambda _, record: record))

    def shuffled(
        self, seed: int | tf.Tensor, shard: HostShard, first_step: int | tf.Tensor, steps: int
    ) -> tf.data.Dataset:
        """See `InMemoryExamples.shuffled`."""
        block_size, group_size = SHUFFLE_BLOCK // shard.num_groups, shard.group_size
        columns = self._streams(shard)

        def stream(group):
            stream_seed = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.cast(seed, tf.int64), 1]), group
            )
            segments = {name: column[group] for name, column in columns.items()}
            order = tf.range(tf.size(segments["take"]))
            order = tf.random.experimental.stateless_shuffle(order, stream_seed)
            records = self._read(tf.data.Dataset.from_tensor_slices(_gather(segments, order)))
            records = records.batch(block_size).enumerate().flat_map(
                lambda index, block: _shuffle_block(
                    block, tf.random.experimental.stateless_fold_in(stream_seed, index)
                )
            )  # fmt: skip
            return records.take(steps * group_size).skip(first_step * group_size)

        groups = tf.range(shard.groups.start, shard.groups.stop, dtype=tf.int64)
        data = tf.data.Dataset.from_tensor_slices(groups).interleave(
            stream, cycle_length=len(shard.groups), block_length=group_size, deterministic=True,
            num_parallel_calls=tf.data.AUTOTUNE,
        )  # fmt: skip
        return self._parse(data)

    def _streams(self, shard):
        """Returns the segments of every stream as columns `(groups, segments)`, zero-padded."""
        total, num_groups = len(self), shard.num_groups
        streams = [[] for _ in range(num_groups)]
        start = 0
        for file, skip, take in self.segments:
            # Example i is in stream i * num_groups // total: sizes differ by one at most.
            first, last = (i * num_groups // total for i in (start, start + take - 1))
            for group in range(first, last + 1):
                begin = max(start, -(-group * total // num_groups))
                end = min(start + take, -(-(group + 1) * total // num_groups))
                streams[group].append((file, skip + begin - start, end - begin))
            start += take
        longest = max(map(len, streams))
        padded = [segments + [("", 0, 0)] * (longest - len(segments)) for segments in streams]
        columns = [_columns(segments) for segments in padded]
        return {name: tf.stack([c[name] for c in columns]) for name in columns[0]}

    @staticmethod
    def _read(segments):
        def records(segment):
            file = tf.data.TFRecordDataset(segment["file"])
            return file.skip(segment["skip"]).take(segment["take"])

        return segments.filter(lambda segment: segment["take"] > 0).flat_map(records)

    def _parse(self, data):
        return data.map(self.parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


Examples = InMemoryExamples | TFRecordExamples


class Source(Protocol):
    """A data source with the splits train, validation and test.

    Attributes:
        class_names: Names of the classes, in the order of the labels.
        bad_images: Pairs (path, reason) of the image files that cannot be decoded and are left out,
            of the splits that were read so far.
        other_files: Paths of the files that are no images and are left out.
    """

    class_names: list[str]
    bad_images: list[tuple[str, str]]
    other_files: list[str]

    def num_examples(self, split: str) -> int:
        """Returns the number of examples of a split."""
        ...

    def num_listed(self, split: str) -> int:
        """Returns an upper bound of `num_examples`, without decoding an image."""
        ...

    def labels(self, split: str) -> Iterable[int]:
        """Returns the labels of a split in the order of its examples, without decoding images."""
        ...

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split."""
        ...

    def example_paths(self, split: str) -> list[str] | None:
        """Returns the paths of the image files of a split in the order of its examples.

        None if the images are not files.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Returns strings and numbers that identify the data and their splits."""
        ...

    def version(self, split: str) -> str:
        """Returns a string that changes when the examples of a split change."""
        ...


def read_into_memory(examples: Examples, indices: np.ndarray | None = None) -> InMemoryExamples:
    """Reads examples once and keeps the encoded images in memory.

    Args:
        examples: The examples.
        indices: Sorted indices of the examples to keep; None for all.
    """
    data = examples.in_order() if indices is None else examples.at(indices)
    images, labels = [], []
    for example in data.as_numpy_iterator():
        images.append(example["image_bytes"])
        labels.append(example["label"])
    return InMemoryExamples(
        {"image_bytes": tf.constant(images), "label": tf.constant(labels, tf.int64)}
    )


def _gather(columns, indices):
    return {name: tf.gather(column, indices) for name, column in columns.items()}


def _shuffle_block(records, seed):
    """Returns a dataset of the rows of `records`, shuffled."""
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(records)[0]), seed)
    return tf.data.Dataset.from_tensor_slices(tf.gather(records, order))


def _columns(segments):
    files, skips, takes = zip(*segments, strict=True)
    numbers = {"skip": np.array(skips, np.int64), "take": np.array(takes, np.int64)}
    return {name: tf.constant(values) for name, values in (numbers | {"file": files}).items()}
