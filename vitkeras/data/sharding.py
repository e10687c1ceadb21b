"""Distributes every global batch over hosts, so that no two hosts decode the same example."""

import dataclasses

import tensorflow as tf

#: Maximum number of groups of a batch, and the minimum number of examples in a group.
MAX_GROUPS, MIN_GROUP_SIZE = 64, 8


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The part of every global batch that one host keeps.

    A batch consists of groups of equal size. Their number depends on the batch size and the data,
    not on the hosts, so that any number of hosts makes the same batches. A host reads every group
    that overlaps its part of the batch. If the part does not consist of complete groups, the host
    reads more examples than it keeps.

    Args:
        batch_size: Global batch size.
        num_groups: Number of groups; must divide `batch_size`.
        host: Index of the host.
        num_hosts: Number of hosts; must divide `batch_size`.
    """

    batch_size: int
    num_groups: int
    host: int = 0
    num_hosts: int = 1

    @classmethod
    def for_batches(
        cls, batch_size: int, max_groups: int, host: int = 0, num_hosts: int = 1
    ) -> "HostShard":
        """Returns the shard with the most groups that the batch and the data allow.

        Args:
            batch_size: Global batch size.
            max_groups: `max_groups` of the examples.
            host: Index of the host.
            num_hosts: Number of hosts; must divide `batch_size`.
        """
        limit = max(1, min(max_groups, MAX_GROUPS, batch_size // MIN_GROUP_SIZE))
        num_groups = max(n for n in range(1, limit + 1) if batch_size % n == 0)
        return cls(batch_size, num_groups, host, num_hosts)

    @property
    def group_size(self) -> int:
        """Number of examples in a group."""
        return self.batch_size // self.num_groups

    @property
    def groups(self) -> range:
        """Indices of the groups that the host reads."""
        kept, size = self._kept, self.group_size
        return range(kept.start // size, -(-kept.stop // size))

    @property
    def slice(self) -> range:
        """Positions in a global batch that the host reads; these are complete groups."""
        return range(self.groups.start * self.group_size, self.groups.stop * self.group_size)

    @property
    def _kept(self):
        size = self.batch_size // self.num_hosts
        return range(self.host * size, (self.host + 1) * size)

    def trim(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the rows that the host keeps of a tensor with one row per position in `slice`."""
        begin = self._kept.start - self.slice.start
        return values[begin : begin + len(self._kept)]

    def global_index(self, index: int | tf.Tensor) -> int | tf.Tensor:
        """Returns the index over all hosts of the example that this host reads at `index`."""
        batch, offset = index // len(self.slice), index % len(self.slice)
        return batch * self.batch_size + self.slice.start + offset

    def filter(self, data: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the elements in `slice` of a dataset of the elements of all batches."""
        if len(self.slice) == self.batch_size:
            return data

        def in_slice(index, _):
            position = index % self.batch_size
            return (position >= self.slice.start) & (position < self.slice.stop)

        return data.enumerate().filter(in_slice).map(lambda _, element: element)


def exact_shard(batch_size: int, host: int = 0, num_hosts: int = 1) -> HostShard:
    """Returns a shard with one group per host: a host reads exactly the examples that it keeps.

    For batches without mixing.
    """
    return HostShard(batch_size, num_hosts, host, num_hosts)
