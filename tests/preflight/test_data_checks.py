from vitkeras import data
from vitkeras.preflight.data_checks import check_labels, decode_sample, read_labels


def test_labels_without_a_class_are_a_problem(data_dir):
    source = data.open_source("digits", data_dir)
    result = check_labels(read_labels(source, 1000), source.class_names[:-1])
    assert len(result.problems) == 1 and "labels, such as 9" in result.problems[0]
    assert result.values["classes"] == 9 and result.values["images_per_class"]["min"] > 100


def test_a_sample_is_spread_over_each_split(photos):
    source = data.open_source(f"folder:{photos}")
    splits = [source.num_examples(split) for split in data.SPLITS]
    everything, some = decode_sample(source, None), decode_sample(source, 2)
    assert len(everything.sizes) == sum(splits) and len(everything.bad) == 1
    assert everything.num_images == sum(splits) + 1
    assert 2 <= len(some.sizes) < len(everything.sizes)
    assert set(some.sizes) <= set(everything.sizes)
