import pytest
from helpers.sources import NumberedSource

from vitkeras import data
from vitkeras.data import cache, examples


@pytest.fixture(scope="session")
def digits(data_dir):
    """The digits, opened once; tests must not change this source."""
    return data.open_source("digits", data_dir)


@pytest.fixture(params=["in memory", "TFRecord files"])
def numbered_source(request, tmp_path, monkeypatch):
    if request.param == "in memory":
        return NumberedSource()
    monkeypatch.setattr(cache, "IMAGES_PER_FILE", 8)
    monkeypatch.setattr(examples, "SHUFFLE_BLOCK", 36)  # blocks of 12 in streams of 33
    return cache.CachedSource(NumberedSource(), "disk", tmp_path)
