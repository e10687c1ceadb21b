import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import photo, write_photos

from vitkeras.data import EvaluationFolder, Preprocessing, evaluation_batches
from vitkeras.errors import InputError

NAMES = ["dog", "ant", "cow", "bee, \u732b"]  # the order of a run need not be that of the names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = [f"{name}/{i}.png" for name in ("ant", "bee, \u732b", "dog") for i in range(2)]
    root = write_photos(tmp_path_factory.mktemp("folder"), files)
    (root / "ant/bad.png").write_bytes(b"no image")
    (root / "ant/notes.txt").write_text("no image")
    (root / "cow").mkdir()
    return root


def test_labels_are_those_of_the_run_and_classes_may_be_missing(folder):
    source = EvaluationFolder(str(folder), NAMES)
    assert source.class_names == NAMES and list(source.files) == ["all"]
    assert source.labels("all").tolist() == [1, 1, 3, 3, 0, 0]
    paths = source.example_paths("all")
    assert [path.split("/")[-2] for path in paths] == [NAMES[i] for i in source.labels("all")]
    assert [path for path, _ in source.bad_images] == ["ant/bad.png"]
    assert source.other_files == ["ant/notes.txt"]
    batches = list(evaluation_batches(source, "all", Preprocessing((8, 8)), 4))
    labels = np.concatenate([labels for _, labels, _ in batches])
    assert labels.tolist() == [1, 1, 3, 3, 0, 0, 0, 0]
    images = np.concatenate([images for images, _, _ in batches])
    for path, image in zip(paths, images, strict=False):
        np.testing.assert_array_equal(tf.io.decode_png(tf.io.read_file(path)), image)


def test_split_folders_are_splits(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "Testing")
    source = EvaluationFolder(str(tmp_path), NAMES)  # without a train folder
    assert list(source.files) == ["test", "all"] and source.num_examples("test") == 6
    (tmp_path / "val/ant").mkdir(parents=True)
    with pytest.raises(InputError, match="A split must have an image. .* split validation"):
        EvaluationFolder(str(tmp_path), NAMES).num_examples("validation")
    (tmp_path / "val/cow").mkdir()
    photo(8, 8).save(tmp_path / "val/cow/0.png")
    source = EvaluationFolder(str(tmp_path), NAMES)
    assert source.num_examples("all") == 7 and source.labels("validation").tolist() == [2]
    assert source.example_paths("validation") == [f"{tmp_path}/val/cow/0.png"]
    classes = [path.split("/")[-2] for path in source.example_paths("all")]
    assert classes == [NAMES[label] for label in source.labels("all")]


def test_other_classes_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(
        InputError, match="must be a class of the run. .*'dog'.*mean \"dogs\""
    ) as error:
        EvaluationFolder(str(folder), ["ant", "bee, \u732b", "cow", "dogs"])
    assert "\n" not in str(error.value)
    for path, words in ((tmp_path, "one sub-folder per class"), (tmp_path / "no", "existing")):
        with pytest.raises(InputError, match=words):
            EvaluationFolder(str(path), NAMES)


def test_examples_are_read_by_index(folder, data_dir):
    from vitkeras.data import open_source

    for source, split in (
        (EvaluationFolder(str(folder), NAMES), "all"),
        (open_source("digits", data_dir, cache="none"), "test"),
        (open_source("digits", data_dir, cache="memory"), "test"),
    ):
        examples = source.examples(split)
        every = list(examples.in_order().as_numpy_iterator())
        for indices in ([], [0], [1, 3, 5], [len(every) - 1]):
            found = list(examples.at(np.array(indices, int)).as_numpy_iterator())
            assert found == [every[i] for i in indices]
