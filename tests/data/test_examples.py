import numpy as np
import tensorflow as tf
from helpers.sources import NumberedSource

from vitkeras.data.cache import CachedSource
from vitkeras.data.examples import TFRecordExamples
from vitkeras.data.sharding import HostShard

COUNT, BATCH = 100, 24


def test_a_host_reads_only_its_slice(numbered_source):
    examples, steps = numbered_source.examples("train"), COUNT // BATCH
    reads = tf.Variable(0, dtype=tf.int64)
    function = getattr(examples, "parse", None) or (lambda row: row)

    def counted(row):
        with tf.control_dependencies([reads.assign_add(1)]):
            return tf.nest.map_structure(tf.identity, function(row))

    if isinstance(examples, TFRecordExamples):
        examples.parse = counted
        assert examples.max_groups == 12
    else:
        examples.load = counted
    for host, num_hosts, size in ((0, 1, 24), (0, 3, 8), (1, 4, 16)):  # host 1 of 4 keeps 6 to 11
        shard = HostShard.for_batches(BATCH, examples.max_groups, host, num_hosts)
        assert shard.num_groups == 3
        for first_step in (0, 3):
            reads.assign(0)
            count = sum(1 for _ in examples.shuffled(5, shard, first_step, steps))
            assert count == (steps - first_step) * size == int(reads)


def test_streams_are_equal_parts_of_the_examples_for_any_files():
    for takes in ([7], [100, 1, 3], [5] * 40, [1] * 9):
        examples = TFRecordExamples([(f"f{i}", 2, take) for i, take in enumerate(takes)], None)
        for groups in (1, 2, 3, 6):
            columns = examples._streams(HostShard(groups, groups))
            sizes = columns["take"].numpy().sum(1)
            assert sizes.sum() == sum(takes) and np.ptp(sizes) <= 1
            segments = zip(*(columns[k].numpy().ravel() for k in columns), strict=True)
            segments = [dict(zip(columns, segment, strict=True)) for segment in segments]
            records = [
                (segment["file"], index)
                for segment in segments
                for index in range(segment["skip"], segment["skip"] + segment["take"])
            ]
            assert len(set(records)) == len(records) == sum(takes)


def test_a_stream_of_one_segment_has_another_order_with_another_seed(tmp_path):
    examples = CachedSource(NumberedSource(), "disk", tmp_path).examples("train")
    assert len(examples.segments) == 1
    orders = []
    for seed in (0, 0, 1):
        data = examples.shuffled(seed, HostShard(9, 1), 0, 9)
        orders.append([example["image_bytes"] for example in data.as_numpy_iterator()])
    assert orders[0] == orders[1] != orders[2] and len(set(orders[0])) == 81


def test_examples_are_selected_by_their_indices(numbered_source):
    examples = numbered_source.examples("train")
    everything = list(examples.in_order().as_numpy_iterator())
    for indices in ([0], [3, 4, 5, 50, 99], [], range(COUNT)):
        selected = list(examples.at(np.array(indices, np.int64)).as_numpy_iterator())
        assert selected == [everything[i] for i in indices]
