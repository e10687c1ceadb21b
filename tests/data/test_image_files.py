import os

import pytest
import tensorflow as tf
from helpers.images import photo

from vitkeras.data.image_files import ImageFiles
from vitkeras.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.webp", "b/c/x[1].jpeg", "b/c/x1.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8).save(tmp_path / name)
    for name in (".hidden/1.png", "b/._2.png", "__MACOSX/3.png", "b/notes.txt", "b/c/old.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "named").write_bytes(b"x")
    return tmp_path


def found(folder, *names):
    files = ImageFiles([f"{folder}/{name}".removesuffix("/") for name in names])
    paths = list(files)
    assert list(files) == paths and files.count() == len(paths)
    return [path.removeprefix(f"{folder}/") for path in paths]


def test_files_folders_and_patterns(folder):
    images = ["a.webp", "b/1.JPG", "b/2.png", "b/c/old.gif", "b/c/x1.jpeg", "b/c/x[1].jpeg"]
    assert found(folder, "") == images  # a GIF is reported, not left out
    assert found(folder, "b") == images[1:]
    assert found(folder, "named", "b/notes.txt", ".hidden/1.png") == [
        "named", "b/notes.txt", ".hidden/1.png",
    ]  # fmt: skip
    assert found(folder, "b/*.png", "**/x*.jpeg") == ["b/2.png", "b/c/x1.jpeg", "b/c/x[1].jpeg"]
    assert found(folder, "b/c/x[1].jpeg") == ["b/c/x[1].jpeg"]  # a file before a pattern
    assert found(folder, "*") == ["a.webp", *images[1:], "named"]  # with the folder b


def test_names_without_an_image_are_refused(folder, tmp_path):
    for name in ("missing.png", "*.bmp"):
        with pytest.raises(InputError, match=f"file, a folder, or a glob.*{name[-4:]}"):
            found(folder, "a.webp", name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must have .jpg, .*empty, without images"):
        found(folder, "empty")


def test_names_that_are_not_utf8(folder):
    name = b"b/caf\xe9.png"
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(b"x")
    assert os.fsencode(found(folder, "b")[-1]) in (name, b"b/c/x[1].jpeg")
    assert name in [os.fsencode(path) for path in found(folder, "b")]


def test_an_object_store():
    for name in ("sub", ".hidden"):
        tf.io.gfile.makedirs(f"ram://images/{name}")
    for name in ("one.png", "sub/two.jpg", ".hidden/three.jpg", "notes.txt"):
        with tf.io.gfile.GFile(f"ram://images/{name}", "wb") as file:
            file.write(b"x")
    assert found("ram://images", "") == ["one.png", "sub/two.jpg"]
    assert found("ram://images", "*.png") == ["one.png"]
