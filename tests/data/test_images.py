import os

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, odd_files, photo

from vitkeras import data
from vitkeras.data.images import decode_error, decode_file, file_error, read_file
from vitkeras.errors import InputError

FILES = odd_files(encode(photo(30, 40)))


def test_read_file(tmp_path):
    (tmp_path / "0.png").write_bytes(b"content")
    assert read_file(tmp_path / "0.png") == b"content"
    with pytest.raises(InputError, match="missing.png .No such file"):
        read_file(tmp_path / "missing.png")
    with pytest.raises(InputError, match=f"{tmp_path} .Is a directory"):
        read_file(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="pipe.jpg, a named pipe"):
        read_file(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("bad")])
def test_odd_images_are_decoded(name):
    image = decode_file(name, FILES[name])
    assert image.dtype == np.uint8 and image.shape == (30, 40, 3)
    np.testing.assert_array_equal(image, data.decode_image(FILES[name]))
    assert decode_error(FILES[name]) is None


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("bad")])
def test_a_file_that_is_not_a_complete_image_is_named(name):
    with pytest.raises(
        InputError, match=f"complete JPEG, PNG or WebP.*{name}, {len(FILES[name])} b"
    ):
        decode_file(name, FILES[name])
    reason = decode_error(FILES[name])
    assert reason and "\n" not in reason and "{{" not in reason
    if "giant" in name:
        assert "at most 100,000,000 pixels. Its header declares 2,500,000,000" in reason


def test_the_reason_of_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "missing")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    photo(8, 8).save(tmp_path / "good.png")
    reasons = {path.stem: file_error(str(path)) for path in sorted(tmp_path.iterdir())}
    assert reasons == {
        "empty": "the file is empty", "good": None, "pipe": "not a file",
        "link": "cannot be read: No such file or directory",
    }  # fmt: skip
    with tf.io.gfile.GFile("ram://reasons.png", "wb") as file:
        file.write(b"text")
    assert file_error("ram://reasons.png") == "not a JPEG, PNG or WebP image"
    assert file_error("ram://missing.png").startswith("cannot be read: ")
