import os

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SIZE, make
from helpers.sources import NumberedSource

import vitkeras as vk
from vitkeras import data
from vitkeras.errors import InputError
from vitkeras.evaluation import features
from vitkeras.evaluation.few_shot import Head
from vitkeras.models.resnet import build_resnet
from vitkeras.serving.signatures import make_forward

PREPROCESSING = data.Preprocessing((4, 4))
#: The images of the other splits have the contents of the first 50 training images.
NUM_CONTENTS, SHARD = 100, 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_SHARD", SHARD)
    return features.FeatureCache(tmp_path / "features", "key")


def extract(cache, batch_size=8, forward=None):
    """Returns the features, here the number of each image, and how many images were computed."""
    count = tf.Variable(0)

    def number_and_its_square(images):
        with tf.control_dependencies([count.assign_add(tf.shape(images)[0])]):
            numbers = tf.cast(images[:, 0, 0, :1], tf.float32)
            return tf.concat([numbers, numbers**2], axis=1)

    forward = forward or number_and_its_square
    found = features.extract_features(NumberedSource(), PREPROCESSING, forward, batch_size, cache)
    return found, int(count)


def check(found):
    assert {split: len(each.labels) for split, each in found.items()} == {
        "train": 100, "validation": 50, "test": 50,
    }  # fmt: skip
    for values, labels in found.values():
        numbers = np.arange(len(labels))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.stack([numbers, numbers**2], axis=1))
        np.testing.assert_array_equal(labels, numbers % 2)


@pytest.mark.parametrize("batch_size, computed", [(7, 105), (64, 128), (500, 100)])
def test_features_are_in_order_and_each_content_is_computed_once(cache, batch_size, computed):
    found, count = extract(cache, batch_size)
    check(found)
    assert count == computed  # with the padding of the last batch
    found, count = extract(cache, batch_size)
    check(found)
    assert count == 0


def test_a_missing_or_damaged_shard_alone_is_computed_again(cache):
    extract(cache)
    shards = sorted(cache.path.glob("*.npz"))
    assert len(shards) == NUM_CONTENTS // SHARD
    for damage in ("delete", "cut", "flip", "empty"):
        shard = shards[0]
        content = bytearray(shard.read_bytes())
        if damage == "delete":
            os.remove(shard)
        else:
            content[len(content) // 2] ^= 1
            shard.write_bytes({"cut": content[:-30], "flip": content, "empty": b""}[damage])
        found, count = extract(cache, SHARD)
        check(found)
        assert count == SHARD, damage
        assert sorted(cache.path.glob("*.npz")) == shards
    assert extract(cache)[1] == 0


def test_a_killed_process_leaves_whole_shards(cache, monkeypatch):
    write, calls = cache.write, []

    def write_twice(digests, values):
        calls.append(len(digests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(digests, values)

    monkeypatch.setattr(cache, "write", write_twice)
    with pytest.raises(KeyboardInterrupt):
        extract(cache)
    stale = cache.path / ".0.npz.123"
    stale.mkdir()
    monkeypatch.setattr(cache, "write", write)
    found, count = extract(cache, batch_size=4)
    check(found)
    assert count == NUM_CONTENTS - 2 * SHARD
    assert not stale.exists()


def test_features_that_are_not_finite_are_refused_and_not_cached(cache):
    def forward(images):
        numbers = tf.cast(images[:, 0, 0, :1], tf.float32)
        return tf.where(numbers == 9, np.nan, numbers)

    with pytest.raises(InputError, match="1 of 8 images"):
        extract(cache, forward=forward)
    assert not list(cache.path.glob("*.npz"))


def test_the_folder_must_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="feature cache.*file"):
        features.FeatureCache(tmp_path / "file", "key")


def test_the_key_depends_on_backbone_and_preprocessing_but_not_on_the_head():
    model = make()
    key = features.backbone_key(model, PREPROCESSING)
    for options, is_same in (({}, True), ({"num_classes": 7}, True), ({"gelu": "exact"}, False)):
        other = make(**options)
        for weight, value in zip(other.weights[:-2], model.weights, strict=False):
            weight.assign(value)
        assert (features.backbone_key(other, PREPROCESSING) == key) == is_same
    other = data.Preprocessing((4, 4), background=(0, 0, 0))
    assert features.backbone_key(model, other) != key
    weight = model.get_layer("block_01").weights[0]
    weight.assign(weight + 1e-6)
    assert features.backbone_key(model, PREPROCESSING) != key


def features_of(model, preprocessing, cache):
    """Returns the features of a model as `vitkeras probe` computes them."""
    forward = make_forward(model)
    return features.extract_features(
        NumberedSource(), preprocessing, lambda images: forward(images)["features"], 50, cache
    )


def models():
    """Yields a model of each kind, with random weights."""
    for options in (
        {"classifier": "gap"},
        {"classifier": "map"},
        {"classifier": "token_gap", "num_registers": 2},
        {"pre_logits": True},
        {"dtype": "mixed_bfloat16"},
    ):
        yield make(**options)
    model = build_resnet(vk.ResNetConfig((1, 1), num_classes=3, image_size=SIZE))
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    yield model


def test_a_head_of_the_features_gives_the_logits_of_the_model(tmp_path):
    preprocessing = data.Preprocessing(SIZE)
    ((images, labels, _),) = data.evaluation_batches(NumberedSource(), "test", preprocessing, 50)
    for i, model in enumerate(models()):
        found = features_of(model, preprocessing, features.FeatureCache(tmp_path, str(i)))["test"]
        head = Head(*(np.array(weight) for weight in model.get_layer("head").weights))
        # A graph rounds to bfloat16 in other places than eager execution.
        tolerance = 1e-4 if model.get_layer("norm").compute_dtype == "float32" else 0.05
        np.testing.assert_allclose(head.logits(found.values), model(images), atol=tolerance)
        assert found.values.dtype == np.float32 and np.ptp(model(images), axis=0).min() > 1e-3
        np.testing.assert_array_equal(found.labels, labels)
