"""States on disk and in an object store, with the writer killed at every single operation."""

import io
import re

import numpy as np
import pytest
from conftest import TINY
from etils.epath import backend

import vitkeras as vk
from vitkeras import storage
from vitkeras.errors import InputError
from vitkeras.runs import RunDirectory
from vitkeras.training import checkpoints


class Killed(BaseException):
    """What a killed process does: nothing any more, not even its own cleaning up."""


class ObjectStore:
    """An object store's rules: a file appears when it is closed, and nothing can be renamed.

    Before operation number `kill_at` the process dies.
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
                raise io.UnsupportedOperation("an upload goes forward only")

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
        pass  # there are no folders

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
    """The newest state is one of these and whole, and nothing had to be skipped for it."""
    said = []
    arrays, extra = checkpoints.latest_state(folder, said.append)
    assert extra["step"] in steps and not said
    np.testing.assert_array_equal(arrays["weights"], state(extra["step"])["weights"])
    return extra["step"]


def test_a_save_to_an_object_store_is_whole_or_not_whenever_it_is_killed(store):
    folder, seen, kill_at = "gs://bucket/run/state", [], 0
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
            seen.append(check(folder, (3, 4)))
            save(folder, 4)  # the run goes on and comes by here again
            check(folder, (4,))
            save(folder, 5)
            assert check(folder, (5,)) == 5
            assert store.listdir(folder) == ["step-000000004", "step-000000005"]
        else:
            break
        kill_at += 1
    assert kill_at > 10 and {3, 4} == set(seen)
    store.kill_at = None
    assert len([p for p in checkpoints._states(folder)]) == checkpoints.KEPT == 2


def test_a_save_to_disk_is_whole_or_not_whenever_it_is_killed(tmp_path, monkeypatch):
    seen, kill_at = [], 0
    while True:
        folder = tmp_path / str(kill_at)
        for step in (1, 2, 3):
            save(folder, step)
        with monkeypatch.context() as patch:
            count = iter(range(1000))

            def dying(function, count=count, kill_at=kill_at):
                def run(*args, **kwargs):
                    if next(count) >= kill_at:
                        raise Killed
                    return function(*args, **kwargs)

                return run

            for name in ("fsync", "rename", "replace", "remove", "unlink", "rmdir", "mkdir"):
                patch.setattr(f"os.{name}", dying(getattr(storage.os, name)))
            patch.setattr(storage.shutil, "rmtree", dying(storage.shutil.rmtree))
            patch.setattr(checkpoints.np, "savez", dying(checkpoints.np.savez))
            try:
                save(folder, 4)
                killed = False
            except Killed:
                killed = True
        seen.append(check(folder, (3, 4)))
        storage.remove_leftovers(folder)
        assert all(re.fullmatch(r"step-\d+", p.name) for p in folder.iterdir())
        save(folder, 4)
        save(folder, 5)
        assert check(folder, (5,)) == 5
        assert sorted(p.name for p in folder.iterdir()) == ["step-000000004", "step-000000005"]
        if not killed:
            break
        kill_at += 1
    assert kill_at > 5 and {3, 4} == set(seen)


def test_a_run_directory_lives_in_an_object_store(store):
    run = RunDirectory("gs://bucket/run")
    run.create({"epochs": 2}, ["a", "b"], {"image_size": [8, 8]}, {"train": 3})
    with pytest.raises(InputError, match="another config: epochs=2 there, 3 now"):
        run.create({"epochs": 3}, ["a", "b"], {"image_size": [8, 8]}, {"train": 3})
    model = vk.vit("Ti/4", image_size=8, num_classes=2, **TINY)
    run.save_model(model, "best")
    assert "gs://bucket/run/best.keras" in store.files
    for ours, theirs in zip(run.load_model("best").weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with storage.lock(run.path):  # there is none, and nobody is hindered
        storage.remove_leftovers(run.path)
    assert RunDirectory("gs://bucket/run").class_names == ["a", "b"]


def test_weights_go_to_an_object_store_and_come_back(store):
    model = vk.vit("Ti/4", image_size=8, num_classes=2, include_top=False, **TINY)
    for path in ("gs://bucket/weights.npz", "gs://bucket/hugging_face"):
        vk.save_weights(model, path)
        back = vk.from_pretrained(path)
        for ours, theirs in zip(back.weights, model.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    storage.write_file(tmp_path / "x", b"old")
    with pytest.raises(ZeroDivisionError):
        with storage.new_file(tmp_path / "x") as place:
            place.write_bytes(b"ne")
            raise ZeroDivisionError
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
