from vitkeras.data.sharding import HostShard, exact_shard


def test_the_number_of_groups_depends_on_batch_and_data_only():
    for batch_size, max_groups, expected in ((4096, 1024, 64), (4096, 10, 8), (1, 5, 1)):
        assert HostShard.for_batches(batch_size, max_groups).num_groups == expected
    for num_hosts in (1, 3, 4):
        assert HostShard.for_batches(96, 64, 0, num_hosts).num_groups == 12


def test_slice_and_global_index():
    shard = HostShard.for_batches(96, 64, 1, 3)
    assert list(shard.slice) == list(range(32, 64)) and shard.global_index(33) == 96 + 33
    assert list(exact_shard(96, 3, 4).slice) == list(range(72, 96))


def test_a_host_reads_complete_groups_and_keeps_its_part():
    shards = [HostShard.for_batches(48, 64, host, 4) for host in range(4)]  # 6 groups of 8
    assert [list(shard.groups) for shard in shards] == [[0, 1], [1, 2], [3, 4], [4, 5]]
    assert [list(shard.trim(shard.slice)) for shard in shards] == [
        list(range(12 * host, 12 * host + 12)) for host in range(4)
    ]
