import shutil

import pytest
import tensorflow as tf
from helpers.sources import NumberedSource, images_of, labels_of, number

from vitkeras import data
from vitkeras.data import cache
from vitkeras.data.cache import CachedSource
from vitkeras.data.examples import InMemoryExamples, TFRecordExamples
from vitkeras.errors import InputError
from vitkeras.io.atomic import publish


@pytest.mark.parametrize("shots", [None, 2])
def test_small_splits_are_read_once_for_all_epochs(data_dir, shots, monkeypatch):
    source = data.open_source("digits", data_dir, shots=shots)
    parsed, parse = tf.Variable(0, dtype=tf.int64), TFRecordExamples._parse

    def counted(self, records):
        return parse(self, records).map(lambda x: (parsed.assign_add(1), x)[1])

    monkeypatch.setattr(TFRecordExamples, "_parse", counted)
    monkeypatch.setattr(TFRecordExamples, "shuffled", None)
    batches = data.training_batches(source, data.Preprocessing((8, 8)), 20, epochs=2)
    assert sum(1 for _ in batches) == 2 * (1 if shots else 71)
    assert int(parsed) == (20 if shots else 1439)


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
def test_every_cache_has_the_same_images(kind, digits, photos, data_dir, tmp_path):
    option = f"disk:{tmp_path}" if kind == "disk" else kind
    for dataset, plain in (
        ("digits", digits), (f"folder:{photos}", data.open_source(f"folder:{photos}"))
    ):  # fmt: skip
        cached = data.open_source(dataset, data_dir, cache=option)
        for split in ("train", "test"):
            images = images_of(cached, split)
            assert sorted(images) == sorted(images_of(plain, split))
            assert len(images) == cached.num_examples(split)


def test_the_disk_cache_is_shuffled_complete_and_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IMAGES_PER_FILE", 50)
    numbered = NumberedSource()
    source = CachedSource(numbered, "disk", tmp_path)
    assert len(source.examples("train")) == 100 and len(source.examples("train").segments) == 2
    labels = labels_of(source, "train")
    assert sum(labels) == 50 and labels != [i % 2 for i in range(100)]
    images = images_of(source, "validation")
    assert [number(tf.io.decode_png(image)) for image in images] == list(range(50))
    folders = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", None)
        again = CachedSource(numbered, "disk", tmp_path)
        assert images_of(again, "train") == images_of(source, "train")
    numbered.content = "2"
    CachedSource(numbered, "disk", tmp_path).examples("train")
    assert len({path.name for path in tmp_path.iterdir()} - folders) == 1


def test_the_cache_of_another_process_is_used_if_it_is_published_first(tmp_path, monkeypatch):
    other = CachedSource(NumberedSource(), "disk", tmp_path / "other")
    expected = images_of(other, "train")

    def publish_second(staging, folder):
        shutil.copytree(tmp_path / "other" / folder.name, folder)
        publish(staging, folder)

    monkeypatch.setattr(cache, "publish", publish_second)
    source = CachedSource(NumberedSource(), "disk", tmp_path / "cache")
    assert images_of(source, "train") == expected
    names = [[path.name for path in (tmp_path / name).iterdir()] for name in ("other", "cache")]
    assert names[0] == names[1] and len(names[0]) == 1


def test_a_failed_write_leaves_no_files(tmp_path):
    (tmp_path / "file").write_text("")
    source = CachedSource(NumberedSource(), "disk", tmp_path / "file")
    with pytest.raises(InputError, match="`cache=disk:FOLDER`.*file"):
        source.examples("train")

    class Broken(NumberedSource):
        def examples(self, split):
            rows = {"file": tf.constant([__file__, "none"]), "label": tf.constant([0, 1])}
            return InMemoryExamples(rows, lambda x: x | {"image_bytes": tf.io.read_file(x["file"])})

    with pytest.raises(tf.errors.NotFoundError):
        CachedSource(Broken(), "disk", tmp_path / "new").examples("validation")
    assert not list((tmp_path / "new").iterdir())
