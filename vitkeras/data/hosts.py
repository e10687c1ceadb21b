"""Which examples of every global batch a host reads, so that no two hosts decode the same one."""

import dataclasses

import tensorflow as tf

#: Streams that a batch is read in at most, and examples that each gives to it at least.
MOST_GROUPS, LEAST_EXAMPLES = 64, 8


@dataclasses.dataclass(frozen=True)
class Share:
    """A host's part of the global batches.

    A batch is cut into groups of equal length. How many they are depends on the batch and the data
    alone, not on the hosts, so that any number of hosts makes the same batches. A host reads the
    groups that its part of the batch touches; as a rule these are its own part and no more.

    Args:
        batch_size: Global batch, in images.
        num_groups: A divisor of it.
        host: 0 to `hosts` - 1.
        hosts: A divisor of `batch_size`.
    """

    batch_size: int
    num_groups: int
    host: int = 0
    hosts: int = 1

    @classmethod
    def of(cls, batch_size, most_groups, host=0, hosts=1):
        """Returns the share with as many groups as the data, `most_groups`, and the batch allow."""
        most = max(1, min(most_groups, MOST_GROUPS, batch_size // LEAST_EXAMPLES))
        groups = max(number for number in range(1, most + 1) if batch_size % number == 0)
        return cls(batch_size, groups, host, hosts)

    @property
    def group_size(self):
        """Examples of a group."""
        return self.batch_size // self.num_groups

    @property
    def groups(self):
        """The groups that the host reads, as a range."""
        own, size = self._own, self.group_size
        return range(own.start // size, -(-own.stop // size))

    @property
    def slots(self):
        """The places in a batch that the host reads, as a range: whole groups."""
        return range(self.groups.start * self.group_size, self.groups.stop * self.group_size)

    @property
    def _own(self):
        part = self.batch_size // self.hosts
        return range(self.host * part, (self.host + 1) * part)

    def own(self, values):
        """Returns what the host keeps of a tensor that has a row for each of its slots."""
        begin = self._own.start - self.slots.start
        return values[begin : begin + len(self._own)]

    def place(self, count):
        """Returns the place in the stream of global batches of the host's `count`-th example."""
        batch, slot = count // len(self.slots), count % len(self.slots)
        return batch * self.batch_size + self.slots.start + slot

    def keep(self, data):
        """Returns, of a tf.data.Dataset with an example for each place, those of the slots."""
        if len(self.slots) == self.batch_size:
            return data

        def inside(place, _):
            slot = place % self.batch_size
            return (slot >= self.slots.start) & (slot < self.slots.stop)

        return data.enumerate().filter(inside).map(lambda _, example: example)


def whole(batch_size, host=0, hosts=1):
    """Returns a share whose slots are the host's own part exactly, for batches that do not mix."""
    return Share(batch_size, hosts, host, hosts)


def shuffled(columns, seed):
    """Returns a tf.data.Dataset of the rows of equally long columns, in the seed's order."""
    order = tf.range(tf.shape(columns["label"])[0])
    # Not Dataset.shuffle: its order depends on TensorFlow's global seed too.
    order = tf.random.experimental.stateless_shuffle(order, tf.stack([tf.cast(seed, tf.int64), 0]))
    return tf.data.Dataset.from_tensor_slices({k: tf.gather(v, order) for k, v in columns.items()})
