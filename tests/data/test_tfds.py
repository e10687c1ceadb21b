import io

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers.images import photo
from helpers.sources import images_of, labels_of, sizes
from PIL import Image

from vitkeras import data
from vitkeras.errors import InputError


def test_digits_are_complete_and_stratified(digits):
    from sklearn.datasets import load_digits

    assert sizes(digits) == [1439, 179, 179]
    assert digits.num_listed("train") == 1439 and digits.example_paths("test") is None
    examples = []
    for split in data.SPLITS:
        labels = labels_of(digits, split)
        examples += zip(labels, images_of(digits, split), strict=True)
        assert np.ptp(np.bincount(labels) / len(labels)) < 0.02
    levels = [
        (
            label,
            np.round(np.asarray(Image.open(io.BytesIO(image))) / 255 * 16).astype(int).tobytes(),
        )
        for label, image in examples
    ]
    bunch = load_digits()
    expected = zip(bunch.target, bunch.images.astype(int), strict=True)
    assert sorted(levels) == sorted((label, image.tobytes()) for label, image in expected)
    assert digits.class_names == [str(i) for i in range(10)]


def test_features_of_another_kind_and_a_missing_download(tmp_path):
    class NumberedLabel(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None
        label = np.int64

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": self.label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            raise AssertionError("Manual directory does not exist.")

        def _generate_examples(self):
            yield from ()

    class ByHand(NumberedLabel):
        label = tfds.features.ClassLabel(num_classes=2)

    with pytest.raises(InputError, match="ClassLabel.*'numbered_label' with Image and "):
        data.open_source("numbered_label", str(tmp_path))
    with pytest.raises(InputError, match="dataset='by_hand'.*Manual directory does not exist"):
        data.open_source("by_hand", str(tmp_path))
    with pytest.raises(InputError, match="dataset='by_hand:9.9.9'"):
        data.open_source("by_hand:9.9.9", str(tmp_path))


@pytest.mark.slow
def test_missing_splits_are_taken_from_others(tmp_path):
    class OnlyTrain(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None
        with_test = False

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20)} | (
                {"test": self._generate_examples(5)} if self.with_test else {}
            )

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.asarray(photo(5 + i, 9, seed=i)), "label": i % 2}

    class TrainAndTest(OnlyTrain):
        with_test = True

    class UnlabeledTest(OnlyTrain):
        def _split_generators(self, dl_manager):
            unlabeled = ((i, example | {"label": -1}) for i, example in self._generate_examples(3))
            return {
                "train": self._generate_examples(20),
                "validation": self._generate_examples(4),
                "test": unlabeled,
            }

    def sizes_with(name, **options):
        source = data.open_source(name, str(tmp_path), **options)
        assert source.class_names == ["no", "yes"]
        for image, _, _ in data.evaluation_batches(source, "test", data.Preprocessing((4, 4)), 5):
            assert image.shape == (5, 4, 4, 3)
        return sizes(source)

    assert sizes_with("only_train") == [16, 2, 2]
    assert sizes_with("only_train", validation_percent=20) == [14, 4, 2]
    assert sizes_with("train_and_test") == [18, 2, 5]
    assert sizes_with("train_and_test", validation_percent=40) == [12, 8, 5]
    assert sizes_with("train_and_test", validation_percent=40, shots=3) == [6, 8, 5]
    assert sizes_with("unlabeled_test") == [18, 2, 4]


def test_shots_are_the_same_in_every_epoch(digits, data_dir, monkeypatch):
    with monkeypatch.context() as patch:  # only labels are read
        patch.setattr(tfds.features.Image, "decode_example", lambda *_: 1 / 0)
        source = data.open_source("digits", data_dir, shots=3)
    assert sizes(source) == [30, 179, 179] and source.num_listed("train") == 30
    assert labels_of(source, "validation") == labels_of(digits, "validation")
    assert np.bincount(labels_of(source, "train")).tolist() == [3] * 10
    selected = images_of(source, "train")
    assert set(selected) < set(images_of(digits, "train"))
    for seed in (1, 2):
        assert sorted(images_of(source, "train", seed)) == sorted(selected)
    assert data.steps_per_epoch(source, 8) == 3


def test_fingerprints_of_shots(digits, data_dir):
    assert "shots_sha256" not in digits.fingerprint()
    first, again, *others = (
        data.open_source("digits", data_dir, seed, shots=shots).fingerprint()
        for seed, shots in ((0, 3), (0, 3), (1, 3), (0, 4))
    )
    assert first == again
    assert len({str(each) for each in (first, *others, digits.fingerprint())}) == 4


def test_labels_without_a_class_are_rejected(data_dir):
    source = data.open_source("digits", data_dir)
    source.class_names.pop()
    with pytest.raises(InputError, match="integer from 0 to 8.* with label 9"):
        source._check_labels("train")
    for batches in (
        data.training_batches(source, data.Preprocessing((8, 8)), 64, 1),
        data.evaluation_batches(source, "test", data.Preprocessing((8, 8)), 64),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="integer from 0 to 8"):
            list(batches)
