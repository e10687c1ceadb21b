from vitkeras import data
from vitkeras.preflight.data_checks import (
    Sample,
    check_images,
    check_labels,
    decode_sample,
    read_labels,
)


def test_labels_without_a_class_are_a_problem(data_dir):
    source = data.open_source("digits", data_dir)
    result = check_labels(read_labels(source, 1000), source.class_names[:-1], 1437)
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


def test_the_effect_of_the_resize_is_described_with_numbers():
    sample = Sample([(300, 100), (100, 300), (200, 200)] * 3, ["PNG RGB"] * 9, [])
    squash, crop = (
        check_images(sample, {"train": 9}, data.Preprocessing((64, 64), crop_fraction=fraction))
        for fraction in (None, 0.9)
    )
    assert squash.values["median_stretch"] == 3 and "crop" in squash.values["preprocessing"]
    assert "a factor of 3.0 or more" in squash.warnings[0] and "resize=crop" in squash.warnings[0]
    assert crop.values["median_area_kept_percent"] == 27 and "27 %" in crop.warnings[0]
    assert "median_stretch" not in crop.values
    square = Sample([(200, 200)], ["PNG RGB"], [])
    assert not check_images(square, {"train": 1}, data.Preprocessing((64, 64))).warnings
