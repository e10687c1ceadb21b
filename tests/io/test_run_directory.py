import errno
import json
import shutil

import pytest
import tensorflow as tf
from helpers.models import TINY

import vitkeras as vk
from vitkeras.errors import InputError, RunError
from vitkeras.io.atomic import write_file
from vitkeras.io.locks import exclusive_lock
from vitkeras.io.run_directory import FILES, RunDirectory
from vitkeras.training.loop import exclusive_run

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


def test_a_field_that_an_older_version_did_not_record_has_its_default(tmp_path):
    run, new = RunDirectory(tmp_path / "run"), CONFIG | {"resize": "squash", "sides": (1, 2)}
    run.create(CONFIG, NAMES, *REST)
    run.create(new, NAMES, *REST, defaults=new)
    with pytest.raises(InputError, match="resize was 'squash' and is now 'crop'"):
        run.create(new | {"resize": "crop"}, NAMES, *REST, defaults=new)


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


@pytest.mark.parametrize("name", ["config", "class_names", "preprocessing", "dataset", "versions"])
@pytest.mark.parametrize("content", [b"", b"{", b"7", b"null", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named(name, content, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    (run.path / FILES[name]).write_bytes(content)
    with pytest.raises(InputError, match=f"{FILES[name]} of a run must be as .* cannot be read"):
        run._read(name)
    with pytest.raises(InputError, match="of a run must be as"):
        run.create(CONFIG, NAMES, *REST)


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_model_is_named(damage, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    run.save_model(vk.vit("Ti/4", image_size=8, num_classes=2, **TINY), "best")
    path = run.path / "best.keras"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(InputError, match="best.keras, which cannot be read"):
        run.load_model()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    run = RunDirectory(tmp_path / "file" / "run")
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(InputError, match="can be created and written"):
        run.create(CONFIG, NAMES, *REST)
    (tmp_path / "other" / ".lock").mkdir(parents=True)
    with pytest.raises(InputError, match="must be writable"):
        with exclusive_lock(tmp_path / "other"):
            pass


def test_a_removed_run_is_not_said_to_be_intact(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG, NAMES, *REST)
    strategy = tf.distribute.get_strategy()
    with pytest.raises(RunError, match="What was saved before is intact"):
        with exclusive_run(run, strategy):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunError, match="not there any more"):
        with exclusive_run(run, strategy):
            shutil.rmtree(run.path)
            write_file(run.path / "metrics.csv", b"")
