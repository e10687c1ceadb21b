"""The examples of a split: as columns in memory, or as records in files.

Both have `len`, `most_groups`, `in_order(share)` for evaluation and `shuffled(...)` for training,
and read nothing that another host has to read.
"""

import numpy as np
import tensorflow as tf

from vitkeras.data.hosts import MOST_GROUPS, shuffled

#: Encoded images that are held, over all streams of all hosts, to be shuffled.
SHUFFLE_BLOCK = 10_000


class Columns:
    """Examples of which a row each is held in memory: the image itself, or where it lies.

    They are shuffled whole.

    Args:
        columns: Dict of equally long tensors, `label` among them.
        load: Makes `{"image_bytes": string, "label": int64}` of a row; None if it is that.
    """

    most_groups = MOST_GROUPS

    def __init__(self, columns, load=None):
        self.columns, self.load = columns, load

    def __len__(self):
        return len(self.columns["label"])

    def in_order(self, share=None):
        """Returns the examples, or those of a host's share of the batches."""
        data = tf.data.Dataset.from_tensor_slices(self.columns)
        return self._loaded(data if share is None else share.keep(data))

    def shuffled(self, seed, share, first_step, steps):
        """Returns the share's examples of batches `first_step` to `steps` - 1, in an epoch's order.

        Args:
            seed: Integer or scalar int64 tensor; the same seed, the same order.
            share: Of the host.
            first_step: Integer or scalar int64 tensor.
            steps: Batches of an epoch.
        """
        data = shuffled(self.columns, seed).take(steps * share.batch_size)
        return self._loaded(share.keep(data.skip(first_step * share.batch_size)))

    def _loaded(self, data):
        if self.load is None:
            return data
        return data.map(self.load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


class Records:
    """Examples in TFRecord files, which are read in as many streams as a batch has groups.

    A stream is an equal part of the examples, in pieces that lie in one file each. In an epoch it
    reads its pieces in an order of the epoch's own and shuffles blocks of what comes; all streams
    together hold 10,000 encoded images.

    Args:
        pieces: A list of (file, records to skip, records to take).
        parse: Makes `{"image_bytes": string, "label": int64}` of a record.
    """

    def __init__(self, pieces, parse):
        self.pieces = [(str(file), skip, take) for file, skip, take in pieces if take]
        self.parse = parse

    def __len__(self):
        return sum(take for _, _, take in self.pieces)

    @property
    def most_groups(self):
        """More streams than files would read files more than once."""
        return len(self.pieces)

    def in_order(self, share=None):
        """As `Columns.in_order`."""
        data = self._read(tf.data.Dataset.from_tensor_slices(_columns(self.pieces)))
        return self._parsed(data if share is None else share.keep(data))

    def shuffled(self, seed, share, first_step, steps):
        """As `Columns.shuffled`."""
        block, size = SHUFFLE_BLOCK // share.num_groups, share.group_size
        columns = self._streams(share)

        def stream(number):
            own = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.cast(seed, tf.int64), 1]), number
            )
            pieces = {name: column[number] for name, column in columns.items()}
            order = tf.range(tf.size(pieces["take"]))
            order = tf.random.experimental.stateless_shuffle(order, own)
            pieces = {name: tf.gather(column, order) for name, column in pieces.items()}
            records = self._read(tf.data.Dataset.from_tensor_slices(pieces))
            blocks = records.batch(block).enumerate()
            records = blocks.flat_map(
                lambda index, block: _shuffled_block(
                    block, tf.random.experimental.stateless_fold_in(own, index)
                )
            )
            return records.take(steps * size).skip(first_step * size)

        numbers = tf.range(share.groups.start, share.groups.stop, dtype=tf.int64)
        data = tf.data.Dataset.from_tensor_slices(numbers).interleave(
            stream, cycle_length=len(share.groups), block_length=size, deterministic=True,
            num_parallel_calls=tf.data.AUTOTUNE,
        )  # fmt: skip
        return self._parsed(data)

    def _streams(self, share):
        """Returns columns `(groups, pieces)`: each stream's, filled up with pieces of nothing."""
        total, groups = len(self), share.num_groups
        streams = [[] for _ in range(groups)]
        place = 0
        for file, skip, take in self.pieces:
            # Example x is of stream x * groups // total: but for one, they are equally long.
            for number in range(place * groups // total, (place + take - 1) * groups // total + 1):
                begin = max(place, -(-number * total // groups))
                end = min(place + take, -(-(number + 1) * total // groups))
                streams[number].append((file, skip + begin - place, end - begin))
            place += take
        longest = max(map(len, streams))
        filled = [pieces + [("", 0, 0)] * (longest - len(pieces)) for pieces in streams]
        columns = [_columns(pieces) for pieces in filled]
        return {name: tf.stack([c[name] for c in columns]) for name in columns[0]}

    @staticmethod
    def _read(pieces):
        def records(piece):
            file = tf.data.TFRecordDataset(piece["file"])
            return file.skip(piece["skip"]).take(piece["take"])

        return pieces.filter(lambda piece: piece["take"] > 0).flat_map(records)

    def _parsed(self, data):
        return data.map(self.parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _shuffled_block(records, seed):
    """Returns a tf.data.Dataset of a block's rows in the seed's order."""
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(records)[0]), seed)
    return tf.data.Dataset.from_tensor_slices(tf.gather(records, order))


def _columns(pieces):
    files, skips, takes = zip(*pieces, strict=True)
    numbers = {"skip": np.array(skips, np.int64), "take": np.array(takes, np.int64)}
    return {name: tf.constant(values) for name, values in (numbers | {"file": files}).items()}


def in_memory(stored, places=None):
    """Returns the examples as columns, read once.

    Args:
        stored: `Columns` or `Records`.
        places: A sorted array of those to keep; None for all.
    """
    wanted = None if places is None else set(places.tolist())
    images, labels = [], []
    for place, example in enumerate(stored.in_order().as_numpy_iterator()):
        if wanted is None or place in wanted:
            images.append(example["image_bytes"])
            labels.append(example["label"])
    return Columns({"image_bytes": tf.constant(images), "label": tf.constant(labels, tf.int64)})
