"""Atomic writes on disk and in an object store, with the writer killed before every operation."""

import io
import re

import numpy as np
import pytest
from etils.epath import backend
from helpers.models import TINY

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.io import atomic
from vitkeras.io.locks import exclusive_lock
from vitkeras.io.run_directory import RunDirectory
from vitkeras.training import checkpoints


class Killed(BaseException):
    """Ends a write without any cleanup, as SIGKILL does."""


class ObjectStore:
    """A file system with the rules of an object store, killed before operation number `kill_at`.

    A file appears when it is closed, and nothing can be renamed.
    """

    def __init__(self):
        self.files, self.count, self.kill_at = {}, 0, None

    def _operation(self):
        if self.kill_at is not None and self.count >= self.kill_at:
            raise Killed
        self.count += 1

    def open(self, path, mode):
        store = self
        if "r" in mode:
            if str(path) not in self.files:
                raise FileNotFoundError(path)
            content = self.files[str(path)]
            return io.StringIO(content.decode()) if mode == "r" else io.BytesIO(content)

        class Upload(io.BytesIO):
            def write(self, content):
                store._operation()
                return super().write(content)

            def seek(self, *_):
                raise io.UnsupportedOperation("an upload cannot seek")

            def close(self):
                if not self.closed:
                    store._operation()
                    store.files[str(path)] = self.getvalue()
                super().close()

        return Upload()

    def _below(self, path):
        return [name for name in self.files if name.startswith(f"{str(path).rstrip('/')}/")]

    def exists(self, path):
        return str(path) in self.files or bool(self._below(path))

    def isdir(self, path):
        return bool(self._below(path))

    def listdir(self, path):
        start = len(str(path).rstrip("/")) + 1
        return sorted({name[start:].split("/")[0] for name in self._below(path)})

    def makedirs(self, path, *, exist_ok, mode=None):
        pass  # there are no directories

    mkdir = makedirs

    def remove(self, path):
        self._operation()
        if str(path) not in self.files:
            raise FileNotFoundError(path)
        del self.files[str(path)]

    def rmtree(self, path):
        for name in self._below(path):
            self.remove(name)


@pytest.fixture
def store(monkeypatch):
    store = ObjectStore()
    monkeypatch.setattr(backend, "tf_backend", store)
    return store


def state(step):
    return {"weights": np.full((50, 50), step, "float32"), "step": np.array(step)}


def save(folder, step):
    checkpoints.save_state(folder, step, state(step), {"epoch": step})


def check(folder, steps):
    """Checks that the newest state is complete and of one of these steps; returns its step."""
    with pytest.MonkeyPatch.context() as patch:
        warnings = []
        patch.setattr(checkpoints.logging, "warning", lambda *parts: warnings.append(parts))
        arrays, record = checkpoints.latest_state(folder)
    assert record["step"] in steps and not warnings
    np.testing.assert_array_equal(arrays["weights"], state(record["step"])["weights"])
    return record["step"]


def test_a_state_in_an_object_store_is_complete_or_absent_whenever_the_writer_is_killed(store):
    folder, newest, kill_at = "gs://bucket/run/state", [], 0
    while True:
        store.files.clear()
        store.kill_at = None
        for step in (1, 2, 3):
            save(folder, step)
        store.count, store.kill_at = 0, kill_at
        try:
            save(folder, 4)
        except Killed:
            store.kill_at = None
            newest.append(check(folder, (3, 4)))
            save(folder, 4)  # the resumed run saves again
            check(folder, (4,))
            save(folder, 5)
            assert check(folder, (5,)) == 5
            assert store.listdir(folder) == ["step-000000004", "step-000000005"]
        else:
            break
        kill_at += 1
    assert kill_at > 10 and {3, 4} == set(newest)
    store.kill_at = None
    assert len([p for p in checkpoints._states(folder)]) == checkpoints.KEPT == 2


def test_a_state_on_disk_is_complete_or_absent_whenever_the_writer_is_killed(tmp_path, monkeypatch):
    newest, kill_at = [], 0
    while True:
        folder = tmp_path / str(kill_at)
        for step in (1, 2, 3):
            save(folder, step)
        with monkeypatch.context() as patch:
            count = iter(range(1000))

            def killed_before(function, count=count, kill_at=kill_at):
                def run(*args, **kwargs):
                    if next(count) >= kill_at:
                        raise Killed
                    return function(*args, **kwargs)

                return run

            for name in ("fsync", "rename", "replace", "remove", "unlink", "rmdir", "mkdir"):
                patch.setattr(f"os.{name}", killed_before(getattr(atomic.os, name)))
            patch.setattr(atomic.shutil, "rmtree", killed_before(atomic.shutil.rmtree))
            patch.setattr(checkpoints.np, "savez", killed_before(checkpoints.np.savez))
            try:
                save(folder, 4)
                killed = False
            except Killed:
                killed = True
        newest.append(check(folder, (3, 4)))
        atomic.remove_stale_staging(folder)
        assert all(re.fullmatch(r"step-\d+", p.name) for p in folder.iterdir())
        save(folder, 4)
        save(folder, 5)
        assert check(folder, (5,)) == 5
        assert sorted(p.name for p in folder.iterdir()) == ["step-000000004", "step-000000005"]
        if not killed:
            break
        kill_at += 1
    assert kill_at > 5 and {3, 4} == set(newest)


def test_a_run_directory_in_an_object_store(store):
    run = RunDirectory("gs://bucket/run")
    run.create({"epochs": 2}, ["a", "b"], {"image_size": [8, 8]}, {"train": 3})
    with pytest.raises(InputError, match="same config.*epochs was 2 and is now 3"):
        run.create({"epochs": 3}, ["a", "b"], {"image_size": [8, 8]}, {"train": 3})
    model = vk.vit("Ti/4", image_size=8, num_classes=2, **TINY)
    run.save_model(model, "best")
    assert "gs://bucket/run/best.keras" in store.files
    for actual, saved in zip(run.load_model("best").weights, model.weights, strict=True):
        np.testing.assert_array_equal(actual, saved)
    with exclusive_lock(run.path):  # object stores have no locks
        atomic.remove_stale_staging(run.path)
    assert RunDirectory("gs://bucket/run").class_names == ["a", "b"]


def test_weights_are_saved_to_and_loaded_from_an_object_store(store):
    model = vk.vit("Ti/4", image_size=8, num_classes=2, include_top=False, **TINY)
    for path in ("gs://bucket/weights.npz", "gs://bucket/hugging_face"):
        vk.save_weights(model, path)
        loaded = vk.from_pretrained(path)
        for actual, saved in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(actual, saved)


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    atomic.write_file(tmp_path / "x", b"old")
    with pytest.raises(ZeroDivisionError):
        with atomic.atomic_file(tmp_path / "x") as temporary:
            temporary.write_bytes(b"ne")
            raise ZeroDivisionError
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
