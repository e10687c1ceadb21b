import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, photo, write_photos
from helpers.sources import images_of, labels_of, sizes

from vitkeras import data
from vitkeras.errors import InputError

SPLITS = ("train", "validation", "test")


def test_folder_is_split_and_its_bad_file_is_listed(photos):
    source = data.FolderSource(photos)
    assert sum(sizes(source)) == 35 and sizes(source)[1:] == [3, 3]
    assert source.class_names == ["ant", "bee", "cow"]
    assert [path for path, _ in source.bad_images] == ["bee/01.jpg"]
    assert source.bad_images[0][1]
    assert labels_of(data.FolderSource(photos), "train") == labels_of(source, "train")


def test_num_listed_counts_files_before_any_is_decoded(photos):
    source = data.FolderSource(photos)
    assert sum(source.num_listed(split) for split in SPLITS) == 36 and not source._validated
    source = data.open_source(f"folder:{photos}", shots=2)
    assert source.num_listed("train") == 30 > source.num_examples("train") == 6


def test_example_path_is_a_decodable_file_of_the_split(tmp_path):
    root = write_photos(tmp_path, ["train/a/0.png", "train/a/1.png", "test/a/0.png"])
    (root / "test" / "a" / "-.png").write_bytes(b"sorted before 0.png")
    source = data.open_source(f"folder:{root}")
    assert source.example_paths("test")[0] == f"{root}/test/a/0.png"


def test_folder_with_its_own_splits(tmp_path):
    train = [f"train/{c}/{i}.png" for c in ("a", "b") for i in range(10)]
    root = write_photos(tmp_path, [*train, "test/b/0.png", "test/b/1.png"])
    source = data.FolderSource(root)
    assert sizes(source) == [18, 2, 2] and labels_of(source, "test") == [1, 1]
    write_photos(root, ["val/a/0.png"])
    assert sizes(data.FolderSource(root)) == [20, 1, 2]
    write_photos(root, ["test/c/0.png"])
    with pytest.raises(InputError, match=r"test/ must be in train/ too.*\['c'\]"):
        data.FolderSource(root)


def test_validation_percent_of_a_folder(photos, tmp_path):
    def sizes_with(root, percent):
        return sizes(data.FolderSource(root, validation_percent=percent))

    assert sizes_with(photos, 25) == [23, 9, 3]
    files = [f"{c}/{i}.png" for c in ("a", "b") for i in range(10)]
    root = write_photos(tmp_path, [f"train/{file}" for file in files] + ["test/b/0.png"])
    assert sizes_with(root, 30) == [14, 6, 1]
    write_photos(tmp_path, ["val/a/0.png"])
    assert sizes_with(root, 30) == [20, 1, 1]


def test_a_folder_with_val_but_without_test_is_rejected(tmp_path):
    write_photos(tmp_path, ["train/a/0.png", "val/a/0.png"])
    with pytest.raises(InputError, match=r"must have train/ and test/.*\['train', 'val'\]"):
        data.FolderSource(tmp_path)


def test_a_split_without_images_is_rejected(tmp_path):
    source = data.FolderSource(write_photos(tmp_path, ["a/0.png", "b/0.png"]))
    with pytest.raises(InputError, match="split validation, with none.* at least 3"):
        source.num_examples("validation")


def test_invalid_folders(tmp_path):
    with pytest.raises(InputError, match="existing folder.*none"):
        data.open_source(f"folder:{tmp_path}/none")
    with pytest.raises(InputError, match="which has no sub-folder"):
        data.FolderSource(tmp_path)
    write_photos(tmp_path, ["a/0.png"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="Every class folder.*b, which has none"):
        data.FolderSource(tmp_path)
    (tmp_path / "b" / "0.jpg").write_bytes(b"")
    (tmp_path / "a" / "0.png").write_bytes(b"text")
    with pytest.raises(InputError, match="can be decoded.*2 files"):
        data.FolderSource(tmp_path).validate("train")


def test_shots_of_a_folder_are_images_that_can_be_decoded(photos):
    full = data.FolderSource(photos)
    source = data.open_source(f"folder:{photos}", shots=8)
    assert sizes(source) == [24, 3, 3]
    assert np.bincount(labels_of(source, "train")).tolist() == [8, 8, 8]
    assert set(images_of(source, "train")) < set(images_of(full, "train"))
    assert images_of(source, "test") == images_of(full, "test")
    assert [path for path, _ in source.bad_images] == ["bee/01.jpg"]
    fingerprints = [
        data.FolderSource(photos, shots=shots).fingerprint()["files_sha256"] for shots in (8, 8, 7)
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    with pytest.raises(InputError, match="shots=10, class bee with 9"):
        data.open_source(f"folder:{photos}", shots=10).num_examples("train")


def test_a_folder_in_an_object_store():
    # TensorFlow's in-memory file system replaces a bucket: it has URLs too.
    for name in ("ant", "bee"):
        tf.io.gfile.makedirs(f"ram://bucket/photos/{name}")
        for i in range(6):
            tf.io.write_file(f"ram://bucket/photos/{name}/{i}.png", encode(photo(9, 9, seed=i)))
    tf.io.write_file("ram://bucket/photos/bee/bad.jpg", b"no image")
    source = data.open_source("folder:ram://bucket/photos/")
    assert sum(sizes(source)) == 12 and source.class_names == ["ant", "bee"]
    assert [path for path, _ in source.bad_images] == ["bee/bad.jpg"]
    assert source.example_paths("test")[0].startswith("ram://bucket/photos/")
    batches = data.training_batches(source, data.Preprocessing((4, 4)), 4, 1)
    assert sum(len(images) for images, _ in batches) == 8
    with pytest.raises(InputError, match="existing folder.*ram://bucket/none"):
        data.open_source("folder:ram://bucket/none")


@pytest.mark.parametrize(
    "train, validation, test",
    [("Train", None, "Test"), ("TRAINING", "Valid", "testing"), ("training", "dev", "TEST")],
)
def test_split_folders_of_any_usual_name(train, validation, test, tmp_path, caplog):
    folders = [name for name in (train, validation, test) if name]
    files = [f"{folder}/{c}/{i}.png" for folder in folders for c in ("a", "b") for i in range(6)]
    with caplog.at_level("INFO", "absl"):
        source = data.FolderSource(write_photos(tmp_path, files))
    assert source.class_names == ["a", "b"]
    assert sizes(source) == ([12, 12, 12] if validation else [10, 2, 12])
    assert f"The splits are the folders {train}, " in caplog.text and test in caplog.text


@pytest.mark.parametrize(
    "files, message",
    [
        (["train/a/0.png", "Training/a/0.png", "test/a/0.png"], "one folder per split"),
        (["train/a/0.png", "test/a/0.png", "cats/0.png"], r"either splits.*\['cats'\]"),
        (["train/a/0.png", "test/0.png"], r"either splits.*\['train'\].*\['test'\]"),
        (["train/0.png", "test/0.png"], "either splits"),
        (["train/a/0.png"], "must have train/ and test/"),
        (["test/a/0.png", "dev/a/0.png"], "must have train/ and test/"),
    ],
)
def test_ambiguous_splits_are_refused(files, message, tmp_path):
    with pytest.raises(InputError, match=message):
        data.FolderSource(write_photos(tmp_path, files))


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    root = write_photos(tmp_path, ["train/0.png", "bus/0.png", "tram/0.png"])
    assert data.FolderSource(root).class_names == ["bus", "train", "tram"]


def test_junk_is_ignored_and_every_other_file_is_used_or_listed(tmp_path):
    files = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(12)]
    junk = [
        "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/._0.png", ".cache/0.png",
        "__MACOSX/cat/0.png", "dog/Thumbs.db.png", "@eaDir/0.png",
    ]  # fmt: skip
    root = write_photos(tmp_path, [*files, "cat/deep/er/0.jfif", *junk])
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "cat" / name).write_bytes(b"junk")
    (root / "dog" / "notes.txt").write_text("text")
    (root / "dog" / "README").write_text("text")
    for suffix in ("webp", "BMP", "gif", "tif"):
        (root / "cat" / f"x.{suffix}").write_bytes(b"image")
    os.symlink("/gone/photo.jpg", root / "cat" / "link.jpg")
    os.mkfifo(root / "dog" / "pipe.jpg")
    with open(os.fsencode(root) + b"/dog/caf\xe9.png", "wb") as file:
        file.write(encode(photo(9, 9)))
    (root / "cat" / "new\nline.webp").write_bytes(b"image")
    source = data.FolderSource(root)
    assert source.class_names == ["cat", "dog"] and sum(sizes(source)) == 26
    listed = [path for split in SPLITS for path in source.validate(split).files]
    assert sorted(listed) == sorted([*files, "cat/deep/er/0.jfif", "dog/Thumbs.db.png"])
    reasons = dict(source.bad_images)
    assert set(reasons) == {
        "cat/x.webp", "cat/x.BMP", "cat/x.gif", "cat/x.tif", "cat/link.jpg", "dog/pipe.jpg",
        "dog/caf\\xe9.png", "cat/new\\nline.webp",
    }  # fmt: skip
    assert "No such file" in reasons["cat/link.jpg"] and "regular" in reasons["dog/pipe.jpg"]
    assert reasons["cat/x.BMP"] == ".bmp files are not read; convert it to JPEG, PNG or WebP"
    assert "UTF-8" in reasons["dog/caf\\xe9.png"]
    assert sorted(source.other_files) == ["dog/README", "dog/notes.txt"]


def test_folders_that_cannot_be_used(tmp_path):
    write_photos(tmp_path, ["a/0.png"])
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match=r"must be UTF-8.*caf\\xe9"):
        data.FolderSource(tmp_path)


def test_the_fingerprint_has_the_contents(tmp_path):
    files = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(12)]
    root = write_photos(tmp_path / "photos", files)
    before = data.FolderSource(root).fingerprint()
    assert data.FolderSource(root).fingerprint() == before  # from the cache
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    os.utime(copy / "cat" / "0.png", (0, 0))
    assert data.FolderSource(copy).fingerprint() == before
    cat, dog = (root / c / "0.png" for c in ("cat", "dog"))
    contents = cat.read_bytes(), dog.read_bytes()
    cat.write_bytes(contents[1])
    dog.write_bytes(contents[0])
    after = data.FolderSource(root).fingerprint()
    assert after["files_sha256"] != before["files_sha256"] and after["train"] == before["train"]
