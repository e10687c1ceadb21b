import pytest
from helpers.sources import sizes

from vitkeras import data
from vitkeras.errors import InputError


def test_an_unknown_dataset_gets_a_suggestion(data_dir, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="dataset='digitz'. Did you mean \"digits\""):
        data.open_source("digitz", data_dir)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "./photos", str(tmp_path / "photos")):
        with pytest.raises(InputError, match=f"dataset='{name}'. Did you mean \"folder:{name}\""):
            data.open_source(name, data_dir)


def test_validation_percent_does_not_change_an_existing_split(digits, data_dir):
    source = data.open_source("digits", data_dir, validation_percent=50)
    assert sizes(source) == sizes(digits)


@pytest.mark.parametrize("options", [
    {"validation_percent": 0}, {"validation_percent": 90}, {"validation_percent": -1},
    {"shots": 0}, {"shots": 1.5},
    {"cache": "disk"}, {"cache": "disk:"}, {"cache": "memory:x"}, {"cache": "ram"},
    {"cache": "disk:gs://bucket/x"},
])  # fmt: skip
def test_invalid_options(options, data_dir):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"`{name}` must be .*{name}={value!r}"):
        data.open_source("digits", data_dir, **options)
