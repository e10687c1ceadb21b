import os
import random
import tempfile
from pathlib import Path

from helpers.images import photo

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Nothing is remembered from one session of tests to another.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    # With `--no-loadscope-reorder`, the files that take longest start first.
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/trainers/", "tests/faults/")))


@pytest.fixture(autouse=True)
def float32_and_seeded():
    keras.config.set_dtype_policy("float32")
    # Keras draws the seeds of weights and dropout from these. `keras.utils.set_random_seed` would
    # also clear the functions that TensorFlow has optimized, in every test.
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where TensorFlow Datasets writes, once for all tests."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 3 classes x 12 photos of several formats, modes and sizes; one is cut short."""
    root = tmp_path_factory.mktemp("photos")
    kinds = [("png", "RGB"), ("jpg", "RGB"), ("png", "L"), ("png", "RGBA"), ("jpeg", "L"),
             ("JPG", "CMYK"), ("png", "P"), ("png", "I;16"), ("jpg", "RGB"), ("png", "1"),
             ("jpg", "RGB"), ("PNG", "RGB")]  # fmt: skip
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir()
        for i, (suffix, mode) in enumerate(kinds):
            image = photo(40 + 7 * i, 90 - 5 * i, mode, seed=100 * label + i)
            kind = "PNG" if suffix.lower() == "png" else "JPEG"
            image.save(root / name / f"{i:02d}.{suffix}", kind)
    cut = root / "bee" / "01.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    return root
