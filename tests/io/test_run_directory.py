import json

import pytest

from vitkeras.errors import InputError
from vitkeras.io.run_directory import RunDirectory

CONFIG = {"epochs": 3, "image_size": (8, 8), "strategy": "one_device"}
NAMES = ["a", "b"]
REST = ({"image_size": [8, 8]}, {"train": 7})


def test_run_directory_keeps_what_it_was_created_with(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(InputError, match="has no config.json"):
        run.load_model()
    run.create(CONFIG, NAMES, *REST)
    assert run.exists() and run.config == {**CONFIG, "image_size": [8, 8]}
    assert (run.class_names, run.preprocessing, run.dataset) == (NAMES, *REST)
    assert json.loads((tmp_path / "run" / "class_names.json").read_text()) == NAMES
    with pytest.raises(InputError, match="has not saved this model yet"):
        run.load_model("best")


def test_another_config_or_data_set_is_refused(tmp_path, caplog):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    run.create(CONFIG, NAMES, *REST)
    run.create(CONFIG | {"save_steps": 5}, NAMES, *REST)
    with pytest.raises(InputError, match="same config.*epochs was 3 and is now 4"):
        run.create(CONFIG | {"epochs": 4}, NAMES, *REST)
    with pytest.raises(InputError, match="same class_names"):
        run.create(CONFIG, ["a", "c"], *REST)
    with pytest.raises(InputError, match="same dataset.*train was 7 and is now 8"):
        run.create(CONFIG, NAMES, REST[0], {"train": 8})
    assert not caplog.messages and run.config["epochs"] == 3


def test_another_strategy_or_version_is_logged_on_resume(tmp_path, caplog):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    run.create(CONFIG | {"strategy": "mirrored"}, NAMES, *REST)
    (warning,) = caplog.messages
    assert "strategy=one_device" in warning and "strategy=mirrored" in warning
    caplog.clear()
    path = tmp_path / "run" / "versions.json"
    versions = json.loads(path.read_text())
    assert set(versions) == {"vitkeras", "keras", "tensorflow"}
    path.write_text(json.dumps(versions | {"keras": "3.0.0"}))
    run.create(CONFIG, NAMES, *REST)
    (warning,) = caplog.messages
    assert "keras 3.0.0" in warning and f"keras {versions['keras']}" in warning


def test_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        RunDirectory(tmp_path).create({}, [], {}, {})
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_interrupted_create_is_repeated(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    (tmp_path / "run" / "config.json").unlink()  # written last
    run.create(CONFIG, ["a", "c"], *REST)
    assert run.class_names == ["a", "c"] and run.config["epochs"] == 3
